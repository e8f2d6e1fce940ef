"""From ideal signal to what a scanner stores: (X, Y, Z) float32 in, the same grid out, in units of reference tissue.

Order as in a scanner: the vendor's intensity curve, blur, slices and breath-hold position (one kernel per axis), coil
sensitivity, Rician noise.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.ndimage import correlate1d

from simulation.phantom.grid import Array, Grid, Rng
from simulation.phantom.scanners import Scanner

COIL_MM = 75.0  # distance over which the bias coefficients act


class Coil:
    """The coil sensitivity of one study: exp of a quadratic of position, a little different for each volume."""

    def __init__(self, rng: Rng, sd: float) -> None:
        self.coefficients = rng.normal(0, sd, 7)

    def on(self, grid: Grid, rng: Rng) -> tuple[Array, Array, Array]:
        """Three planes whose product is the sensitivity: (X,Y,1), (1,Y,Z), (X,1,Z)."""
        k = (self.coefficients + rng.normal(0, 0.02, 7)).astype(np.float32)
        x, y, z = (np.clip(a / np.float32(COIL_MM), -2, 2) for a in grid.axes)
        xy = np.exp(k[0] * x + k[1] * y + k[3] * x * y + k[6] * (x * x - np.float32(0.33)))
        return xy, np.exp(k[2] * z + k[4] * y * z), np.exp(k[5] * x * z)


def acquire(
    signal: Array,
    grid: Grid,
    scanner: Scanner,
    coil: Coil,
    rng: Rng,
    *,
    blur_mm: float = 0.0,
    noise: float = 1.0,
    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Array:
    """One volume as stored. `signal`: relative to reference tissue, not negative.

    `blur_mm`, `noise`: on top of the scanner's. `shift_mm`: where this breath-hold lies; tissue that enters at the
    edge repeats the edge.
    """
    volume = np.power(signal, np.float32(scanner.curve)) if scanner.curve != 1 else signal
    sigma = float(np.hypot(scanner.blur_mm, blur_mm))
    for axis in range(3):
        thick = scanner.slice_mm if axis == scanner.slice_axis else 0.0
        kernel = _kernel(sigma / grid.spacing_mm, thick / grid.spacing_mm, shift_mm[axis] / grid.spacing_mm)
        if len(kernel) > 1:
            volume = correlate1d(volume, kernel, axis=axis, mode="nearest")
    xy, yz, xz = coil.on(grid, rng)
    volume = volume * xy
    volume *= yz
    volume *= xz
    real, imaginary = rng.standard_normal((2, *volume.shape), dtype=np.float32)
    real *= np.float32(scanner.noise * noise)
    imaginary *= np.float32(scanner.noise * noise)
    real += volume
    real *= real
    imaginary *= imaginary
    real += imaginary
    return np.sqrt(real, out=real)


@lru_cache(maxsize=256)
def _kernel(sigma: float, thick: float, shift: float) -> np.ndarray:
    """Weights along one axis, in voxels: Gaussian blur, slice profile and a shift together, summing to 1.

    Slices of thickness t, interpolated back to the grid, average as a box of t and a triangle of 2t. Slices
    thinner than a voxel and blur below a quarter of one change nothing.
    """
    box = thick if thick > 1 else 0.0
    if sigma < 0.25 and not box and abs(shift) < 0.02:
        return np.ones(1)
    reach = int(np.ceil(3 * sigma + 1.5 * box + abs(shift))) + 1
    fine = 16  # steps per voxel
    u = np.arange(-reach * fine, reach * fine + 1) / fine
    profile = np.clip(1 - np.abs(u - shift), 0, None)  # linear interpolation at the shifted position
    if sigma >= 0.25:
        profile = np.convolve(profile, _unit(np.exp(-0.5 * (u / sigma) ** 2)), "same")
    if box:
        profile = np.convolve(profile, _unit((np.abs(u) <= box / 2).astype(float)), "same")
        profile = np.convolve(profile, _unit(np.clip(1 - np.abs(u) / box, 0, None)), "same")
    return _unit(profile[::fine])


def _unit(values: np.ndarray) -> np.ndarray:
    return values / values.sum()
