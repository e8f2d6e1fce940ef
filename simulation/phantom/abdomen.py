"""The abdomen: a real CT's label map, warped to a patient and sampled on a grid; places in the liver and their names.

The map ends in the liver's dome; the missing top (dome and lung bases) is added here, so that the whole liver is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_closing, binary_fill_holes, distance_transform_edt, label, uniform_filter

from simulation.phantom.anatomy import Deformation, Push
from simulation.phantom.grid import Array, Grid, Rng, lookup
from simulation.phantom.tissues import LIVER_BASE

SPACING_MM = 3.0  # of the template
FULL_SPACING_MM = 3.0
_ID = {name: i for i, name in enumerate(LIVER_BASE)}
_ADDED = 24  # slices above the map
# Voxel of the template that is the origin: the middle of a 288 mm field of view that ends above the dome.
_ORIGIN = np.array([47.5, 47.5, 71.5])
# Landmarks of the map, in voxels: the inferior vena cava's axis, the portal bifurcation's height; and the directions
# (degrees, seen from the vena cava; 0: to the patient's right, 90: forwards) of the planes between the liver's sectors.
_CAVA, _BIFURCATION = (52.0, 52.0), 86.0
_POSTERIOR_DEG, _CANTLIE_DEG, _FALCIFORM_DEG = 5.0, 48.0, 100.0


@dataclass(frozen=True)
class Template:
    """labels: (96, 96, 120) uint8. liver: share of liver and its veins. inner_mm: places deep in it, (n, 3)."""

    labels: NDArray[np.uint8]
    liver: Array
    inner_mm: NDArray[np.float64]


@cache
def template() -> Template:
    """The map, read and completed once per process."""
    with as_file(files("simulation.phantom") / "assets" / "abdomen_labels_3mm.npz") as path:
        labels = np.load(path)["labels"]
    labels = np.concatenate([labels, _lungs_and_dome(labels[:, :, -1])], axis=2)
    liver = np.isin(labels, [_ID["liver"], _ID["vein"], _ID["portal_vein"]])
    parts, _ = label(liver)
    seed = parts[labels == _ID["liver"]]
    liver = parts == np.bincount(seed).argmax()
    liver[:, :, : np.argwhere(labels == _ID["liver"])[:, 2].min()] = False  # veins below the liver
    deep = uniform_filter((labels == _ID["liver"]).astype(np.float32), 7) > 0.93
    return Template(labels, liver.astype(np.float32), (np.argwhere(deep) - _ORIGIN) * SPACING_MM)


def _lungs_and_dome(top: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Slices above the map: the chest wall goes on, liver and spleen round off under lung."""
    outside, _ = label(top == _ID["air"])
    border = np.unique(np.concatenate([outside[0], outside[-1], outside[:, 0], outside[:, -1]]))
    lung = (top == _ID["air"]) & ~np.isin(outside, border)
    chest = lung | np.isin(top, [_ID[k] for k in ("liver", "spleen", "bowel")])
    chest = binary_fill_holes(binary_closing(chest, iterations=3)) & (top != _ID["bone"])
    slices = []
    for height in range(1, _ADDED + 1):
        slab = top.copy()
        slab[chest] = _ID["air"]
        for organ, dome in (("liver", 13.0), ("spleen", 6.0)):
            if height >= dome:
                continue
            depth = distance_transform_edt(binary_fill_holes(top == _ID[organ]))
            slab[depth > depth.max() * (1 - np.sqrt(1 - (height / dome) ** 2))] = _ID[organ]
        slices.append(slab)
    return np.stack(slices, -1)


def draw_patient(rng: Rng) -> Deformation:
    """One patient's trunk: pose, build, and organs of their own shape."""
    return Deformation.draw(
        rng,
        rotation_deg=(3, 3, 4),
        scale_sd=0.06,
        field_sd_mm=5.0,
        field_spacing_mm=44,
        half_mm=170,
    )


def draw_place(kind: str, radius_mm: float, patient: Deformation, rng: Rng) -> NDArray[np.float64]:
    """Patient mm of a lesion's centre: anywhere deep in the liver, for every kind."""
    spots = template().inner_mm
    return patient.patient_point(spots[rng.integers(len(spots))] + rng.uniform(-1.5, 1.5, 3))


class Sampled:
    """One patient on one grid. Labels become signal first and are interpolated then: exact partial volume."""

    inside: NDArray[np.bool_] | None = None

    def __init__(self, patient: Deformation, pushes: list[Push], grid: Grid) -> None:
        index = patient.with_pushes(pushes).template_mm(grid.axes)
        index /= np.float32(SPACING_MM)
        index += _ORIGIN.astype(np.float32)[:, None, None, None]
        base = template()
        low, high = index.reshape(3, -1).min(1), index.reshape(3, -1).max(1)
        first = [int(np.clip(np.floor(v), 0, n - 2)) for v, n in zip(low, base.labels.shape, strict=True)]
        last = [int(np.clip(np.ceil(v) + 1, f + 2, n)) for v, f, n in zip(high, first, base.labels.shape, strict=True)]
        block = tuple(slice(f, e) for f, e in zip(first, last, strict=True))
        self._labels = base.labels[block]
        self._shape = (last[0] - first[0], last[1] - first[1], last[2] - first[2])
        index -= np.array(first, np.float32)[:, None, None, None]
        self._index = index
        self.liver = lookup(base.liver[block].reshape(-1, 1), self._shape, index)[0]

    @property
    def healthy(self) -> NDArray[np.bool_]:
        """Liver that a lesion can be compared with."""
        return self.liver > 0.6

    def room(self, compartment: str) -> Array:
        """How much of a voxel a compartment may take: lesions stay in the liver."""
        return self.liver

    def signals(self, values: Array) -> Array:
        """Healthy signal: values (M, 15) of the labels -> (M, X, Y, Z)."""
        table = np.ascontiguousarray(values.T)[self._labels.reshape(-1)]
        return lookup(table, self._shape, self._index)


def place_name(template_mm: NDArray[np.float64]) -> tuple[str, str]:
    """Lobe ("left", "right") and Couinaud segment of a point, by the planes above: approximate at their borders."""
    x, y, z = template_mm / SPACING_MM + _ORIGIN
    angle = float(np.rad2deg(np.arctan2(y - _CAVA[1], x - _CAVA[0])))
    angle = angle + 360 if angle < -120 else angle
    upper = z > _BIFURCATION
    if angle < _POSTERIOR_DEG:
        return "right", "VII" if upper else "VI"
    if angle < _CANTLIE_DEG:
        return "right", "VIII" if upper else "V"
    if angle < _FALCIFORM_DEG:
        return "left", "IVa" if upper else "IVb"
    return "left", "II" if upper else "III"
