"""SimpleITK, loaded when it is needed, and our volumes as its images: RAS millimetres here, LPS there."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.grids import Grid
from client.problems import DataError

_LPS = np.array([-1.0, -1.0, 1.0])


def sitk() -> ModuleType:
    """The package. Raises DataError where it is not installed: a sentence naming the extra that brings it."""
    try:
        import SimpleITK
    except ModuleNotFoundError:
        wanted = (
            "data.volumes.bias_correction=n4 and data.volumes.register=rigid need SimpleITK, which is not installed"
        )
        raise DataError(f"{wanted}: pip install 'medmap-fl[ingest]'", []) from None
    return SimpleITK


def image_of(grid: Grid, data: NDArray[Any]) -> Any:
    """(X, Y, Z) voxels where the grid says that they are."""
    image = sitk().GetImageFromArray(np.ascontiguousarray(data.transpose(2, 1, 0)))
    image.SetSpacing(grid.spacing_mm.tolist())
    image.SetOrigin((_LPS * grid.affine[:3, 3]).tolist())
    image.SetDirection(orthonormal(_LPS[:, None] * grid.affine[:3, :3] / grid.spacing_mm).ravel().tolist())
    return image


def orthonormal(axes: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest axes at right angles, (3, 3): SimpleITK takes no others, and grids may be up to 3 degrees off."""
    left, _, right = np.linalg.svd(axes)
    return left @ right


def reduced(grid: Grid, edge_mm: float) -> list[int]:
    """By how much to thin out each axis for voxels of about this edge."""
    return [max(1, int(edge_mm / edge + 1e-6)) for edge in grid.spacing_mm]
