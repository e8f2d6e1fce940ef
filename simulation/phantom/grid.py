"""Where an image is sampled: grids in patient mm, smooth random fields over them, and lookups in a template.

Everything that a patient has (deformation, lesions, texture, bias) is a function of patient coordinates in mm (RAS), so
the full field of view and a lesion region are the same patient on two grids. Arrays over a grid are (X, Y, Z) float32.
No BLAS here: results must not depend on threads, and every step is memory-bound anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Axes = tuple[Array, Array, Array]
Rng = np.random.Generator


@dataclass(frozen=True)
class Grid:
    """An axis-aligned, isotropic lattice of voxel centres in patient mm."""

    centre_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    spacing_mm: float

    @classmethod
    def cube(cls, centre_mm: Sequence[float] | NDArray[np.float64], size: int, spacing_mm: float) -> Grid:
        """A cube of `size` voxels along each edge."""
        x, y, z = (float(c) for c in centre_mm)
        return cls((x, y, z), (size, size, size), spacing_mm)

    @property
    def axes(self) -> Axes:
        """Patient mm of the voxel centres along x, y and z, shaped to broadcast: (X,1,1), (1,Y,1), (1,1,Z)."""
        x, y, z = (
            (c + (np.arange(n) - (n - 1) / 2) * self.spacing_mm).astype(np.float32)
            for c, n in zip(self.centre_mm, self.shape, strict=True)
        )
        return x[:, None, None], y[None, :, None], z[None, None, :]

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel index -> patient mm (RAS), 4x4."""
        affine = np.diag([self.spacing_mm] * 3 + [1.0])
        affine[:3, 3] = [c - (n - 1) / 2 * self.spacing_mm for c, n in zip(self.centre_mm, self.shape, strict=True)]
        return affine

    def window(self, centre_mm: Sequence[float], reach_mm: float) -> tuple[tuple[slice, ...], Axes] | None:
        """The part of the grid within `reach_mm` of a point along every axis: slices and axes; None if empty."""
        slices, axes = [], []
        for i, (c, n) in enumerate(zip(self.centre_mm, self.shape, strict=True)):
            first = c - (n - 1) / 2 * self.spacing_mm
            low = max(0, int(np.ceil((centre_mm[i] - reach_mm - first) / self.spacing_mm)))
            high = min(n, int(np.floor((centre_mm[i] + reach_mm - first) / self.spacing_mm)) + 1)
            if low >= high:
                return None
            slices.append(slice(low, high))
            shape = [1, 1, 1]
            shape[i] = -1
            axes.append((first + np.arange(low, high) * self.spacing_mm).astype(np.float32).reshape(shape))
        return tuple(slices), (axes[0], axes[1], axes[2])


def point(centre_mm: Sequence[float] | NDArray[np.float64]) -> Axes:
    """Axes that hold a single point."""
    x, y, z = (np.full((1, 1, 1), c, np.float32) for c in centre_mm)
    return x, y, z


class SmoothField:
    """A smooth random function of patient mm with C channels: cubic B-splines over a lattice of normal numbers.

    Away from the lattice it continues with its edge value.
    """

    # A B-spline averages neighbours: the root of the mean of its squared weights, (0.4794)^(3/2), undone in `draw`.
    _SHRINK = 0.332

    def __init__(self, coefficients: Array, origin_mm: Sequence[float], spacing_mm: float) -> None:
        self.coefficients, self.origin_mm, self.spacing_mm = coefficients, tuple(origin_mm), spacing_mm

    @classmethod
    def draw(
        cls,
        rng: Rng,
        *,
        sd: float,
        spacing_mm: float,
        half_mm: float,
        centre_mm: Sequence[float] = (0.0, 0.0, 0.0),
        channels: int = 1,
    ) -> SmoothField:
        """A field of standard deviation `sd` that varies over about `spacing_mm`, on a cube around `centre_mm`."""
        n = int(np.ceil(2 * half_mm / spacing_mm)) + 4
        numbers = rng.standard_normal((channels, n, n, n), dtype=np.float32)
        origin = [c - (n - 1) / 2 * spacing_mm for c in centre_mm]
        return cls(numbers * np.float32(sd / cls._SHRINK), origin, spacing_mm)

    def on(self, axes: Axes) -> Array:
        """Values on a grid, (C, X, Y, Z)."""
        values = self.coefficients
        # z first and x last: the large last step then gathers whole planes
        for axis in (2, 1, 0):
            mm = axes[axis].reshape(-1)
            n = values.shape[axis + 1]
            u = np.clip((mm - self.origin_mm[axis]) / self.spacing_mm, 1, n - 2.001).astype(np.float32)
            base = u.astype(np.int64)
            t = u - base
            weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3)
            shape = [1, 1, 1, 1]
            shape[axis + 1] = -1
            out = None
            for k, weight in enumerate(weights):
                term = np.take(values, base + (k - 1), axis=axis + 1)
                term *= (weight / np.float32(6)).reshape(shape)
                out = term if out is None else np.add(out, term, out=out)
            assert out is not None
            values = out
        return values


def lookup(table: NDArray[Any], shape: tuple[int, int, int], index: Array) -> Array:
    """Trilinear values of a template at fractional voxel indices; outside, the nearest edge value.

    table: (X*Y*Z, C) float32 with C contiguous; index: (3, ...) float32. Returns (C, ...) float32.
    """
    flat = index.reshape(3, -1)
    count, channels = flat.shape[1], table.shape[1]
    out = np.empty((channels, count), np.float32)
    steps = ((0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1))
    for start in range(0, count, 1 << 14):  # pieces that stay in the cache
        part = slice(start, min(start + (1 << 14), count))
        corner, weight = [], []
        for axis in range(3):
            p = np.clip(flat[axis, part], 0, shape[axis] - 1.001)
            base = p.astype(np.int32)
            corner.append(base)
            fraction = p - base
            weight.append((1 - fraction, fraction))
        first = (corner[0] * shape[1] + corner[1]) * shape[2] + corner[2]
        total = np.zeros((part.stop - part.start, channels), np.float32)
        for dx, dy, dz in steps:
            term = table.take(first + ((dx * shape[1] + dy) * shape[2] + dz), axis=0)
            term *= (weight[0][dx] * weight[1][dy] * weight[2][dz])[:, None]
            total += term
        out[:, part] = total.T
    return out.reshape((channels, *index.shape[1:]))
