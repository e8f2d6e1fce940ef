"""Lesions as functions of patient mm: where each tissue compartment lies, as (X, Y, Z) shares in 0..1.

A lesion is an irregular ellipsoid; its distance (1 at the edge) divides it into the compartments of its kind. The
tissue around it is pressed aside by `Lesion.push`. Radii in mm, before `PhantomConfig.lesion_scale`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulation.phantom.anatomy import Push
from simulation.phantom.grid import Array, Axes, Rng, SmoothField

# Compartments that belong to the reaction around a mass, not to the mass.
HALO = ("brain_oedema", "liver_oedema")
SPOT = "spot"


@dataclass(frozen=True)
class Recipe:
    """What lesions of a kind are like. push: share of displacement at the centre; spread: its width, in radii."""

    radius_mm: tuple[float, float]
    irregularity: float
    push: float
    spread: float = 1.2
    inner: tuple[float, float] = (0.6, 0.6)  # where the inner compartment ends, in radii
    halo: tuple[float, float] = (0.0, 0.0)  # how far the reaction reaches, in radii; 0: none
    several: float = 0.0  # chance of two or three lesions


RECIPES: dict[tuple[str, str], Recipe] = {
    ("brain", "glioblastoma"): Recipe((10, 18), 0.20, 0.45, 1.3, (0.50, 0.75), (1.4, 1.9)),
    ("brain", "low_grade_glioma"): Recipe((10, 18), 0.24, 0.25, 1.3),
    ("brain", "metastasis"): Recipe((6, 10), 0.10, 0.40, 1.4, (0.40, 0.60), (1.9, 2.4), several=0.4),
    ("brain", "meningioma"): Recipe((9, 16), 0.10, 0.50, 1.1),
    ("brain", SPOT): Recipe((2.5, 4.5), 0.10, 0.0),
    ("liver", "hcc"): Recipe((11, 20), 0.11, 0.30, inner=(0.84, 0.88)),
    ("liver", "hemangioma"): Recipe((11, 20), 0.13, 0.15, inner=(0.58, 0.66)),
    ("liver", "cyst"): Recipe((11, 20), 0.03, 0.40, several=0.5),
    ("liver", "fnh"): Recipe((11, 20), 0.10, 0.30, inner=(0.24, 0.32)),
    ("liver", "metastasis"): Recipe((11, 20), 0.12, 0.25, inner=(0.56, 0.68), several=0.6),
    ("liver", "icc"): Recipe((11, 20), 0.20, 0.10, inner=(0.80, 0.86)),
    ("liver", "abscess"): Recipe((11, 20), 0.13, 0.30, inner=(0.66, 0.76), halo=(1.25, 1.4)),
}
# Radii where there are several, as a share of a single lesion's.
SMALLER = 0.65


@dataclass(frozen=True)
class Lesion:
    """One lesion, fully drawn: evaluating it on any grid gives the same lesion."""

    organ: str
    kind: str
    centre_mm: tuple[float, float, float]
    radius_mm: float
    frame: NDArray[np.float32]  # (3, 3): patient mm from the centre -> axes of the ellipsoid, in radii
    shape: SmoothField  # 3 channels: irregularity of the edge, of the inside, of the halo
    inner: float
    halo: float

    @classmethod
    def draw(
        cls,
        rng: Rng,
        organ: str,
        kind: str,
        centre_mm: Sequence[float],
        radius_mm: float,
    ) -> Lesion:
        """A lesion of a kind at a place; its form is random."""
        recipe = RECIPES[organ, kind]
        stretch = np.clip(rng.normal(1, recipe.irregularity, 3), 0.7, 1.3)
        stretch /= np.prod(stretch) ** (1 / 3)
        a, b = rng.uniform(0, np.pi, 2)
        about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
        about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
        frame = np.einsum("ij,jk->ik", about_z, about_x) / (stretch[:, None] * radius_mm)
        shape = SmoothField.draw(
            rng,
            sd=1.0,
            spacing_mm=0.8 * radius_mm,
            half_mm=2.8 * radius_mm,
            centre_mm=centre_mm,
            channels=3,
        )
        x, y, z = (float(c) for c in centre_mm)
        inner, halo = rng.uniform(*recipe.inner), rng.uniform(*recipe.halo)
        return cls(organ, kind, (x, y, z), radius_mm, frame.astype(np.float32), shape, inner, halo)

    @property
    def recipe(self) -> Recipe:
        """What its kind is like."""
        return RECIPES[self.organ, self.kind]

    @property
    def reach_mm(self) -> float:
        """Nothing of it lies further from its centre, along any axis."""
        return self.radius_mm * (2.8 if self.halo else 1.8)

    @property
    def push(self) -> Push | None:
        """Its mass effect."""
        recipe = self.recipe
        if not recipe.push:
            return None
        return Push(self.centre_mm, recipe.push, recipe.spread * self.radius_mm)

    def compartments(self, axes: Axes, spacing_mm: float) -> dict[str, Array]:
        """Tissue -> share of each voxel, before the anatomy confines it (a glioma to the brain, say)."""
        dx, dy, dz = (a - np.float32(c) for a, c in zip(axes, self.centre_mm, strict=True))
        squared = None
        for row in self.frame:
            along = row[0] * dx + row[1] * dy + row[2] * dz
            along *= along
            squared = along if squared is None else np.add(squared, along, out=squared)
        assert squared is not None
        noise = self.shape.on(axes)
        distance = np.sqrt(squared)
        edge = distance + np.float32(self.recipe.irregularity) * noise[0]
        blur = float(np.hypot(0.05, 0.35 * spacing_mm / self.radius_mm))  # partial volume at the edges

        def within(d: Array, end: float, width: float = blur) -> Array:
            return 1 / (1 + np.exp(np.clip((d - np.float32(end)) / np.float32(width), -30, 30)))

        mass = within(edge, 1.0)
        inside = within(edge + np.float32(0.10) * noise[1], self.inner) * mass
        rim = mass - inside
        match self.kind:
            case "glioblastoma":
                halo = within(distance + np.float32(0.30) * noise[2], self.halo, blur + 0.08)
                return {"necrosis": inside, "tumour_rim": rim, "brain_oedema": halo * (1 - mass)}
            case "metastasis" if self.organ == "brain":
                halo = within(distance + np.float32(0.30) * noise[2], self.halo, blur + 0.08)
                return {"necrosis": inside, "tumour_rim": rim, "brain_oedema": halo * (1 - mass)}
            case "low_grade_glioma":
                return {"glioma": within(edge, 1.0, blur + 0.06)}
            case "meningioma":
                return {"meningioma": mass}
            case "spot":
                return {SPOT: mass}
            case "hcc":
                return {"hcc": inside, "hcc_capsule": rim}
            case "hemangioma":
                nodules = rim / (1 + np.exp(np.clip((np.float32(0.25) - noise[2]) / np.float32(0.15), -30, 30)))
                return {"hemangioma_nodule": nodules, "hemangioma": mass - nodules}
            case "cyst":
                return {"cyst": mass}
            case "fnh":
                return {"fnh_scar": inside, "fnh": rim}
            case "metastasis":
                return {"metastasis_core": inside, "metastasis_rim": rim}
            case "icc":
                return {"icc_core": inside, "icc_rim": rim}
            case "abscess":
                halo = within(edge, self.halo) * (1 - mass)
                return {"pus": inside, "abscess_wall": rim, "liver_oedema": halo}
        raise KeyError(self.kind)
