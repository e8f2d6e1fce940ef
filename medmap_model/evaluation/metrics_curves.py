"""Curves behind two metrics: ROC of each class (with the operating point) and reliability by bins of confidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from medmap_model.evaluation.metrics_case import Case, Threshold, build_case
from medmap_model.evaluation.metrics_resampled import calibration_bins, confidences

_POINTS = 100  # of a ROC curve: more cannot be seen


def curves(
    labels: np.ndarray,
    probabilities: np.ndarray,
    *,
    classes: Sequence[str],
    threshold: Threshold = None,
    multi_label: bool = False,
) -> dict[str, Any]:
    """`roc`: class -> {points: [[1 - specificity, sensitivity], ...], at: the operating point}; `reliability`: bins.

    Arguments: as `scores`. Of two exclusive classes the second's ROC alone. A class that everybody or nobody has is left
    out. A bin: mean confidence, accuracy and n of its patients (multi_label: pairs of a patient and a label); empty ones
    are left out.
    """
    case = build_case(labels, probabilities, threshold=threshold, multi_label=multi_label)
    shown = [c for c in case.ranked() if 0 < case.truth[:, c].sum() < len(case)]
    return {"roc": {classes[c]: _roc(case, c) for c in shown}, "reliability": _reliability(case)}


def _roc(case: Case, column: int) -> dict[str, Any]:
    truth, above = case.truth[:, column], case.above[:, column]
    order = np.argsort(-case.probability[:, column], kind="stable")
    value, hit = case.probability[order, column], truth[order]
    ends = np.flatnonzero(np.r_[value[1:] != value[:-1], True])  # patients of one probability are one point
    rates = np.stack([(~hit).cumsum()[ends] / (~hit).sum(), hit.cumsum()[ends] / hit.sum()], 1)
    points = np.r_[[[0.0, 0.0]], rates]
    kept = np.unique(np.linspace(0, len(points) - 1, _POINTS).round().astype(int))
    at = [float(above[~truth].mean()), float(above[truth].mean())]
    return {"points": [[round(float(v), 4) for v in point] for point in points[kept]], "at": at}


def _reliability(case: Case) -> list[dict[str, float]]:
    pairs = confidences(case)
    confidence = np.concatenate([c for c, _ in pairs]) if len(case) else np.zeros(0)
    right = np.concatenate([r for _, r in pairs]) if len(case) else np.zeros(0)
    bins = calibration_bins(confidence)
    return [
        {
            "confidence": float(confidence[bins == b].mean()),
            "accuracy": float(right[bins == b].mean()),
            "n": int((bins == b).sum()),
        }
        for b in np.unique(bins)
    ]
