"""Ghosts: copies of the body in the air, half a field of view away."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from client.qc.regions import NotMeasured, Regions

_LEAST = 0.01  # share of the view that is air with, and without, a ghost
_FREE = 0.1  # share of an axis that the body leaves free: else its copy lies close to it, where dark fat passes for air


def ghosting(regions: Regions) -> float:
    """Ghost-to-signal ratio: (median of air where a ghost would lie - median of other air) / mean of the body.

    Giannelli et al. (J Appl Clin Med Phys 11(4), 2010), as MRIQC's `gsr`, with medians for means, since a rim of dark fat may
    pass for air; the ghost region is the body rolled by half the view. Along an axis that the body fills it may be fat: there no
    more counts than what a copy of the body explains, voxel by voxel. NIfTI files seldom tell the phase-encoding axis, so that
    the largest of the three axes counts. A ghost of more than a fifth of the body's brightness may pass for body, and be
    missed. Raises NotMeasured where the background is not air, or too little of it is left.
    """
    body, found = regions.core, list[float]()
    air, mean = regions.outside(body), float(regions.thin[body].mean(dtype=np.float64))
    for axis in range(3):
        half = body.shape[axis] // 2
        rolled = np.roll(body, half, axis)
        ghost, other = rolled & air, ~rolled & air
        if min(ghost.mean(), other.mean()) < _LEAST:
            continue
        above = float(np.median(regions.thin[ghost]) - np.median(regions.thin[other])) / mean
        if body.any(tuple(a for a in range(3) if a != axis)).mean() > 1 - _FREE:
            above = min(above, _copied(np.roll(regions.thin, half, axis)[ghost], regions.thin[ghost]))
        found.append(above)
    if not found:
        raise NotMeasured("too little air around the body")
    return max(found)


def _copied(body: NDArray[np.float32], air: NDArray[np.float32]) -> float:
    """Slope of the air's brightness over that of the body half a view away, (N,) each: what share of it is a copy."""
    x, y = (values.clip(*np.percentile(values, (1, 99))).astype(np.float64) for values in (body, air))
    return float(((x - x.mean()) * y).mean() / max(x.var(), 1e-12))
