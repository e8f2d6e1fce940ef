"""NIfTI headers in, grids out: shape (X, Y, Z), affine (4, 4) in mm; and which grids of a study fit together."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from client.manifest import Spacing, Study
from client.nifti import HEAD_BYTES, Coding, Header, read_header
from client.problems import Problem

HEADER_BYTES = 4096  # the start of a file, packed or not, that holds its header
_OVERLAP = 0.5  # share of the smaller field of view that must lie in the study's
_SIZES = 8.0  # largest factor between two fields of view of a study, by volume
_SHEAR = 0.05  # cosine of two index axes from which their angle matters: 3 degrees
_FAR_MM = 1e6  # from the scanner's middle: what is further is no place, and too far to tell two corners apart
_UNITS = {1: "metres", 3: "microns"}  # NIfTI's codes of lengths that are not millimetres

Points = NDArray[np.float64]


class VolumeError(ValueError):
    """A file that cannot be used as a volume: what is wrong, and what to do."""

    def __init__(self, problem: str, remedy: str) -> None:
        self.problem, self.remedy = problem, remedy
        super().__init__(f"{problem}. {remedy}.")


@dataclass(frozen=True)
class Finding:
    """A bad volume of a study, without names or rows: `slot` is its modality, or `mask`."""

    slot: str
    problem: str
    remedy: str

    def at(self, study: Study) -> Problem:
        """The same, with the place in the manifest and the file's name."""
        if self.slot == "mask":
            row = min(study.rows.values(), default=None)
            return Problem(row, "mask", f"{study.mask}: {self.problem}", self.remedy)
        row = study.rows.get(self.slot)
        return Problem(row, "image", f"{study.images[self.slot]}: {self.problem}", self.remedy)


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a volume lie: `affine` maps indices to scanner millimetres (RAS+).

    `coding`: how the file stores its voxels, of a volume as it is on disk.
    """

    shape: tuple[int, ...]
    affine: Points
    coding: Coding | None = None

    @cached_property
    def spacing_mm(self) -> Points:
        """Voxel size along each index axis, (3,)."""
        return spacings_mm([self])[0]

    @cached_property
    def box_mm(self) -> Points:
        """Lower and upper corner of the field of view, edges of the outermost voxels, (2, 3)."""
        return boxes_mm([self])[0]

    def to_mm(self, index: Points) -> Points:
        """Millimetres of a voxel index, (3,)."""
        return self.affine[:3, :3] @ index + self.affine[:3, 3]

    def __str__(self) -> str:
        return " x ".join(f"{s:.0f}" for s in self.box_mm[1] - self.box_mm[0]) + " mm"


def spacings_mm(grids: Collection[Grid]) -> Points:
    """Voxel sizes of many grids along their index axes, (N, 3)."""
    return np.hypot.reduce(_affines(grids)[:, :3, :3], axis=1)


def boxes_mm(grids: Collection[Grid]) -> Points:
    """Fields of view of many grids, as `Grid.box_mm`, (N, 2, 3)."""
    affines, shapes = _affines(grids), np.array([grid.shape for grid in grids], float).reshape(-1, 3, 1)
    middle = (affines[:, :3, :3] @ ((shapes - 1) / 2))[..., 0] + affines[:, :3, 3]
    reach = (np.abs(affines[:, :3, :3]) @ (shapes / 2))[..., 0]
    return np.stack([middle - reach, middle + reach], axis=1)


def _affines(grids: Collection[Grid]) -> Points:
    return np.array([grid.affine for grid in grids]).reshape(-1, 4, 4)


def inflate(raw: bytes) -> bytes:
    """The file's content unpacked. Raises VolumeError for a truncated or damaged gzip file."""
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        return gzip.decompress(raw)
    except EOFError:
        raise VolumeError("The gzip file is truncated", "Copy or export it again") from None
    except (OSError, zlib.error):
        raise VolumeError("The gzip file is damaged", "Copy or export it again") from None


def read_grid(raw: bytes, spacing_mm: Spacing | None = None) -> Grid:
    """The grid of a file's content, or of its first HEADER_BYTES, packed or not. Raises VolumeError.

    spacing_mm: the true voxel edges along the file's axes, where its header's are wrong. Its directions and its origin
    hold nevertheless; a header without an origin (0, 0, 0) then has the middle of the volume there, since volumes of
    different sizes share their middle rather than a corner.
    """
    if not raw:
        raise VolumeError("The file is empty", "Copy or export it again")
    head = raw[:HEADER_BYTES]
    if raw[:2] == b"\x1f\x8b":
        try:
            head = zlib.decompressobj(31).decompress(head, HEAD_BYTES)
        except zlib.error:
            raise VolumeError("The gzip file is damaged", "Copy or export it again") from None
    try:
        header = read_header(head)
        if header is not None:
            return _respaced(_checked(header), spacing_mm)
    except VolumeError:
        raise
    except (HeaderDataError, ValueError, KeyError, OverflowError):  # what nibabel raises for impossible values
        raise VolumeError("Its header makes no sense", "Export it again") from None
    if head[128:132] == b"DICM":
        raise VolumeError("It is a DICOM file", "Convert the series: dcm2niix -z y -o OUT FOLDER")
    raise VolumeError("It is not a NIfTI image", "Export it as .nii.gz, or correct the path")


def read_voxels(raw: bytes, grid: Grid) -> NDArray[np.float32]:
    """The scaled voxels of a file's content, (X, Y, Z) in the file's order. Raises VolumeError."""
    content, count = inflate(raw), math.prod(grid.shape)
    assert grid.coding is not None  # the grid is read from this file
    dtype, start, slope, intercept = grid.coding
    if len(content) < start + count * dtype.itemsize:
        problem = "It holds fewer voxels than its header says (truncated)"
        raise VolumeError(problem, "Copy or export it again")
    data = np.frombuffer(content, dtype, count, start).astype(np.float32).reshape(grid.shape, order="F")
    if slope not in (None, 1) or intercept not in (None, 0):
        with np.errstate(over="ignore"):  # infinite values are found below
            data = data * np.float32(slope or 1) + np.float32(intercept or 0)
    bad = count - int(np.isfinite(data).sum())
    if bad:
        remedy = "Replace them, e.g. by 0 (numpy.nan_to_num), or export it again"
        raise VolumeError(f"{bad} of its {count} voxels are NaN or infinite", remedy)
    return data


def _checked(header: Header) -> Grid:
    shape, dtype = header.shape, header.coding.dtype
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if dtype.kind not in "iuf":
        raise VolumeError(f"Its voxels are no numbers ({dtype})", "Export magnitude images")
    voxels = " x ".join(map(str, shape)) or "no"
    if len(shape) > 3:
        remedy = "Split it into 3-D files, one row each"
        raise VolumeError(f"It has {len(shape)} dimensions ({voxels})", remedy)
    if len(shape) < 3 or min(shape) < 2:
        raise VolumeError(f"It is not a volume ({voxels} voxels)", "Give the whole 3-D series")
    _check_geometry(header.affine, header.unit)
    return Grid(shape, header.affine, header.coding)


def _check_geometry(affine: Points, unit: int) -> None:
    """Raise VolumeError for lengths that are no millimetres, a place out of reach, and axes that meet at no right angle."""
    *axes, place = zip(*affine[:3].tolist(), strict=True)  # plain numbers: numpy is slow with nine
    sizes = [math.hypot(*axis) for axis in axes]
    if unit in _UNITS or not all(0.01 <= size <= 100 for size in sizes):
        voxels = " x ".join(f"{size:.3g}" for size in sizes)
        if unit in _UNITS:
            remedy = "Write it in millimetres: the affine and xyzt_units"
            raise VolumeError(f"Its header gives lengths in {_UNITS[unit]}, voxels of {voxels}", remedy)
        raise VolumeError(f"Its affine gives voxels of {voxels} mm", "Export it again with its geometry")
    if not all(abs(x) < _FAR_MM for x in place):
        where = ", ".join(f"{x:.3g}" for x in place)
        raise VolumeError(f"Its affine places it at {where} mm", "Export it again with its geometry")
    x, y, z = ([c / size for c in axis] for axis, size in zip(axes, sizes, strict=True))
    tilt = max(abs(a[0] * b[0] + a[1] * b[1] + a[2] * b[2]) for a, b in ((x, y), (x, z), (y, z)))
    if tilt <= _SHEAR:
        return
    if abs(np.linalg.det([x, y, z])) < 0.1:
        raise VolumeError("Its affine maps two axes onto one", "Export it again with its geometry")
    problem = f"Its affine is sheared: two axes meet at {math.degrees(math.acos(tilt)):.0f} degrees"
    raise VolumeError(problem, "Resample it to a grid of right angles (a tilted gantry: dcm2niix does)")


def _respaced(grid: Grid, spacing_mm: Spacing | None) -> Grid:
    if spacing_mm is None:
        return grid
    affine = grid.affine.copy()
    affine[:3, :3] *= np.array(spacing_mm) / grid.spacing_mm
    if not affine[:3, 3].any():
        affine[:3, 3] = -affine[:3, :3] @ ((np.array(grid.shape) - 1) / 2)
    return Grid(grid.shape, affine, grid.coding)


def study_grids(
    images: Mapping[str, bytes],
    mask: bytes | None,
    findings: list[Finding],
    spacings: Mapping[str, Spacing] = MappingProxyType({}),
) -> tuple[dict[str, Grid], Grid | None]:
    """What belongs together: modality -> grid, the study's reference first, and the mask's grid.

    What is bad is left out and appended to `findings`. spacings: modality -> true voxel edges, as in the manifest.
    """
    grids: dict[str, Grid] = {}
    for slot, raw in (images if mask is None else {**images, "mask": mask}).items():
        try:
            grids[slot] = read_grid(raw, spacings.get(slot))
        except VolumeError as error:
            findings.append(Finding(slot, error.problem, error.remedy))
    mask_grid = grids.pop("mask", None)
    grids = _agreeing(grids, findings)
    if mask_grid and grids and not any(_same_view(mask_grid, grid) for grid in grids.values()):
        slot, grid = next(iter(grids.items()))
        problem = f"Its field of view ({mask_grid}) is not that of {slot} ({grid}) or of another volume"
        remedy = "Resample it to a volume of its study, or give it that volume's affine"
        findings.append(Finding("mask", problem, remedy))
        mask_grid = None
    return grids, mask_grid


def _agreeing(grids: dict[str, Grid], findings: list[Finding]) -> dict[str, Grid]:
    """The volumes that see what the one sees that has most in common with all others; that one first."""
    if len(grids) < 2:
        return grids
    slots, boxes = list(grids), boxes_mm(grids.values())
    low, high = boxes[:, 0], boxes[:, 1]
    edges = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    shared = np.multiply.reduce(np.maximum(edges, 0), axis=2)  # of each pair, mm3
    sizes = shared.diagonal()
    common = (shared / (sizes[:, None] + sizes - shared)).sum(1)
    first = int(common.round(6).argmax())  # of equals, the first
    inside, factor = shared[first] / np.minimum(sizes, sizes[first]), sizes / sizes[first]
    good = (inside >= _OVERLAP) & (factor >= 1 / _SIZES) & (factor <= _SIZES)
    reference = slots[first]
    for i in np.flatnonzero(~good):
        problem = f"Its field of view ({grids[slots[i]]}) shares {inside[i]:.0%} with {reference} ({grids[reference]})"
        remedy = "Register it to the study's other volumes, or correct its affine"
        findings.append(Finding(slots[i], problem, remedy))
    return {slots[i]: grids[slots[i]] for i in (first, *np.flatnonzero(good))}


def _same_view(a: Grid, b: Grid) -> bool:
    """Whether two boxes agree to half a voxel of the coarser grid."""
    tolerance = 0.5 * max(a.spacing_mm.max(), b.spacing_mm.max()) + 1e-3
    return bool(np.abs(a.box_mm - b.box_mm).max() <= tolerance)
