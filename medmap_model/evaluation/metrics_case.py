"""Predictions (N, C) beside labels (N,) as boolean arrays (N, C): what every metric of `evaluation` is counted from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

HALF = 0.5
Threshold = float | Sequence[float | None] | None


@dataclass(frozen=True)
class Case:
    """N patients of known label, C classes.

    probability: (N, C) float64. truth: (N, C), who has the class. chosen: (N, C), the decision without any operating
    point: the likeliest class, or every label from 0.5 on. above: (N, C), at or above each class's threshold.
    """

    probability: np.ndarray
    truth: np.ndarray
    chosen: np.ndarray
    above: np.ndarray
    multi_label: bool

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def binary(self) -> bool:
        """Two classes that exclude each other: ranking, sensitivity and specificity are class 1's."""
        return not self.multi_label and self.truth.shape[1] == 2

    def ranked(self) -> np.ndarray:
        """The columns that AUROC, sensitivity and specificity are means over."""
        return np.arange(1 if self.binary else 0, self.truth.shape[1])


def build_case(
    labels: np.ndarray, probabilities: np.ndarray, *, threshold: Threshold = None, multi_label: bool = False
) -> Case:
    """labels: (N,) int, the class or (multi_label) the bit set of classes; -1 (unknown) is left out.

    probabilities: (N, C). threshold: one for all classes, or one each (None among them: 0.5). Raises ValueError for
    predictions that are not finite and for thresholds of another number than the classes.
    """
    labels = np.asarray(labels)
    known = labels >= 0
    y, p = labels[known].astype(np.int64), np.asarray(probabilities, dtype=np.float64)[known]
    if not np.isfinite(p).all():
        raise ValueError(f"{(~np.isfinite(p).all(1)).sum()} of {len(p)} predictions are not finite: training diverged")
    index = np.arange(p.shape[1])
    if multi_label:
        truth, chosen = (y[:, None] >> index) & 1 == 1, p >= HALF
    else:
        truth, chosen = y[:, None] == index, p.argmax(1)[:, None] == index
    return Case(p, truth, chosen, p >= _each(threshold, len(index)), multi_label)


def _each(threshold: Threshold, classes: int) -> np.ndarray:
    if threshold is None or isinstance(threshold, float | int):
        return np.full(classes, HALF if threshold is None else float(threshold))
    if len(threshold) != classes:
        raise ValueError(f"{len(threshold)} thresholds for {classes} classes: give one for all, or one each")
    return np.array([HALF if t is None else t for t in threshold], dtype=np.float64)


def undefined(case: Case, classes: Sequence[str] | None = None) -> str:
    """Why a metric of this case is undefined, in words: `one class only: no_tumour (12 patients)`."""
    n = len(case)
    if not n:
        return "no patient with a known label"
    patients = f"{n} patient{'' if n == 1 else 's'}"
    if case.multi_label:
        return f"no abnormality that some of them have and others lack ({patients})"
    only = int(case.truth.any(0).argmax())
    return f"one class only: {classes[only] if classes else f'class {only}'} ({patients})"
