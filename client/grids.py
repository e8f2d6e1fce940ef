"""NIfTI headers in, grids out: shape (X, Y, Z), affine (4, 4) in mm; and which grids of a study fit together."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from client.manifest import Spacing, Study
from client.problems import Problem

HEADER_BYTES = 4096  # the start of a file, packed or not, that holds its header
_OVERLAP = 0.5  # share of the smaller field of view that must lie in the study's
_SIZES = 8.0  # largest factor between two fields of view of a study, by volume
_SHEAR = 0.05  # cosine of two index axes from which their angle matters: 3 degrees
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

    `header` is nibabel's, of a volume as it is on disk: where its voxels start, and how they are coded.
    """

    shape: tuple[int, ...]
    affine: Points
    header: nib.Nifti1Header | None = None

    @cached_property
    def spacing_mm(self) -> Points:
        """Voxel size along each index axis, (3,)."""
        return np.hypot.reduce(self.affine[:3, :3])

    @cached_property
    def box_mm(self) -> Points:
        """Lower and upper corner of the field of view, edges of the outermost voxels, (2, 3)."""
        ends = self.affine[:3, :3] * (np.array(self.shape) / 2)
        middle = self.to_mm((np.array(self.shape) - 1) / 2)
        reach = np.abs(ends).sum(1)
        return np.array([middle - reach, middle + reach])

    def to_mm(self, index: Points) -> Points:
        """Millimetres of a voxel index, (3,)."""
        return self.affine[:3, :3] @ index + self.affine[:3, 3]

    def __str__(self) -> str:
        return " x ".join(f"{s:.0f}" for s in self.box_mm[1] - self.box_mm[0]) + " mm"


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
            head = zlib.decompressobj(31).decompress(head, HEADER_BYTES)
        except zlib.error:
            raise VolumeError("The gzip file is damaged", "Copy or export it again") from None
    try:
        header = _header(head)
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
    content, header = inflate(raw), grid.header
    assert header is not None  # the grid is read from this file
    dtype, count = header.get_data_dtype(), math.prod(grid.shape)
    (slope, intercept), start = header.get_slope_inter(), int(header.get_data_offset())
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


def _header(head: bytes) -> nib.Nifti1Header | None:
    """nibabel's header of unpacked content with header and voxels in one file; None where it is not NIfTI."""
    for kind, magic in ((nib.Nifti1Header, head[344:347]), (nib.Nifti2Header, head[4:7])):
        size = kind.sizeof_hdr
        either = (size.to_bytes(4, "little"), size.to_bytes(4, "big"))
        if len(head) >= size and magic in (b"n+1", b"n+2") and head[:4] in either:
            return kind(head[:size], check=False)
    return None


def _checked(header: nib.Nifti1Header) -> Grid:
    shape, dtype = tuple(int(n) for n in header.get_data_shape()), header.get_data_dtype()
    affine = np.asarray(header.get_best_affine(), np.float64)
    header.get_slope_inter()  # raises for an impossible scaling
    if header.get_data_offset() < header.sizeof_hdr:
        raise HeaderDataError("voxels inside the header")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    voxels = " x ".join(map(str, shape)) or "no"
    if dtype.kind not in "iuf":
        raise VolumeError(f"Its voxels are no numbers ({dtype})", "Export magnitude images")
    if len(shape) > 3:
        remedy = "Split it into 3-D files, one row each"
        raise VolumeError(f"It has {len(shape)} dimensions ({voxels})", remedy)
    if len(shape) < 3 or min(shape) < 2:
        raise VolumeError(f"It is not a volume ({voxels} voxels)", "Give the whole 3-D series")
    grid = Grid(shape, affine, header)
    _check_geometry(grid, int(header["xyzt_units"]) & 7)
    return grid


def _check_geometry(grid: Grid, unit: int) -> None:
    """Raise VolumeError for lengths that are no millimetres, and for axes that meet at no right angle."""
    axes, sizes = grid.affine[:3, :3].T.tolist(), grid.spacing_mm.tolist()  # plain numbers: numpy is slow with nine
    if unit in _UNITS or not (all(0.01 <= s <= 100 for s in sizes) and all(map(math.isfinite, grid.affine[:3, 3]))):
        size = " x ".join(f"{s:.3g}" for s in sizes)
        if unit in _UNITS:
            remedy = "Write it in millimetres: the affine and xyzt_units"
            raise VolumeError(f"Its header gives lengths in {_UNITS[unit]}, voxels of {size}", remedy)
        raise VolumeError(f"Its affine gives voxels of {size} mm", "Export it again with its geometry")
    pairs = ((0, 1), (0, 2), (1, 2))
    cosines = (sum(a * b for a, b in zip(axes[i], axes[j], strict=True)) / sizes[i] / sizes[j] for i, j in pairs)
    tilt = max(map(abs, cosines))
    if tilt <= _SHEAR:
        return
    if abs(np.linalg.det(grid.affine[:3, :3] / grid.spacing_mm)) < 0.1:
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
    return Grid(grid.shape, affine, grid.header)


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
    boxes = {slot: grid.box_mm for slot, grid in grids.items()}
    reference = next(iter(grids), "")
    if len(boxes) < 2 or all(np.array_equal(box, boxes[reference]) for box in boxes.values()):
        return grids
    common = {a: sum(_overlap(boxes[a], box)[1] for box in boxes.values()) for a in grids}
    reference = max(grids, key=lambda slot: round(common[slot], 6))  # of equals, the first
    kept = {reference: grids[reference]}
    for slot, grid in grids.items():
        inside, _ = _overlap(boxes[slot], boxes[reference])
        factor = _volume(boxes[slot]) / _volume(boxes[reference])
        if inside >= _OVERLAP and 1 / _SIZES <= factor <= _SIZES:
            kept[slot] = grid
            continue
        problem = f"Its field of view ({grid}) shares {inside:.0%} with {reference} ({grids[reference]})"
        remedy = "Register it to the study's other volumes, or correct its affine"
        findings.append(Finding(slot, problem, remedy))
    return kept


def _volume(box: Points) -> float:
    return float(np.prod(box[1] - box[0]))


def _overlap(a: Points, b: Points) -> tuple[float, float]:
    """Shared volume of two boxes over the smaller one's, and over their union's."""
    shared = float(np.prod((np.minimum(a[1], b[1]) - np.maximum(a[0], b[0])).clip(0)))
    return shared / min(_volume(a), _volume(b)), shared / (_volume(a) + _volume(b) - shared)


def _same_view(a: Grid, b: Grid) -> bool:
    """Whether two boxes agree to half a voxel of the coarser grid."""
    tolerance = 0.5 * max(a.spacing_mm.max(), b.spacing_mm.max()) + 1e-3
    return bool(np.abs(a.box_mm - b.box_mm).max() <= tolerance)
