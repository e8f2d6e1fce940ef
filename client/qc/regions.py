"""A volume in, what all measures look at out: its voxels thinned out, the body in them, and the air around it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from client.grids import Grid
from client.volumes import Intensity

_MOST = 96  # voxels along an axis that are looked at: thinning keeps noise, ghosts and histograms as they are
_MARGIN = 2  # voxels between body and air: partial volume and blur
_LEAST = 500  # voxels of air
_TISSUE = 50  # voxels of tissue
_CORNERS = 8  # of the view must be air: else it shows a part of the body alone, and what is dark in it is no air
_IN_SLICE = ndimage.generate_binary_structure(3, 1) & np.array([False, True, False])  # neighbours in an axial slice
_ZEROED = 0.5  # share of the air that has one value from which somebody wrote it

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]


class NotMeasured(Exception):
    """Why a measure says nothing of a volume: a reason that names nobody."""


@dataclass(frozen=True)
class Regions:
    """grid, data: the volume as it is, (X, Y, Z) in RAS order. intensity: its statistics."""

    grid: Grid
    data: Array
    intensity: Intensity

    @cached_property
    def thin(self) -> Array:
        """Every k-th voxel along each axis, at most 96."""
        return self.data[tuple(slice(None, None, -(-n // _MOST)) for n in self.data.shape)]

    @cached_property
    def tissue(self) -> Mask:
        """Of `thin`: brighter than air. Raises NotMeasured where there is hardly any."""
        bright = self.thin > self.intensity.foreground
        if bright.sum() < _TISSUE:
            raise NotMeasured("hardly any tissue")
        return bright

    @cached_property
    def body(self) -> Mask:
        """Of `thin`: the largest connected piece of tissue, and what it encloses in an axial slice, such as lungs."""
        return _largest(self.tissue)

    @cached_property
    def core(self) -> Mask:
        """As `body`, of what is at least half as bright as the mean tissue: no ghost but a strong one belongs to it."""
        return _largest(self.thin > (self.intensity.low + float(self.thin[self.tissue].mean(dtype=np.float64))) / 2)

    @cached_property
    def air(self) -> Mask:
        """Of `thin`: background with a scanner's noise in it. Raises NotMeasured where there is none to speak of."""
        return self.outside(self.body)

    def outside(self, body: Mask) -> Mask:
        """What is not the body, with a margin. Raises NotMeasured where that is no air as a scanner saw it."""
        outside = ~ndimage.binary_dilation(body, iterations=_MARGIN)
        values = self.thin[outside]
        n, m, k = (size - 1 for size in outside.shape)
        if values.size < _LEAST or outside[::n, ::m, ::k].sum() < _CORNERS:
            raise NotMeasured("the body fills the view")
        if float(self.thin.min()) < 0:
            raise NotMeasured("voxels below zero: no magnitudes")
        if (values == np.median(values)).mean() > _ZEROED:
            raise NotMeasured("the background has one value (skull-stripped, masked, or suppressed by the scanner)")
        return outside

    @cached_property
    def halves(self) -> tuple[float, float]:
        """Mean of the darker and of the brighter tissue, parted by Otsu's threshold."""
        values = self.thin[self.tissue].clip(self.intensity.low, self.intensity.high)
        counts, edges = np.histogram(values, 128)
        middle = (edges[1:] + edges[:-1]) / 2
        below, total = counts.cumsum()[:-1], values.size
        sums = (counts * middle).cumsum()
        low, high = sums[:-1] / np.maximum(below, 1), (sums[-1] - sums[:-1]) / np.maximum(total - below, 1)
        best = (below * (total - below) * (high - low) ** 2).argmax()
        return float(low[best]), float(high[best])


def _largest(bright: Mask) -> Mask:
    """The largest connected piece, with what it encloses in an axial slice."""
    parts, count = ndimage.label(ndimage.binary_opening(bright))
    if not count:
        return bright
    body = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    outside, _ = ndimage.label(~body, _IN_SLICE)
    rim = np.zeros(int(outside.max()) + 1, bool)
    for edge in (outside[0], outside[-1], outside[:, 0], outside[:, -1]):
        rim[edge] = True
    return body | ~rim[outside]
