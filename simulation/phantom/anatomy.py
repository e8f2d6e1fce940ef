"""How one patient differs from the template: patient mm -> template mm, as (3, X, Y, Z) arrays over a grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from simulation.phantom.grid import Array, Axes, Rng, SmoothField, point


@dataclass(frozen=True)
class Push:
    """Tissue pressed outwards from a point: mass effect, or a widened ventricle.

    strength: share of the distance to the centre that tissue is displaced by, at the centre; it falls off as a
    Gaussian of `width_mm`. Below 1, nothing folds.
    """

    centre_mm: tuple[float, float, float]
    strength: float
    width_mm: float

    @property
    def peak_mm(self) -> float:
        """Largest displacement, in mm."""
        return self.strength * self.width_mm * float(np.exp(-0.5))


@dataclass(frozen=True)
class Deformation:
    """Patient mm -> template mm: a linear map (pose and head or body shape), a smooth field, and pushes."""

    matrix: NDArray[np.float64]
    field: SmoothField
    pushes: tuple[Push, ...] = ()

    @classmethod
    def draw(
        cls,
        rng: Rng,
        *,
        rotation_deg: Sequence[float],
        scale_sd: float,
        field_sd_mm: float,
        field_spacing_mm: float,
        half_mm: float,
    ) -> Deformation:
        """A patient: rotations (standard deviation about x, y, z), sizes along the axes, and local shape."""
        cx, cy, cz = np.cos(a := np.deg2rad(rng.normal(0, rotation_deg)))
        sx, sy, sz = np.sin(a)
        about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
        about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
        sizes = np.clip(rng.normal(1, scale_sd, 3), 1 - 2.5 * scale_sd, 1 + 2.5 * scale_sd)
        matrix = np.einsum("ij,jk,kl->il", about_x, about_y, about_z) / sizes
        field = SmoothField.draw(rng, sd=field_sd_mm, spacing_mm=field_spacing_mm, half_mm=half_mm, channels=3)
        return cls(matrix, field)

    def with_pushes(self, pushes: Sequence[Push]) -> Deformation:
        """The same patient with more pushes."""
        return replace(self, pushes=(*self.pushes, *pushes))

    def template_mm(self, axes: Axes) -> Array:
        """Template mm of every voxel of a grid, (3, X, Y, Z)."""
        m = self.matrix.astype(np.float32)
        out = self.field.on(axes)
        for i in range(3):
            out[i] += m[i, 0] * axes[0] + m[i, 1] * axes[1]
            out[i] += m[i, 2] * axes[2]
        for push in self.pushes:
            offset = [a - np.float32(c) for a, c in zip(axes, push.centre_mm, strict=True)]
            fall = [np.exp(o * o * np.float32(-0.5 / push.width_mm**2)) for o in offset]
            share = (fall[0] * np.float32(push.strength)) * fall[1] * fall[2]
            for i in range(3):
                out[i] -= share * offset[i]
        return out

    def template_point(self, patient_mm: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
        """Template mm of one point, (3,)."""
        return self.template_mm(point(patient_mm)).reshape(3).astype(np.float64)

    def patient_point(self, template_mm: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
        """The inverse of `template_point`, by fixed-point iteration: within a fraction of a mm."""
        inverse = np.linalg.inv(self.matrix)
        target = np.asarray(template_mm, np.float64)
        found = (inverse * target).sum(1)
        for _ in range(4):
            found = found - (inverse * (self.template_point(found) - target)).sum(1)
        return found
