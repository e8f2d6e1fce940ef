"""Cross-institution validation: every site releases one noisy histogram per model; all figures are worked out from these.

In: models (name -> weights and what they were trained on). Out: validation.json: per organ and class, per model, each site's
figures and those of all sites together, with intervals; who released nothing, and why.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.schema import Config
from configs.setting import ConfigError
from medmap_model.accounting import Cost, noise_variance
from medmap_model.contract import Request
from medmap_model.releases import released_classes, score_table
from medmap_model.vocabulary import Vocabulary
from server import checkpoint, files
from server.releases import RECEIPTS, Releases, Tables
from server.validation import NoisyCounts, estimate

FILE = "validation.json"


@dataclass(frozen=True)
class Model:
    """A model to validate: group -> vector, and the organs and modalities that it was trained on."""

    vectors: Mapping[str, np.ndarray]
    organs: list[str]
    modalities: list[str]


def read_model(path: Path, layout: checkpoint.Layout) -> tuple[Model, dict[str, Any]]:
    """A checkpoint as a `Model`, and its state. Raises CheckpointError."""
    vectors, state = checkpoint.load(path, layout)
    trained = state.get("trained") or {}
    if not trained.get("organs"):
        raise checkpoint.CheckpointError(f"{path} was trained on no organ: there is nothing to validate")
    return Model(vectors, trained["organs"], trained["modalities"]), state


def validate(
    releases: Releases,
    config: Config,
    vocabulary: Vocabulary,
    models: Mapping[str, Model],
    *,
    folder: Path,
    run: str,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Ask, estimate, and write `folder`/validation.json. run: the id that ledgers charge by.

    Costs each site `privacy.validation_epsilon` per model.
    """
    privacy = config.privacy
    cost = Cost(1, epsilon=privacy.validation_epsilon)
    tables: dict[str, dict[str, Tables]] = {}
    for number, (name, model) in enumerate(models.items()):
        tell(f"asking {len(releases.members)} sites to validate {name}")
        request = Request(
            model.organs, epsilon=cost.epsilon, bins=privacy.validation_bins, split=privacy.validation_split,
            known=model.modalities, run=run, number=number,
        )  # fmt: skip
        tables[name] = releases.scores(model.vectors, request, of=name)
        files.write_json(folder / RECEIPTS, releases.receipts)
    result = {
        "epsilon": cost.epsilon,
        "bins": privacy.validation_bins,
        "split": privacy.validation_split,
        "organs": figures(tables, vocabulary, cost=cost, bins=privacy.validation_bins, seed=config.seed),
        "refused": releases.refused,
    }
    files.write_json(folder / FILE, result)
    return result


def figures(
    tables: Mapping[str, Mapping[str, Tables]], vocabulary: Vocabulary, *, cost: Cost, bins: int, seed: int
) -> dict[str, Any]:
    """model -> site -> organ -> counts, as organ -> class -> model -> `sites` (site -> figures) and `pooled`."""
    found: dict[str, Any] = {}
    for model, by_site in tables.items():
        for organ in next(iter(by_site.values()), {}):
            spec = vocabulary.organs[organ]
            classes = released_classes(len(spec.abnormalities), multi_label=spec.multi_label)
            variance = noise_variance(cost, cells=score_table(spec, bins=bins).cells)
            for i, c in enumerate(classes):
                noisy = {site: NoisyCounts(given[organ][i], variance) for site, given in by_site.items()}
                pooled = functools.reduce(NoisyCounts.__add__, noisy.values())
                found.setdefault(organ, {}).setdefault(spec.abnormalities[c], {})[model] = {
                    "pooled": estimate(pooled, seed=seed),
                    "sites": {site: estimate(n, seed=seed) for site, n in noisy.items()},
                }
    return found


def config_for(path: Path, settings: Sequence[str]) -> Config:
    """The settings under which a checkpoint's model runs: its own for model, text and volumes.

    They are private, as all that a validation releases is: a site that requires privacy takes part in no other run.
    Raises CheckpointError, and ConfigError when the vocabulary is another one.
    """
    from configs import load, load_vocabulary
    from medmap_model.checkpoint import config_of, find, read_info

    folder = find(path)
    info = read_info(folder)
    private = [] if any(s.startswith("privacy=") for s in settings) else ["privacy=patient_dp"]
    config = config_of(info, load(["experiment=flower", *private, *settings]))
    here = load_vocabulary(config.data.vocabulary).hash
    if here != info["vocabulary"]["hash"]:
        raise ConfigError(
            f"{folder} has vocabulary {info['vocabulary']['hash']}, data.vocabulary={config.data.vocabulary} is {here}: "
            "give the one that it was trained with, `--set data.vocabulary=PATH`"
        )
    return config


def show(told: Mapping[str, Any]) -> None:
    """AUROC with its interval: a table per organ and class, models down, sites across."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    cost = f"epsilon {told['epsilon']:g} per model at each site"
    console.print(f"Noisy histograms of the split {told['split']}, {cost}. AUROC [95 % interval].")
    for organ, classes in told["organs"].items():
        for name, models in classes.items():
            sites = sorted({s for row in models.values() for s in row["sites"]})
            table = Table("model", "all sites", *sites, title=f"{organ}: {name}", box=box.SIMPLE_HEAD)
            for model, row in models.items():
                table.add_row(model, *(_auroc(x) for x in (row["pooled"], *(row["sites"].get(s) for s in sites))))
            console.print(table)
    for row in told["refused"]:
        console.print(f"{row['site']} released nothing of {row['of']}: {row['reason']}", style="yellow")


def _auroc(told: Mapping[str, Any] | None) -> str:
    if not told or told["auroc"] is None:
        return "-"
    low, high = told.get("auroc_ci", (None, None))
    return f"{told['auroc']:.2f} [{low:.2f}, {high:.2f}]" if low is not None else f"{told['auroc']:.2f}"
