"""Scores of predicted probabilities (N, C) against labels (N,), with percentile-bootstrap confidence intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import rankdata

METRICS = ("auroc", "balanced_accuracy", "macro_f1")


def scores(labels: np.ndarray, probabilities: np.ndarray, *, bootstrap: int = 0, seed: int = 0) -> dict[str, Any]:
    """AUROC, balanced accuracy, macro F1 and n; each score None where it is undefined (fewer than two classes).

    labels: (N,) int, -1 (unknown) is left out. probabilities: (N, C). AUROC is class 1's for C = 2, else the mean
    one-versus-rest over the classes present. With bootstrap > 0 also `<metric>_ci`: [low, high], 95 %, percentiles over
    resampled patients; resamples of a single class are dropped. Raises ValueError for predictions that are not finite.
    """
    labels = np.asarray(labels)
    probabilities = np.asarray(probabilities, dtype=np.float64)
    known = labels >= 0
    y, p = labels[known].astype(np.int64), probabilities[known]
    if not np.isfinite(p).all():
        raise ValueError(f"{(~np.isfinite(p).all(1)).sum()} of {len(p)} predictions are not finite: training diverged")
    result: dict[str, Any] = dict.fromkeys(METRICS) | {"n": len(y)}
    if bootstrap > 0:
        result |= dict.fromkeys(f"{m}_ci" for m in METRICS)
    if len(np.unique(y)) < 2:
        return result
    point = _score(y[None], p[None])
    result |= {m: float(point[m][0]) for m in METRICS}
    if bootstrap > 0:
        for m, spread in resampled(y, p, bootstrap=bootstrap, seed=seed).items():
            result[f"{m}_ci"] = interval(spread)
    return result


def resampled(labels: np.ndarray, probabilities: np.ndarray, *, bootstrap: int, seed: int) -> dict[str, np.ndarray]:
    """metric -> (bootstrap,) scores over patients drawn with replacement; nan where a draw has a single class.

    The draws depend on the number of patients and the seed alone, so that models scored on the same patients are
    resampled alike: the mean or the difference of two such arrays is a paired bootstrap.
    """
    known = labels >= 0
    y, p = labels[known].astype(np.int64), np.asarray(probabilities, np.float64)[known]
    spread = {m: np.full(bootstrap, np.nan) for m in METRICS}
    if not len(y):
        return spread
    rows = np.random.default_rng(seed).integers(len(y), size=(bootstrap, len(y)))
    drawn = y[rows]
    good = (drawn != drawn[:, :1]).any(1)
    if good.any():
        found = _score(drawn[good], p[rows[good]])
        for m in METRICS:
            spread[m][good] = found[m]
    return spread


def interval(spread: np.ndarray) -> list[float] | None:
    """[low, high]: 95 % percentile interval of resampled scores, None when there are none."""
    known = spread[~np.isnan(spread)]
    return [float(v) for v in np.percentile(known, [2.5, 97.5])] if len(known) else None


def _score(y: np.ndarray, p: np.ndarray) -> dict[str, np.ndarray]:
    """R resamples at once: (R, N), (R, N, C) -> metric -> (R,). Each row holds two classes or more."""
    classes = p.shape[2]
    guess = p.argmax(2)
    truth = y[..., None] == np.arange(classes)  # (R, N, C)
    chosen = guess[..., None] == np.arange(classes)
    support, picked, hits = truth.sum(1), chosen.sum(1), (truth & chosen).sum(1)
    there = support > 0
    recall = hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(support + picked, 1)
    return {
        "auroc": _auroc(truth, p, there),
        "balanced_accuracy": _mean(recall, there),
        "macro_f1": _mean(f1, there),
    }


def _auroc(truth: np.ndarray, p: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Area under the ROC curve from mid-ranks (Mann-Whitney): (R, N, C) -> (R,)."""
    if p.shape[2] == 2:  # class 1 alone: the two classes give the same area
        truth, p, there = truth[..., 1:], p[..., 1:], np.ones_like(there[:, 1:])
    ranks = rankdata(p, axis=1)
    positive = truth.sum(1)
    negative = truth.shape[1] - positive
    area = ((ranks * truth).sum(1) - positive * (positive + 1) / 2) / np.maximum(positive * negative, 1)
    return _mean(area, there)


def _mean(values: np.ndarray, there: np.ndarray) -> np.ndarray:
    """(R, C) -> (R,): mean over the classes that are there."""
    return (values * there).sum(1) / there.sum(1)
