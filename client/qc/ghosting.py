"""Ghosts: copies of the body in the air, half a field of view away."""

from __future__ import annotations

import numpy as np

from client.qc.regions import NotMeasured, Regions

_LEAST = 0.01  # share of the view that is air with, and without, a ghost
_FREE = 0.1  # share of an axis that the body leaves free: else its copy half a view away lies on the body itself


def ghosting(regions: Regions) -> float:
    """Ghost-to-signal ratio: (median of air where a ghost would lie - median of other air) / mean of the body.

    Giannelli et al. (J Appl Clin Med Phys 11(4), 2010), as MRIQC's `gsr`, with medians for means, since a rim of dark fat may
    pass for air; the ghost region is the body rolled by half the view. NIfTI files seldom tell the phase-encoding axis, so that
    the largest of the three axes counts. A ghost of more than a fifth of the body's brightness passes for body, and may be
    missed. Raises NotMeasured where the background is not air, or too little of it is free.
    """
    body, found = regions.core, []
    air = regions.outside(body)
    for axis in range(3):
        reached = body.any(tuple(other for other in range(3) if other != axis))
        rolled = np.roll(body, body.shape[axis] // 2, axis)
        ghost, other = rolled & air, ~rolled & air
        if reached.mean() <= 1 - _FREE and min(ghost.mean(), other.mean()) >= _LEAST:
            found.append(float(np.median(regions.thin[ghost]) - np.median(regions.thin[other])))
    if not found:
        raise NotMeasured("too little air around the body")
    return max(found) / float(regions.thin[body].mean())
