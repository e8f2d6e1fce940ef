"""What noisy score histograms tell: AUROC, ROC, operating point and calibration, with intervals for sampling and noise.

In: per class counts (bins, 2), the sum over any number of sites, and the variance of the noise on them. Pure post-processing:
it costs no privacy, however often it is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

FIGURES = ("auroc", "threshold", "sensitivity", "specificity", "ece", "prevalence")


@dataclass(frozen=True)
class NoisyCounts:
    """counts: (bins, 2), column 1 the patients with the class, bins from low to high score. variance: of each cell's noise."""

    counts: np.ndarray
    variance: float

    def __add__(self, other: NoisyCounts) -> NoisyCounts:
        return NoisyCounts(self.counts + other.counts, self.variance + other.variance)


def estimate(noisy: NoisyCounts, *, bootstrap: int = 500, seed: int = 0) -> dict[str, Any]:
    """Every one of FIGURES and its 95 % interval `<figure>_ci`, n, `roc` and `calibration`; sensitivity and specificity are at
    Youden's threshold, found on the same counts.

    The interval covers sampling of patients and the privacy noise: multinomial resamples of the denoised table, with noise of
    the same variance added anew. auroc None, with a reason, when one of the two columns is empty after clipping.
    """
    table = np.clip(noisy.counts, 0, None).astype(np.float64)
    if min(table.sum(0)) < 1:
        return {
            "auroc": None,
            "n": float(noisy.counts.sum()),
            "reason": "the noisy counts of one class are all zero: too few patients, or too much noise",
        }
    rng = np.random.default_rng(seed)
    total, share = max(1, round(float(noisy.counts.sum()))), table / table.sum()
    drawn = rng.multinomial(total, share.ravel(), size=bootstrap).reshape(bootstrap, *table.shape)
    noised = drawn + rng.normal(0, np.sqrt(noisy.variance), drawn.shape)
    drawn = np.clip(noised, 0, None)
    drawn = drawn[drawn.sum(1).min(1) >= 1]
    point, spread = _figures(table[None]), _figures(drawn)
    told: dict[str, Any] = {"n": float(noisy.counts.sum())}
    for name in FIGURES:
        told[name] = float(point[name][0])
        if len(drawn):
            told[f"{name}_ci"] = [float(x) for x in np.percentile(spread[name], [2.5, 97.5])]
    told |= _auroc(noisy.counts, noised)
    return told | {"roc": _roc(table, drawn), "calibration": _calibration(table, drawn)}


def _auroc(counts: np.ndarray, noised: np.ndarray) -> dict[str, Any]:
    """AUROC of the counts as they are, negative ones too, and its interval; nothing where a column's sum is below 1.

    Cut at 0 first, empty cells keep the positive half of their noise and pull it towards 1/2; as they are, noise averages out.
    So it differs a little from the area under the ROC that is drawn. counts: (bins, 2). noised: resamples (R, bins, 2).
    """
    if min(counts.sum(0)) < 1:
        return {}
    value, spread = _mann_whitney(counts[None])[0], _mann_whitney(noised[noised.sum(1).min(1) >= 1])
    told: dict[str, Any] = {"auroc": float(np.clip(value, 0, 1))}
    if len(spread):
        half = np.diff(np.percentile(spread, [2.5, 97.5]))[0] / 2
        told["auroc_ci"] = [float(x) for x in np.clip([value - half, value + half], 0, 1)]
    return told


def _mann_whitney(tables: np.ndarray) -> np.ndarray:
    """(R, bins, 2) -> (R,): share of pairs in which the patient with the class has the higher bin, ties counting half."""
    negative, positive = tables[..., 0], tables[..., 1]
    below = np.cumsum(negative, 1) - negative / 2
    return (positive * below).sum(1) / (positive.sum(1) * negative.sum(1))


def rates(tables: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(R, bins, 2) counts -> false and true positive rates (R, bins + 1) at every threshold, from (0, 0) to (1, 1)."""
    cumulated = np.cumsum(tables[:, ::-1], axis=1) / tables.sum(1, keepdims=True)
    cumulated = np.concatenate([np.zeros_like(cumulated[:, :1]), cumulated], 1)
    return cumulated[..., 0], cumulated[..., 1]


def _figures(tables: np.ndarray) -> dict[str, np.ndarray]:
    """(R, bins, 2) without negative counts and empty columns -> figure -> (R,)."""
    false, true = rates(tables)
    rows, bins = np.arange(len(tables)), tables.shape[1]
    best = (true - false).argmax(1)
    weight = tables.sum(2)
    observed = np.divide(tables[..., 1], weight, out=np.zeros_like(weight), where=weight > 0)
    return {
        "auroc": np.trapezoid(true, false, axis=1),
        "threshold": (bins - best) / bins,
        "sensitivity": true[rows, best],
        "specificity": 1 - false[rows, best],
        "ece": (weight * np.abs(observed - _confidence(bins))).sum(1) / weight.sum(1),
        "prevalence": tables[..., 1].sum(1) / weight.sum(1),
    }


def _roc(table: np.ndarray, drawn: np.ndarray) -> dict[str, Any]:
    """The curve, and the 95 % band of the true positive rate over the same false positive rates."""
    false, true = (r[0] for r in rates(table[None]))
    told = {"false": false.tolist(), "true": true.tolist()}
    if not len(drawn):
        return told
    curves = [np.interp(false, f, t) for f, t in zip(*rates(drawn), strict=True)]
    return told | {"true_ci": np.percentile(curves, [2.5, 97.5], axis=0).T.tolist()}


def _calibration(table: np.ndarray, drawn: np.ndarray) -> list[dict[str, Any]]:
    """Per bin its mean score (the middle), the share that has the class, with an interval, and the noisy number of patients."""
    rows = []
    for b, middle in enumerate(_confidence(len(table))):
        n = table[b].sum()
        row: dict[str, Any] = {"score": float(middle), "n": float(n), "observed": float(table[b, 1] / n) if n else None}
        filled = drawn[:, b][drawn[:, b].sum(1) > 0]
        if n and len(filled):
            row["observed_ci"] = [float(x) for x in np.percentile(filled[:, 1] / filled.sum(1), [2.5, 97.5])]
        rows.append(row)
    return rows


def _confidence(bins: int) -> np.ndarray:
    return (np.arange(bins) + 0.5) / bins
