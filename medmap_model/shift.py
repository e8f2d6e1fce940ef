"""How far apart sites' images are: a few features of each volume, and the Fréchet distance of two sites from their moments.

A cube (size, size, size) of z-scores -> (F,) features. A site -> per modality sums over its patients, nothing else: of
1, f and f f' (exact, in a simulation), or of 1, f and |f|^2 (what a site releases, with noise: a noisy covariance would
drown the distance). Of these a mean and a covariance, a multiple of the identity in the second case; and of two sites' the
Fréchet distance between Gaussians (Dowson & Landau 1982). Konz et al. 2024 (arXiv 2412.01496) use it on
radiomic features; theirs are 464, ours few, since every number of a private release costs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# name -> public middle and width: (value - middle) / width is small for an ordinary scan. Location and scale of the
# intensities are not among them: every volume is normalised to them.
FEATURES: dict[str, tuple[float, float]] = {
    "skewness": (-0.5, 5.0),
    "tails": (3.5, 10.0),
    "contrast": (0.45, 1.0),
    "edges": (0.3, 0.5),
    "grain": (0.2, 0.4),
    "through-plane blur": (0.0, 1.5),
}
_N = len(FEATURES)
_UPPER = np.triu_indices(_N)
EXACT, RELEASED = 1 + _N + len(_UPPER[0]), 1 + _N + 1  # numbers of one modality

Array = NDArray[np.float64]


class Moments(NamedTuple):
    """n patients; mean (F,) and covariance (F, F) of their features."""

    n: float
    mean: Array
    covariance: Array


def features(cube: NDArray[np.float32]) -> Array:
    """(F,) centred and scaled, of L1 norm 1 at most: one patient then moves a modality's sums by 3 at most.

    Of the foreground: skewness; kurtosis; (P90 - P50) / (P90 - P10); mean absolute difference of neighbours; mean absolute
    second difference; log ratio of the differences along the first two axes and the third (thick slices are smooth there).
    """
    inside = foreground(cube)
    values = cube[inside].astype(np.float64)
    if values.size < 2 or not values.std() > 0:
        return np.zeros(_N)
    z = (values - values.mean()) / values.std()
    p10, p50, p90 = np.percentile(z, (10, 50, 90))
    steps = [_mean_step(cube, inside, axis, order=1) for axis in range(3)]
    grain = [_mean_step(cube, inside, axis, order=2) for axis in range(3)]
    spread = values.std()
    raw = (
        (z**3).mean(),
        (z**4).mean(),
        (p90 - p50) / max(p90 - p10, 1e-6),
        np.mean(steps) / spread,
        np.mean(grain) / spread,
        np.log((steps[0] + steps[1] + 1e-6) / (2 * steps[2] + 1e-6)),
    )
    scaled = np.array([(x - centre) / width for x, (centre, width) in zip(raw, FEATURES.values(), strict=True)])
    return scaled / max(1.0, float(np.abs(scaled).sum()))


def foreground(cube: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where there is more than background."""
    low, high = np.percentile(cube, (1, 98))
    return np.asarray(cube > low + 0.12 * (high - low))


def sums(points: Array) -> Array:
    """Of patients' features (N, F): their number, their sum and the upper half of their products' sum, (EXACT,)."""
    return np.concatenate([[len(points)], points.sum(0), (points.T @ points)[_UPPER]])


def released_sums(points: Array) -> Array:
    """Of patients' features (N, F): their number, their sum and the sum of their squared lengths, (RELEASED,).

    A patient moves them by 1 + 1 + 1 at most (L1), since features have L1 norm 1 at most.
    """
    return np.concatenate([[len(points)], points.sum(0), [np.square(points).sum()]])


def moments(numbers: Array) -> Moments | None:
    """Of one modality's sums, (EXACT,) or (RELEASED,); None where there are fewer than two patients."""
    n = float(numbers[0])
    if n < 2:
        return None
    mean = numbers[1 : 1 + _N] / n
    if len(numbers) == RELEASED:
        spread = max(0.0, float(numbers[-1] / n - mean @ mean))  # noise could make it negative
        return Moments(n, mean, spread / _N * np.eye(_N))
    second = np.zeros((_N, _N))
    second[_UPPER] = numbers[1 + _N :] / n
    second = second + np.triu(second, 1).T
    return Moments(n, mean, second - np.outer(mean, mean))


def frechet(a: Moments, b: Moments) -> float:
    """The Fréchet distance (not squared) of two Gaussians with these moments."""
    root = _root(a.covariance)
    cross = np.linalg.eigvalsh(root @ b.covariance @ root).clip(0)
    squared = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance) - 2 * np.sqrt(cross).sum()
    return float(np.sqrt(max(squared, 0.0)))


def _mean_step(cube: NDArray[np.float32], inside: NDArray[np.bool_], axis: int, *, order: int) -> float:
    """Mean absolute difference of order 1 or 2 along an axis, between voxels that are all inside."""
    ends = [inside.take(range(i, inside.shape[axis] - order + i), axis) for i in range(order + 1)]
    both = np.logical_and.reduce(ends)
    steps = np.abs(np.diff(cube, order, axis))[both]
    return float(steps.mean()) if steps.size else 0.0


def _root(matrix: Array) -> Array:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(values.clip(0))) @ vectors.T)
