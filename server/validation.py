"""What noisy score histograms tell: AUROC, ROC, operating points and calibration, with intervals for sampling and noise.

In: per class counts (bins, 2), the sum over any number of sites, and the noise behind it. Pure post-processing: it costs no
privacy, however often it is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class NoisyCounts:
    """counts: (bins, 2), column 1 the patients with the class, bins from low to high score. variance: of each cell's noise."""

    counts: np.ndarray
    variance: float

    def __add__(self, other: NoisyCounts) -> NoisyCounts:
        return NoisyCounts(self.counts + other.counts, self.variance + other.variance)


def laplace_variance(scale: float) -> float:
    """Of discrete Laplace noise with that scale: 2 p / (1 - p)^2, p = exp(-1 / scale)."""
    p = np.exp(-1 / scale)
    return float(2 * p / (1 - p) ** 2)


def estimate(noisy: NoisyCounts, *, bootstrap: int = 500, seed: int = 0) -> dict[str, Any]:
    """AUROC, sensitivity and specificity at Youden's threshold, calibration error; each with a 95 % interval.

    The interval covers sampling of patients and the privacy noise: multinomial resamples of the denoised table, with
    noise of the same variance added anew. None, with a reason, when one of the two columns is empty after clipping.
    """
    table = np.clip(noisy.counts, 0, None).astype(np.float64)
    if min(table.sum(0)) < 1:
        return {
            "auroc": None,
            "reason": "the noisy counts of one class are all zero: too few patients, or too much noise",
        }
    point = _scores(table)
    rng = np.random.default_rng(seed)
    total, share = max(1, round(float(noisy.counts.sum()))), table / table.sum()
    spread: dict[str, list[float]] = {k: [] for k in point}
    for _ in range(bootstrap):
        drawn = rng.multinomial(total, share.ravel()).reshape(table.shape) + rng.normal(
            0, np.sqrt(noisy.variance), table.shape
        )
        drawn = np.clip(drawn, 0, None)
        if min(drawn.sum(0)) >= 1:
            for k, v in _scores(drawn).items():
                spread[k].append(v)
    intervals = {f"{k}_ci": [float(x) for x in np.percentile(v, [2.5, 97.5])] for k, v in spread.items() if v}
    return {**point, **intervals, "n": float(noisy.counts.sum())}


def roc(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(bins, 2) counts -> false and true positive rates at every threshold, from (0, 0) to (1, 1)."""
    negative, positive = table[::-1, 0], table[::-1, 1]
    rates = (np.concatenate([[0], np.cumsum(x) / x.sum()]) for x in (negative, positive))
    false, true = rates
    return false, true


def _scores(table: np.ndarray) -> dict[str, float]:
    """The point estimates of a table without negative counts and without an empty column."""
    false, true = roc(table)
    bins = len(table)
    best = int(np.argmax(true - false))
    confidence = (np.arange(bins) + 0.5) / bins
    weight = table.sum(1)
    seen = np.divide(table[:, 1], weight, out=np.zeros(bins), where=weight > 0)
    return {
        "auroc": float(np.trapezoid(true, false)),
        "threshold": (bins - best) / bins,
        "sensitivity": float(true[best]),
        "specificity": float(1 - false[best]),
        "ece": float((weight * np.abs(seen - confidence)).sum() / weight.sum()),
    }
