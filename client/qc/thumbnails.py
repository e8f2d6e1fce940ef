"""A volume's three middle slices as one small grey PNG."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from client.grids import Grid
from client.volumes import Intensity

_EDGE = 88  # pixels of each slice; the view's longest edge fills it
_GAP = 4


def thumbnail(grid: Grid, data: NDArray[np.float32], intensity: Intensity) -> bytes:
    """Axial, coronal, sagittal side by side, (88, 272); right is the patient's left, up is superior or anterior."""
    from matplotlib.image import imsave

    high = max(intensity.high - intensity.low, 1e-6)
    pixel_mm = float((grid.spacing_mm * data.shape).max()) / _EDGE
    picture = np.full((_EDGE, 3 * _EDGE + 2 * _GAP), high, np.float32)
    for place, axis in enumerate((2, 1, 0)):
        plane = np.clip(data.take(data.shape[axis] // 2, axis), intensity.low, intensity.high) - intensity.low
        edges = np.delete(grid.spacing_mm, axis)
        factors = [max(1, min(_EDGE, round(n * e / pixel_mm))) / n for n, e in zip(plane.shape, edges, strict=True)]
        small = ndimage.zoom(plane, factors, order=1, grid_mode=True, mode="nearest").T[::-1, ::-1]
        square = np.zeros((_EDGE, _EDGE), np.float32)
        top, left = ((_EDGE - n) // 2 for n in small.shape)
        square[top : top + small.shape[0], left : left + small.shape[1]] = small
        start = place * (_EDGE + _GAP)
        picture[:, start : start + _EDGE] = square
    stream = io.BytesIO()
    imsave(stream, picture, cmap="gray", vmin=0, vmax=high, format="png")
    return stream.getvalue()
