"""What a site tells of its cohort before training, paid from the ledger: noisy tables, and a hidden cohort's noisy size.

The tables are those of `medmap_model.releases.cohort_tables`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from client.manifest import SPLITS
from client.privacy.releases import with_noise
from client.records import SiteRecords
from medmap_model import landmarks, shift
from medmap_model.accounting import Cost
from medmap_model.randomness import SecretRandom
from medmap_model.releases import FINE, INTENSITY, UNIT, WORDS, cohort_tables
from medmap_model.vocabulary import Organ


@dataclass(frozen=True)
class CohortSize:
    """volumes: modality -> training volumes; studies: organ -> training patients; splits: split -> patients."""

    volumes: dict[str, int]
    studies: dict[str, int]
    splits: dict[str, int]


def noisy_size(records: SiteRecords, *, epsilon: float, secret: SecretRandom) -> CohortSize:
    """epsilon-DP numbers: nothing below 0, zeros left out. The caller has charged the ledger.

    A patient counts for the modalities and the organ of his or her last study and for one split, so moves at most
    (most modalities of an organ) + 2 numbers by 1. In place of volumes patients with the modality are counted.
    """
    organs = records.vocabulary.organs
    volumes, studies = dict.fromkeys(records.vocabulary.modalities, 0), dict.fromkeys(organs, 0)
    for name, organ in organs.items():
        studies[name] = sum(records.counted(split="train", organ=name))
        have = cohort(records, organ, ("modalities",))["modalities"]
        for modality, n in zip(organ.modalities, have.tolist(), strict=True):
            volumes[modality] += n
    splits = dict.fromkeys(SPLITS, 0) | records.splits()
    exact = np.array([*volumes.values(), *studies.values(), *splits.values()])
    cells = max(len(o.modalities) for o in organs.values()) + 2
    noisy = with_noise(exact, cost=Cost(1, epsilon=epsilon), cells=cells, secret=secret).clip(0).tolist()
    numbers = iter(noisy)
    return CohortSize(*({k: n for k in names if (n := next(numbers))} for names in (volumes, studies, splits)))


def cohort(records: SiteRecords, organ: Organ, tables: Sequence[str]) -> dict[str, np.ndarray]:
    """Exact tables of the training patients counted for an organ; never to leave a site."""
    known = cohort_tables(organ)
    found = {name: np.zeros(known[name].shape, np.int64) for name in tables}
    of = {"split": "train", "organ": organ.name}
    for study, counts, (slots, cubes) in zip(
        records.studies(**of), records.counted(**of), records.cubes(**of), strict=True
    ):
        if not counts:
            continue
        if "classes" in found:
            found["classes"][_classes(organ, study.abnormality)] += 1
        if "modalities" in found:
            found["modalities"][slots] += 1
        if "intensity" in found:
            for slot, cube in zip(slots, cubes.float().numpy(), strict=True):
                share = np.histogram(cube, INTENSITY)[0] / cube.size
                found["intensity"][slot] += np.floor(share * UNIT).astype(np.int64)
        if "moments" in found:
            for slot, cube in zip(slots, cubes.float().numpy(), strict=True):
                found["moments"][slot] += np.fix(FINE * shift.released_sums(shift.features(cube)[None])).astype(
                    np.int64
                )
        if "landmarks" in found:
            for slot, cube in zip(slots, cubes.float().numpy(), strict=True):
                row = landmarks.released_sums([landmarks.landmarks_of(cube[shift.foreground(cube)])])
                found["landmarks"][slot] += np.fix(FINE * row).astype(np.int64)
        if "report_words" in found:
            words = len((study.report or "").split())
            found["report_words"][np.searchsorted(WORDS, words, side="right") - 1] += 1
    return found


def release_cohort(
    records: SiteRecords, organ: Organ, tables: Sequence[str], *, cost: Cost, secret: SecretRandom
) -> dict[str, np.ndarray]:
    """Noisy tables of one organ, which together cost `cost`. The caller has charged the ledger."""
    known, each = cohort_tables(organ), cost.part_of(len(tables))
    return {
        name: with_noise(exact, cost=each, cells=known[name].cells, unit=known[name].unit, secret=secret)
        for name, exact in cohort(records, organ, tables).items()
    }


def _classes(organ: Organ, abnormality: str | None) -> list[int]:
    label = organ.label(abnormality)
    if label < 0:
        return [len(organ.abnormalities)]
    if not organ.multi_label:
        return [label]
    return [c for c in range(len(organ.abnormalities)) if label >> c & 1]
