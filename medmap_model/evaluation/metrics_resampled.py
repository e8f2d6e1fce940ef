"""Every metric of a `Case` on R resamples at once: counts (R, N) -> metric -> (R,), nan where undefined.

A resample is how often each patient was drawn. Everything but the ranking is then a matrix product, and the ranking needs
one sort per class for all resamples. `metrics.scores` says what each metric means; a test holds it to scikit-learn's.
A class that no patient has is left out of a mean: a hospital that never saw a cyst is no worse at finding one.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection

import numpy as np
import torch

from medmap_model.evaluation.metrics_case import Case

BINS = 15  # of the calibration error, as Guo et al. 2017 (arXiv 1706.04599)
_CELLS = 4_000_000  # float64 cells held at once: 32 MB


def on_resamples(case: Case, counts: np.ndarray, metrics: Collection[str]) -> dict[str, np.ndarray]:
    """counts: (R, N), how often each patient is in each resample. metric -> (R,)."""
    step = max(1, _CELLS // max(1, counts.shape[1] * 4))
    parts = [_chunk(case, counts[i : i + step].astype(np.float64), metrics) for i in range(0, len(counts), step)]
    return {m: np.concatenate([p[m] for p in parts]) if parts else np.zeros(0) for m in metrics}


def _chunk(case: Case, counts: np.ndarray, metrics: Collection[str]) -> dict[str, np.ndarray]:
    n = counts.sum(1, keepdims=True)
    support = counts @ case.truth
    wanted = set(metrics)
    found: dict[str, np.ndarray] = {}
    with np.errstate(divide="ignore", invalid="ignore"):
        if wanted & {"sensitivity", "specificity"}:
            found |= _at_thresholds(case, counts, support, n)
        if wanted & {"balanced_accuracy", "macro_f1", "mcc", "kappa"}:
            picked, hits = counts @ case.chosen, counts @ (case.truth & case.chosen)
            found |= (_labels if case.multi_label else _classes)(support, picked, hits, n)
        if "auroc" in wanted:
            found["auroc"] = _mean(np.stack([_area(case, counts, c) for c in case.ranked()], 1))
        if "ece" in wanted:
            found["ece"] = _calibration(case, counts, n)
    return {m: found[m] for m in metrics}


def _at_thresholds(case: Case, counts: np.ndarray, support: np.ndarray, n: np.ndarray) -> dict[str, np.ndarray]:
    columns = case.ranked()
    sensitivity = counts @ (case.truth & case.above) / support
    specificity = counts @ (~case.truth & ~case.above) / (n - support)
    if not case.binary:
        specificity[support == 0] = np.nan
    return {"sensitivity": _mean(sensitivity[:, columns]), "specificity": _mean(specificity[:, columns])}


def _classes(support: np.ndarray, picked: np.ndarray, hits: np.ndarray, n: np.ndarray) -> dict[str, np.ndarray]:
    """Classes that exclude each other: (R, C) counts; nan for a resample of fewer than two classes."""
    there, s, c = support > 0, n[:, 0], hits.sum(1)
    chance = (picked * support).sum(1)
    spread = np.sqrt((s**2 - (picked**2).sum(1)) * (s**2 - (support**2).sum(1)))
    found = {
        "balanced_accuracy": _mean(hits / support),
        "macro_f1": _mean(np.where(there, 2 * hits / (support + picked), np.nan)),
        "mcc": np.where(spread > 0, (c * s - chance) / spread, 0.0),
        "kappa": (c * s - chance) / (s**2 - chance),
    }
    return {m: np.where(there.sum(1) > 1, v, np.nan) for m, v in found.items()}


def _labels(support: np.ndarray, picked: np.ndarray, hits: np.ndarray, n: np.ndarray) -> dict[str, np.ndarray]:
    """Labels of their own: means over those that some patients of the resample have and others lack."""
    absent, passed = n - support, n - picked
    rejects = absent - (picked - hits)
    agreed, chance = hits + rejects, (support * picked + absent * passed) / n
    spread = np.sqrt(support * absent * picked * passed)
    each = {
        "balanced_accuracy": (hits / support + rejects / absent) / 2,
        "macro_f1": 2 * hits / (support + picked),
        "mcc": np.where(spread > 0, (n * hits - support * picked) / spread, 0.0),
        "kappa": (agreed - chance) / (n - chance),
    }
    both = (support > 0) & (absent > 0)
    return {m: _mean(np.where(both, v, np.nan)) for m, v in each.items()}


def _area(case: Case, counts: np.ndarray, column: int) -> np.ndarray:
    """Area under one class's ROC curve, (R,): pairs in the right order, ties for a half (Mann-Whitney)."""
    order = np.argsort(case.probability[:, column], kind="stable")
    value, truth, drawn = case.probability[order, column], case.truth[order, column], counts[:, order]
    starts = np.flatnonzero(np.r_[True, value[1:] != value[:-1]])
    positive = np.add.reduceat(drawn * truth, starts, axis=1)
    negative = np.add.reduceat(drawn * ~truth, starts, axis=1)
    below = negative.cumsum(1) - negative / 2
    return (positive * below).sum(1) / (positive.sum(1) * negative.sum(1))


def confidences(case: Case) -> list[tuple[np.ndarray, np.ndarray]]:
    """(N,) confidence and (N,) bool, whether it was right: of the likeliest class; of several labels a pair for each."""
    if case.multi_label:
        return [(case.probability[:, c], case.truth[:, c]) for c in range(case.truth.shape[1])]
    return [(case.probability.max(1), (case.truth & case.chosen).any(1))]


def calibration_bins(confidence: np.ndarray) -> np.ndarray:
    """(N,) -> (N,) number of the bin, 0 to BINS; the last is for 1 exactly."""
    edges = torch.linspace(0, 1, BINS + 1).numpy()  # float32, as in torchmetrics: 0.2 must fall into the same bin
    return np.searchsorted(edges, confidence.astype(np.float32), side="right") - 1


def _calibration(case: Case, counts: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Expected calibration error of the likeliest class, or the mean over labels; |accuracy - confidence| by bin."""
    errors = []
    for confidence, right in confidences(case):
        gaps = (calibration_bins(confidence)[:, None] == np.arange(BINS + 1)) * (right - confidence)[:, None]
        errors.append(np.abs(counts @ gaps).sum(1) / n[:, 0])
    return np.mean(errors, axis=0)


def _mean(values: np.ndarray) -> np.ndarray:
    """(R, C) -> (R,): mean over what is defined."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a resample in which nothing is defined is nan
        return np.nanmean(values, axis=1)
