"""A grid in; its coarsest voxel edge, its smallest view and its tilt out."""

from __future__ import annotations

import math

import numpy as np

from client.qc.regions import Regions


def edge_mm(regions: Regions) -> float:
    """The longest voxel edge: what resampling cannot make finer."""
    return float(regions.grid.spacing_mm.max())


def view_mm(regions: Regions) -> float:
    """The shortest edge of the field of view."""
    return float((regions.grid.spacing_mm * regions.grid.shape).min())


def tilt_deg(regions: Regions) -> float:
    """The largest angle between an axis of the grid and the patient's: cubes keep the grid's axes (client/volumes.py)."""
    cosines = np.abs((regions.grid.affine[:3, :3] / regions.grid.spacing_mm).diagonal())
    return math.degrees(math.acos(min(1.0, float(cosines.min()))))
