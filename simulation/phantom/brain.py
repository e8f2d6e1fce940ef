"""The brain: MNI tissue maps, warped to a patient and sampled on a grid as (X, Y, Z) shares; places and their names."""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from simulation.phantom.anatomy import Deformation, Push
from simulation.phantom.grid import Array, Grid, Rng, lookup

SPACING_MM = 2.0  # of the template
FULL_SPACING_MM = 2.0
# Template mm (origin at the middle of the brain) -> MNI152 mm.
TO_MNI_MM = (0.0, -17.0, 5.0)
_VENTRICLES_MM = (0.0, 0.0, 4.75)
# Brightness of the T1 template in pure tissue: what is between is a mixture.
_T1_GM, _T1_WM, _T1_CSF = 0.60, 0.86, 0.33


@dataclass(frozen=True)
class Template:
    """table: (96^3, 3) shares of gm, wm, csf. inner_mm, edge_mm: deep white matter, convexity, (n, 3)."""

    table: Array
    shape: tuple[int, int, int]
    inner_mm: NDArray[np.float64]
    edge_mm: NDArray[np.float64]


@cache
def template() -> Template:
    """The maps, read once per process."""
    packed = (files("simulation.phantom") / "assets" / "mni_tissues_2mm.npy.xz").read_bytes()
    raw = lzma.decompress(packed)
    maps = np.frombuffer(raw, np.uint8, offset=len(raw) - 4 * 96**3).reshape(4, 96, 96, 96)
    gm, wm, csf, t1 = maps.astype(np.float32) / 255
    total = np.maximum(gm + wm + csf, 1e-3)
    # The T1 template tells more than three classes: what is brighter than its mixture holds more myelin.
    expected = (gm * _T1_GM + wm * _T1_WM + csf * _T1_CSF) / total
    myelin = np.where((total > 0.95) & (csf < 0.1), (t1 - expected) / (_T1_WM - _T1_GM), 0) * 0.8
    myelin = np.clip(myelin, -wm, gm)
    gm, wm = gm - myelin, wm + myelin
    brain = np.clip(gm + wm + csf, 0, 1)
    edge = brain * (1 - uniform_filter(brain, 9))
    edge[:, :, :45] = edge[:, :, 72:] = 0  # the convexity, where meningiomas are commonest
    table = np.stack([gm, wm, csf], -1).reshape(-1, 3)
    inner = np.argwhere(uniform_filter(wm, 7) > 0.70)
    return Template(table, (96, 96, 96), _mm(inner), _mm(np.argwhere(edge > 0.45)))


def _mm(voxels: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray((voxels - 47.5) * SPACING_MM, np.float64)


def draw_patient(rng: Rng) -> Deformation:
    """One patient's head: pose, proportions, folding, and ventricles of their own width."""
    head = Deformation.draw(
        rng,
        rotation_deg=(5, 4, 4),
        scale_sd=0.05,
        field_sd_mm=2.6,
        field_spacing_mm=24,
        half_mm=110,
    )
    wide = float(np.clip(rng.normal(0.10, 0.12), 0, 0.4))
    return head.with_pushes([Push(_VENTRICLES_MM, wide, 26.6)])


def draw_place(kind: str, radius_mm: float, patient: Deformation, rng: Rng) -> NDArray[np.float64]:
    """Patient mm of a lesion's centre: meningiomas sit on the convexity, all others in the white matter."""
    spots = template().edge_mm if kind == "meningioma" else template().inner_mm
    place = spots[rng.integers(len(spots))] + rng.uniform(-1, 1, 3)
    if kind == "meningioma":  # it grows inwards from the dura
        inwards = np.array(_VENTRICLES_MM) - place
        place = place + inwards / np.sqrt((inwards**2).sum()) * (0.45 * radius_mm)
    return patient.patient_point(place)


class Sampled:
    """One patient on one grid. shares: gm, wm, csf, (3, X, Y, Z), summing to 1; brain: share of brain, (X, Y, Z)."""

    def __init__(self, patient: Deformation, pushes: list[Push], grid: Grid) -> None:
        self.shares = self._shares(patient.with_pushes(pushes), grid)
        total = self.shares.sum(0)
        self.brain = np.clip(total, 0, 1)
        if pushes:  # the skull does not give way: tissue moves inside the brain's old outline
            self.brain = np.clip(self._shares(patient, grid).sum(0), 0, 1)
            self.shares[2] += np.clip(self.brain - total, 0, None)
            total = self.shares.sum(0)
        self.shares /= np.maximum(total, 1e-3)

    @staticmethod
    def _shares(patient: Deformation, grid: Grid) -> Array:
        base = template()
        index = patient.template_mm(grid.axes)
        index /= np.float32(SPACING_MM)
        index += np.float32(47.5)
        return lookup(base.table, base.shape, index)

    @property
    def inside(self) -> NDArray[np.bool_]:
        """What skull-stripping keeps."""
        return self.brain > 0.5

    @property
    def healthy(self) -> NDArray[np.bool_]:
        """Parenchyma that a lesion can be compared with."""
        return self.inside & (self.shares[2] < 0.5)

    def room(self, compartment: str) -> Array:
        """How much of a voxel a compartment may take."""
        if compartment == "brain_oedema":  # follows the white matter
            return (self.shares[1] + np.float32(0.35) * self.shares[0]) * self.brain
        if compartment == "spot":
            return self.shares[1] * self.brain
        if compartment == "glioma":
            return (self.shares[0] + self.shares[1]) * self.brain
        return self.brain

    def signals(self, values: Array) -> Array:
        """Healthy signal: values (M, 3) of gm, wm, csf -> (M, X, Y, Z)."""
        out = np.empty((len(values), *self.brain.shape), np.float32)
        for row, (gm, wm, csf) in zip(out, values, strict=True):
            np.multiply(self.shares[0], gm, out=row)
            row += wm * self.shares[1]
            row += csf * self.shares[2]
            row *= self.brain
        return out


def place_name(template_mm: NDArray[np.float64]) -> tuple[str, str]:
    """Side ("left", "right", "midline") and region of a point, by rules in MNI mm: approximate near borders."""
    x, y, z = template_mm + np.array(TO_MNI_MM)
    side = "midline" if abs(x) < 6 else "right" if x > 0 else "left"
    if y < -35 and z < -18:
        return side, "cerebellum"
    if abs(x) < 14 and -40 < y < -8 and z < -8:
        return side, "brainstem"
    if abs(x) < 32 and -35 < y < 22 and -8 < z < 22:
        return side, "deep"
    if y < -57 - 0.5 * z and z < 45:
        return side, "occipital"
    if abs(x) > 22 and y < 22 and z < min(18.0, -5 - 0.55 * y):
        return side, "temporal"
    return side, "frontal" if y > -5 - 0.35 * z else "parietal"
