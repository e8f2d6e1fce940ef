"""Scores of parts of a test set: each class against the rest, and groups of patients (a site, a number of modalities)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from medmap_model.evaluation.metrics import scores
from medmap_model.evaluation.metrics_case import Threshold, build_case

RANKED = ("auroc", "sensitivity", "specificity")


def by_class(
    labels: np.ndarray,
    probabilities: np.ndarray,
    *,
    classes: Sequence[str],
    threshold: Threshold = None,
    multi_label: bool = False,
    bootstrap: int = 0,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """class -> AUROC, sensitivity and specificity of this class against the rest, and how many patients have it.

    labels, probabilities and threshold: as `scores`. Each entry is `scores` of a two-class problem, `n` its patients
    with the class, `of` all patients, `threshold` the operating point. None with a reason where undefined.
    """
    case = build_case(labels, probabilities, threshold=threshold, multi_label=multi_label)
    table: dict[str, dict[str, Any]] = {}
    for c, name in enumerate(classes):
        positive = case.truth[:, c]
        at = threshold if threshold is None or isinstance(threshold, float | int) else threshold[c]
        one = case.probability[:, c]
        row = scores(
            positive.astype(np.int64), np.stack([1 - one, one], 1), bootstrap=bootstrap, seed=seed, threshold=at,
            metrics=RANKED, classes=(f"without {name}", name),
        )  # fmt: skip
        table[name] = row | {"n": int(positive.sum()), "of": len(case), "threshold": 0.5 if at is None else at}
    return table


def by_group(
    labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, **settings: Any
) -> dict[str, dict[str, Any]]:
    """group -> `scores` of its patients, groups in ascending order. groups: (N,) any; settings: those of `scores`."""
    return {str(g): scores(labels[groups == g], probabilities[groups == g], **settings) for g in np.unique(groups)}
