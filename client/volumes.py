"""From a study's NIfTI bytes to cubes: any grid (X, Y, Z) in; (size, size, size) float16 per modality out, in RAS.

All cubes of a study share one centre in scanner millimetres, so modalities on different grids stay aligned.
`prepare` depends on nothing but bytes, spacings and settings: its result can be kept under their hash (cache.py). nibabel
parses; one separable linear map crops, resamples (anti-aliased) and pads at once, and plain slicing serves where
voxels are already as asked. An oblique grid keeps its own axes, which are less than 45 degrees off RAS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray

from client.grids import Finding, Grid, Points, VolumeError, read_voxels, study_grids
from client.manifest import Spacing
from client.preprocess.hook import ToolFailed
from client.preprocess.steps import Steps
from configs.schema import VolumesConfig
from medmap_model.landmarks import landmarks_of

VERSION = 2  # raise it when `prepare` changes what it returns: cached cubes are then made anew
CLIP_Z = (-4.0, 6.0)  # of the normalised intensities; float16 keeps them to 0.002
_FOREGROUND = 0.12  # of the 98th percentile: above air and its noise, below tissue
_SAMPLE = 1 << 20  # voxels that intensity statistics look at; more would not change them

Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


@dataclass
class Prepared:
    """One study: modality -> (size, size, size) float16, and what is wrong with the others.

    landmarks: of `standardise=nyul` alone: modality -> those of the whole volume, in the cubes' unit.
    lasting: False where a tool failed that may succeed next time.
    """

    cubes: dict[str, NDArray[np.float16]] = field(default_factory=dict)
    landmarks: dict[str, tuple[float, ...]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    lasting: bool = True


@dataclass(frozen=True)
class Intensity:
    """What normalises a volume: its clipping range, and threshold, mean and deviation of its foreground."""

    low: float
    high: float
    foreground: float
    mean: float
    std: float

    @classmethod
    def of(cls, data: Array, clip_percentiles: tuple[float, float]) -> Intensity:
        """Robust statistics. Raises VolumeError for a volume without contrast."""
        flat = data.ravel(order="K")
        flat = np.sort(flat[:: max(1, flat.size // _SAMPLE)])
        low, high, bright = (float(flat[round(p / 100 * (flat.size - 1))]) for p in (*clip_percentiles, 98))
        if not high > low:
            share = "Its voxels all" if flat[0] == flat[-1] else "Nearly all its voxels"
            remedy = "Export it again, or remove the row; a mask belongs in the column mask"
            raise VolumeError(f"{share} have one value ({low:g})", remedy)
        base = min(low, 0.0)  # air is 0 in a magnitude image; a volume with negative values starts lower
        foreground = base + _FOREGROUND * (bright - base)
        tissue = flat[np.searchsorted(flat, foreground, side="right") :].clip(low, high)
        std = max(float(tissue.std(dtype=np.float64)), 1e-3 * (high - low))
        return cls(low, high, foreground, float(tissue.mean(dtype=np.float64)), std)

    def tissue(self, data: Array) -> Array:
        """Normalised values of the foreground, (N,)."""
        flat = data.ravel(order="K")
        flat = flat[:: max(1, flat.size // _SAMPLE)]
        return self.normalise(flat[flat > self.foreground])

    def normalise(self, data: Array) -> Array:
        """Clipped foreground z-scores."""
        return ((data.clip(self.low, self.high) - self.mean) / self.std).clip(*CLIP_Z)


def prepare(
    images: Mapping[str, bytes],
    mask: bytes | None,
    config: VolumesConfig,
    spacings: Mapping[str, Spacing] = MappingProxyType({}),
    *,
    organ: str | None = None,
) -> Prepared:
    """All cubes of one study, from modality -> file content, and the mask's file content.

    spacings: modality -> true voxel edges in mm along the file's axes, where its header is wrong. organ: skulls are stripped
    of brains alone. Raises DataError for a tool that the settings need and this machine has not got.

    `crop=lesion` centres on the mask's largest connected part, `organ` on the middle of the whole mask; where there
    is no mask, or an empty one, both fall back to the foreground. Beware: if only some classes have masks, the way
    of cropping tells the class. Then choose `foreground` or `centre`, or give every study a mask.
    """
    done = Prepared()
    clip = (config.clip_percentiles[0], config.clip_percentiles[1])
    needed = mask if config.crop in ("lesion", "organ") else None
    grids, mask_grid = study_grids(images, needed, done.findings, spacings)
    centre, steps = None, Steps(config, organ)
    if needed is not None and mask_grid:
        try:
            centre = _mask_centre(needed, mask_grid, largest=config.crop == "lesion")
        except VolumeError as error:
            done.findings.append(Finding("mask", error.problem, error.remedy))
    cubes = {}
    for (
        slot,
        stored,
    ) in grids.items():  # the reference first: without a mask its middle or its foreground is the study's
        try:
            grid, data = steps(*load(images[slot], stored))
            intensity = Intensity.of(data, clip)
        except VolumeError as error:
            done.findings.append(Finding(slot, error.problem, error.remedy))
            done.lasting &= not isinstance(error, ToolFailed)
            continue
        if centre is None:
            middle = (np.array(grid.shape) - 1) / 2
            centre = grid.to_mm(middle if config.crop == "centre" else _centroid(data > intensity.foreground))
        values = cube(grid, data, intensity, centre, spacing_mm=config.spacing_mm, size=config.size)
        cubes[slot] = values.astype(np.float16)
        if config.standardise == "nyul":
            done.landmarks[slot] = landmarks_of(intensity.tissue(data))
    done.cubes = {slot: cubes[slot] for slot in images if slot in cubes}
    return done


def cube(grid: Grid, data: Array, intensity: Intensity, centre_mm: Points, *, spacing_mm: float, size: int) -> Array:
    """Normalised (size, size, size) around a point of the scanner's space; background outside the field of view.

    Voxels of the asked size are taken as they are, the cube's centre rounded to them. Others are interpolated
    linearly, with a kernel as wide as the coarser of both grids, so that thinning out does not alias.
    """
    position = np.linalg.solve(grid.affine, np.append(centre_mm, 1.0))[:3]
    if np.abs(grid.spacing_mm - spacing_mm).max() < 1e-3 * spacing_mm:
        return intensity.normalise(_cut_out(data, position, size, fill=intensity.low))
    taps = [_linear(position[axis], grid.shape[axis], spacing_mm / grid.spacing_mm[axis], size) for axis in range(3)]
    # only what the cube needs; relative to the background, so that positions outside (no weight) become background
    values = data[tuple(slice(index.min(), index.max() + 1) for index, _ in taps)]
    values = values.clip(intensity.low, intensity.high) - np.float32(intensity.low)
    for axis, (index, weights) in enumerate(taps):
        values = _along(values, axis, index - index.min(), weights)
    return intensity.normalise(values + np.float32(intensity.low))


def _cut_out(data: Array, position: Points, size: int, *, fill: float) -> Array:
    """(size, size, size) voxels around an index, padded."""
    # just below .5, so that rounding errors cannot shift one modality against another
    start = np.floor(position - (size - 1) / 2 + 0.499).astype(int)
    span = [(max(s, 0), max(min(s + size, n), 0)) for s, n in zip(start, data.shape, strict=True)]
    part = data[tuple(slice(*ends) for ends in span)]
    place = [slice(ends[0] - s, ends[0] - s + n) for ends, s, n in zip(span, start, part.shape, strict=True)]
    values = np.full((size,) * 3, fill, np.float32)
    values[tuple(place)] = part
    return values


def _linear(middle: float, n: int, ratio: float, size: int) -> tuple[NDArray[np.intp], Array]:
    """For `size` positions, `ratio` source voxels apart around `middle`: indices and weights of sources, (size, taps).

    Weights add up to 1, or to 0 for a position outside the n source voxels.
    """
    width = max(ratio, 1.0)
    at = middle + (np.arange(size) - (size - 1) / 2) * ratio
    index = np.floor(at - width).astype(np.intp)[:, None] + np.arange(int(2 * width) + 2)
    weights = np.maximum(0, 1 - np.abs(at[:, None] - index) / width) * ((index >= 0) & (index < n))
    inside = (at > -0.5 - 1e-6) & (at < n - 0.5 + 1e-6)
    weights *= inside[:, None] / np.maximum(weights.sum(1, keepdims=True), 1e-12)
    return index.clip(0, n - 1), weights.astype(np.float32)


def _along(values: Array, axis: int, index: NDArray[np.intp], weights: Array) -> Array:
    """Weighted sums along one axis, tap by tap: BLAS threads would fight other processes for cores."""
    shape = [1, 1, 1]
    shape[axis] = -1
    return sum(values.take(i, axis) * w.reshape(shape) for i, w in zip(index.T, weights.T, strict=True))


def load(raw: bytes, grid: Grid) -> tuple[Grid, Array]:
    """The voxels, and their grid, in RAS order. Raises VolumeError."""
    data = read_voxels(raw, grid)
    rotation = grid.affine[:3, :3]
    if (np.abs(rotation).argmax(0) == (0, 1, 2)).all() and (rotation.diagonal() > 0).all():
        return grid, data
    orientation = io_orientation(grid.affine)
    turned = apply_orientation(data, orientation)
    return Grid(turned.shape, grid.affine @ inv_ornt_aff(orientation, grid.shape)), turned


def _mask_centre(raw: bytes, stored: Grid, *, largest: bool) -> Points | None:
    """Millimetres of the middle of a mask (any value above 0), or of its largest part; None when it is empty."""
    grid, data = load(raw, stored)
    where = np.argwhere(data > 0)
    if not len(where):
        return None
    low, high = where.min(0), where.max(0) + 1
    if not largest:
        return grid.to_mm((low + high - 1) / 2)
    from scipy import ndimage  # only lesion masks need it

    box = data[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] > 0
    parts, count = ndimage.label(box, structure=np.ones((3, 3, 3)))
    if count > 1:
        box = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    return grid.to_mm(low + _centroid(box))


def _centroid(inside: NDArray[np.bool_]) -> Points:
    """Mean index of the True voxels, (3,), from the three marginal counts."""
    counts = [inside.sum(axis=tuple(b for b in range(3) if b != a)) for a in range(3)]
    return np.array([(np.arange(len(c)) * c).sum() / c.sum() for c in counts])
