"""Federated statistics before training: each site's cohort as noisy tables, and their sum -> statistics.json."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.federated import PrivacyConfig
from medmap_model.accounting import Cost, noise_variance
from medmap_model.contract import Request
from medmap_model.releases import COHORT, INTENSITY, WORDS, cohort_tables
from medmap_model.vocabulary import Vocabulary
from server import landmarks, shift
from server.files import write_json
from server.landmarks import ask_landmarks
from server.releases import Releases
from server.shift import ask_shift

FILE = "statistics.json"


def before_training(
    releases: Releases,
    privacy: PrivacyConfig,
    vocabulary: Vocabulary,
    *,
    run: str,
    folder: Path,
    tell: Callable[[str], None],
) -> None:
    """What the settings ask for (and pay) and the run's folder does not have yet."""
    organs = list(vocabulary.organs)
    for ask, file, epsilon, what in (
        (statistics, FILE, privacy.statistics_epsilon, "statistics of their cohorts"),
        (ask_shift, shift.FILE, privacy.shift_epsilon, "moments of their images"),
        (ask_landmarks, landmarks.FILE, privacy.landmarks_epsilon, "landmarks of their intensities"),
    ):
        if epsilon and not (folder / file).is_file():
            tell(f"asking {len(releases.members)} sites for noisy {what} (epsilon {epsilon:g})")
            ask(releases, vocabulary, organs=organs, epsilon=epsilon, run=run, folder=folder)


def statistics(
    releases: Releases, vocabulary: Vocabulary, *, organs: list[str], epsilon: float, run: str, folder: Path
) -> dict[str, Any]:
    """Ask every site once and write `folder`/statistics.json: organ -> table -> names, each site's counts, their sum.

    Every number comes with the standard deviation of its noise (`sd`; of a sum `sum_sd`). Counts may be negative: they are
    as released. An intensity counts patients in fractions: each adds 1 to the bins of each of his or her volumes.
    """
    cost = Cost(1, epsilon=epsilon)
    given = releases.cohort(Request(organs, epsilon=epsilon, run=run))
    each = cost.part_of(len(COHORT))
    result: dict[str, Any] = {"epsilon": epsilon, "sites": list(given), "refused": list(releases.refused), "organs": {}}
    for organ in organs:
        spec = vocabulary.organs[organ]
        known, names = cohort_tables(spec), _names(vocabulary, organ)
        tables: dict[str, Any] = {}
        for name in COHORT:
            table = known[name]
            by_site = {site: tables_of[organ][name] / table.unit for site, tables_of in given.items()}
            sd = math.sqrt(noise_variance(each, cells=table.cells, unit=table.unit)) / table.unit
            tables[name] = names[name] | {
                "sites": {site: counts.tolist() for site, counts in by_site.items()},
                "sum": sum(by_site.values()).tolist() if by_site else None,
                "sd": sd,
                "sum_sd": sd * math.sqrt(len(by_site)),
            }
        result["organs"][organ] = tables
    write_json(folder / FILE, result)
    return result


def _names(vocabulary: Vocabulary, organ: str) -> dict[str, dict[str, Any]]:
    spec = vocabulary.organs[organ]
    edges = [round(float(e), 3) for e in INTENSITY]
    return {
        "classes": {"names": [*spec.abnormalities, "not known"]},
        "modalities": {"names": list(spec.modalities)},
        "intensity": {"names": list(spec.modalities), "edges": edges},
        "report_words": {"names": [str(w) for w in WORDS]},
    }
