"""What can be seen: size, place and signal of a lesion, measured from the mask and the volumes (X, Y, Z) as written.

Reports are worded from these measurements alone, never from what was planned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, label

from simulation.phantom.grid import Array, Grid

RING_MM = 8.0  # width of the surroundings that a lesion is compared with
Place = Callable[[NDArray[np.float64]], tuple[str, str]]


@dataclass(frozen=True)
class Contrast:
    """Mean signal of a lesion over that of healthy tissue around it: all of it, its middle, its outer layer."""

    whole: float
    core: float
    rim: float


@dataclass(frozen=True)
class Findings:
    """Measurements of the largest lesion of a study; count 0: there is none.

    long_mm, short_mm: longest axial diameter and the one across it. reaction: share of the mass's volume that oedema
    adds; reaction_contrast: as `Contrast.whole`, of the oedema.
    """

    count: int = 0
    long_mm: float = 0.0
    short_mm: float = 0.0
    centre_mm: tuple[float, float, float] | None = None
    side: str = ""
    place: str = ""
    reaction: float = 0.0
    contrast: dict[str, Contrast] = field(default_factory=dict)
    reaction_contrast: dict[str, float] = field(default_factory=dict)
    modalities: tuple[str, ...] = ()


def measure(
    volumes: dict[str, Array], mask: NDArray[np.uint8], healthy: NDArray[np.bool_], grid: Grid, name_of: Place
) -> Findings:
    """Measure a study. mask: 1 mass, 2 reaction. healthy: what to compare with. name_of: patient mm -> side, place."""
    modalities = tuple(volumes)
    if not (mask == 1).any():
        return Findings(modalities=modalities)
    parts, count = label(mask == 1)
    sizes = np.bincount(parts.reshape(-1))[1:]
    count = int((sizes >= max(2, 0.02 * sizes.max())).sum()) or 1
    largest = parts == 1 + int(sizes.argmax())
    h = grid.spacing_mm
    voxels = np.argwhere(largest)
    centre = grid.affine[:3, 3] + voxels.mean(0) * h
    long_mm, short_mm = _axial_diameters(voxels, h)
    side, place = name_of(centre)

    margin = int(np.ceil(RING_MM / h)) + 1
    reacting = np.argwhere(mask > 0)
    low = np.maximum(np.minimum(reacting.min(0), voxels.min(0)) - margin, 0)
    high = np.minimum(reacting.max(0) + margin + 1, mask.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    inside, lesion = mask[box] > 0, largest[box]
    distance = distance_transform_edt(~inside) * h
    ring = ~inside & healthy[box] & (distance <= max(RING_MM, 2.1 * h))
    if not ring.any():
        ring = ~inside & (distance <= 2.1 * h)
    depth = distance_transform_edt(np.pad(lesion, 1))[1:-1, 1:-1, 1:-1]
    core = depth > 0.55 * depth.max()
    rim = lesion & (depth <= max(1.0, 0.35 * depth.max()))
    halo = mask[box] == 2

    contrast, reaction_contrast = {}, {}
    for modality, volume in volumes.items():
        block = volume[box]
        around = max(float(block[ring].mean()), 1e-3)
        contrast[modality] = Contrast(*(float(block[m].mean()) / around for m in (lesion, core, rim)))
        if halo.any():
            reaction_contrast[modality] = float(block[halo].mean()) / around
    x, y, z = (float(c) for c in centre)
    reaction = float((mask == 2).sum() / (mask == 1).sum())
    return Findings(count, long_mm, short_mm, (x, y, z), side, place, reaction, contrast, reaction_contrast, modalities)


def _axial_diameters(voxels: NDArray[np.int64], h: float) -> tuple[float, float]:
    """Longest diameter in the axial slice with the largest area, and the one across it, in mm; a voxel is h wide."""
    slices, areas = np.unique(voxels[:, 2], return_counts=True)
    plane = voxels[voxels[:, 2] == slices[areas.argmax()], :2].astype(np.float64)
    # Only the ends of each row can be ends of a diameter.
    ends = []
    for row in np.unique(plane[:, 0]):
        column = plane[plane[:, 0] == row, 1]
        ends += [(row, column.min()), (row, column.max())]
    points = np.array(ends)
    gaps = points[:, None] - points[None]
    squared = (gaps**2).sum(-1)
    i, j = np.unravel_index(int(squared.argmax()), squared.shape)
    length = float(np.sqrt(squared[i, j]))
    if length == 0:
        return h, h
    across = np.array([-(points[j] - points[i])[1], (points[j] - points[i])[0]]) / length
    position = points[:, 0] * across[0] + points[:, 1] * across[1]
    return (length + 1) * h, float(position.max() - position.min() + 1) * h
