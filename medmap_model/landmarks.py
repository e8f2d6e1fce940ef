"""Landmarks of intensities that sites release with noise, and the common scale that their sum gives (Nyul's standard scale).

A volume's landmarks are percentiles of its foreground. Where the inner ones lie between the outermost two, as a number from 0
to 1, does not depend on gain or offset: that is what sites average. Nyul, Udupa and Zhang, IEEE TMI 19(2), 2000.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99)
_MEDIAN, _LOW, _HIGH = 5, 1, 9  # places of the median and of the 10th and the 90th percentile
_STEP = 1e-4  # least distance of two landmarks: a plateau in the histogram must not become a division by nothing
_Z = np.array([NormalDist().inv_cdf(p / 100) for p in PERCENTILES])
_NORMAL = _Z[_HIGH] - _Z[_LOW]
_USUAL = ((_Z - _Z[0]) / (_Z[-1] - _Z[0]))[1:-1]  # of a normal distribution: public, and what a volume is compared with
RELEASED = 1 + len(_USUAL)  # numbers of one modality

Array = NDArray[np.float64]


def landmarks_of(values: NDArray[np.float32]) -> tuple[float, ...]:
    """The percentiles of a volume's foreground voxels, (N,), in their own unit; strictly increasing."""
    found = np.percentile(values, PERCENTILES) if values.size else np.zeros(len(PERCENTILES))
    return tuple(float(v) for v in np.maximum.accumulate(found) + _STEP * np.arange(len(PERCENTILES)))


def positions(landmarks: Sequence[Sequence[float]]) -> Array:
    """(N, 11) landmarks -> (N, 11), each volume's put to 0 and 1 at its ends."""
    rows = np.array(landmarks, float)
    return np.asarray((rows - rows[:, :1]) / (rows[:, -1:] - rows[:, :1]))


def scale(mean: Array) -> tuple[float, ...]:
    """Mean positions (11,) -> a scale of the order of z-scores.

    Shifted and stretched so that the median is 0 and the 10th and 90th percentile lie as far apart as in a normal distribution.
    """
    found = (mean - mean[_MEDIAN]) / max(mean[_HIGH] - mean[_LOW], _STEP) * _NORMAL
    return tuple(round(float(v), 4) for v in found)


def released_sums(landmarks: Sequence[Sequence[float]]) -> Array:
    """Of patients' landmarks (N, 11): their number, and the sum of how far the inner positions are from the usual, (RELEASED,).

    A patient's distances have L1 norm 1 at most, so that a patient moves all by 2 at most.
    """
    off = positions(landmarks)[:, 1:-1] - _USUAL
    off /= np.maximum(1.0, np.abs(off).sum(1, keepdims=True))
    return np.concatenate([[len(off)], off.sum(0)])


def scale_from(sums: Array) -> tuple[float, ...] | None:
    """The scale of noisy sums over all sites, (RELEASED,); None where hardly a patient is behind them."""
    if sums[0] < 2:
        return None
    inner = np.clip(sums[1:] / sums[0] + _USUAL, 0, 1)
    whole = np.concatenate([[0.0], inner, [1.0]])
    return scale(np.maximum.accumulate(whole) + _STEP * np.arange(len(whole)))
