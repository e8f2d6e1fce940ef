"""NIfTI headers in, voxel grids out: shape (X, Y, Z), affine (4, 4) in mm, and whether a study's grids belong together."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from client.manifest import Study
from client.problems import Problem

HEADER_BYTES = 4096  # the start of a file, packed or not, that holds its header
_OVERLAP = 0.5  # share of the smaller field of view that must lie in the study's
_SIZES = 8.0  # factor between the smallest and the largest field of view of a study


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
        mask = self.slot == "mask"
        path = study.mask if mask else study.images[self.slot]
        row = min(study.rows.values(), default=None) if mask else study.rows.get(self.slot)
        return Problem(row, "mask" if mask else "image", f"{path}: {self.problem}", self.remedy)


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a volume lie: `affine` maps indices to scanner millimetres (RAS+)."""

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    @cached_property
    def spacing_mm(self) -> NDArray[np.float64]:
        """Voxel size along each index axis, (3,)."""
        return np.sqrt((self.affine[:3, :3] ** 2).sum(0))

    @cached_property
    def box_mm(self) -> NDArray[np.float64]:
        """Lower and upper corner of the field of view, edges of the outermost voxels, (2, 3)."""
        far = np.array(self.shape) - 0.5
        corners = np.array(np.meshgrid(*((-0.5, f) for f in far), indexing="ij")).reshape(3, 8)
        points = self.affine[:3, :3] @ corners + self.affine[:3, 3:]
        return np.stack([points.min(1), points.max(1)])

    def to_mm(self, index: NDArray[np.float64]) -> NDArray[np.float64]:
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


def read_grid(raw: bytes) -> Grid:
    """The grid of a file's content, or of its first HEADER_BYTES, packed or not. Raises VolumeError."""
    if not raw:
        raise VolumeError("The file is empty", "Copy or export it again")
    head = raw
    if raw[:2] == b"\x1f\x8b":
        try:
            head = zlib.decompressobj(31).decompress(raw, HEADER_BYTES)
        except zlib.error:
            raise VolumeError("The gzip file is damaged", "Copy or export it again") from None
    kind = next((k for k in (nib.Nifti1Header, nib.Nifti2Header) if _starts(k, head)), None)
    if kind is None:
        if head[128:132] == b"DICM":
            raise VolumeError("It is a DICOM file", "Convert the series: dcm2niix -z y -o OUT FOLDER")
        raise VolumeError("It is not a NIfTI image", "Export it as .nii.gz, or correct the path")
    try:
        header = kind(head[: kind.sizeof_hdr], check=False)
        shape, dtype, affine = header.get_data_shape(), header.get_data_dtype(), header.get_best_affine()
    except (nib.spatialimages.HeaderDataError, ValueError):
        raise VolumeError("Its header makes no sense", "Export it again") from None
    return _checked(tuple(int(n) for n in shape), dtype, np.asarray(affine, np.float64))


def _starts(kind: type, head: bytes) -> bool:
    """Whether the bytes start with this kind of header, with the voxels in the same file."""
    size = kind.sizeof_hdr  # type: ignore[attr-defined]
    magic = head[344:347] if size == 348 else head[4:7]
    return head[:4] in (size.to_bytes(4, "little"), size.to_bytes(4, "big")) and magic in (b"n+1", b"n+2")


def _checked(shape: tuple[int, ...], dtype: np.dtype, affine: NDArray[np.float64]) -> Grid:
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if dtype.kind not in "iuf":
        raise VolumeError(
            f"Its voxels are {'complex' if dtype.kind == 'c' else 'colours'}", "Export magnitudes"
        )
    if len(shape) > 3:
        size = " x ".join(map(str, shape))
        raise VolumeError(
            f"It has {len(shape)} dimensions ({size})", "Split it: one 3-D file and one row per volume"
        )
    if len(shape) < 3 or min(shape) < 2:
        raise VolumeError(
            f"It is no volume: {' x '.join(map(str, shape))} voxels", "Give the whole 3-D series"
        )
    grid = Grid((shape[0], shape[1], shape[2]), affine)
    if (
        not np.isfinite(affine).all()
        or not (0.01 <= grid.spacing_mm).all()
        or not (grid.spacing_mm <= 100).all()
    ):
        size = " x ".join(f"{s:.3g}" for s in grid.spacing_mm)
        raise VolumeError(f"Its affine gives voxels of {size} mm", "Export it again with its geometry")
    if abs(np.linalg.det(affine[:3, :3] / grid.spacing_mm)) < 0.1:
        raise VolumeError("Its affine maps two axes onto one", "Export it again with its geometry")
    return grid


def study_grids(
    images: Mapping[str, bytes], mask: bytes | None, findings: list[Finding]
) -> tuple[dict[str, Grid], Grid | None]:
    """(modality -> grid, the study's reference first; the mask's grid) of what belongs together; the rest is found bad."""
    grids: dict[str, Grid] = {}
    mask_grid = None
    for slot, raw in [*images.items(), *([("mask", mask)] if mask is not None else [])]:
        try:
            grid = read_grid(raw)
        except VolumeError as error:
            findings.append(Finding(slot, error.problem, error.remedy))
            continue
        if slot == "mask":
            mask_grid = grid
        else:
            grids[slot] = grid
    grids = _agreeing(grids, findings)
    if mask_grid and grids and not any(_same_view(mask_grid, grid) for grid in grids.values()):
        slot, grid = next(iter(grids.items()))
        problem = f"The mask ({mask_grid}) covers another field of view than {slot} ({grid}) and the study's other volumes"
        findings.append(
            Finding(
                "mask", problem, "Resample it to one of the study's volumes, or give it that volume's affine"
            )
        )
        mask_grid = None
    return grids, mask_grid


def _agreeing(grids: dict[str, Grid], findings: list[Finding]) -> dict[str, Grid]:
    """The volumes that see the same body region as the one with most in common with all others, that one first."""
    if len(grids) < 2:
        return grids
    common = {a: sum(_overlap(grids[a], other)[1] for other in grids.values()) for a in grids}
    reference = max(grids, key=lambda slot: round(common[slot], 6))  # of equals, the first
    kept = {reference: grids[reference]}
    for slot, grid in grids.items():
        inside, _ = _overlap(grid, kept[reference])
        sizes = [float(np.prod(g.box_mm[1] - g.box_mm[0])) for g in (grid, kept[reference])]
        if inside >= _OVERLAP and max(sizes) <= _SIZES * min(sizes):
            kept[slot] = grid
            continue
        problem = f"Its field of view ({grid}) is not that of {reference} ({kept[reference]}): {inside:.0%} lie in it"
        findings.append(
            Finding(slot, problem, "Register it to the study's other volumes, or correct its affine")
        )
    return kept


def _overlap(a: Grid, b: Grid) -> tuple[float, float]:
    """Shared volume of two fields of view over the smaller one's, and over their union's."""
    edges = np.minimum(a.box_mm[1], b.box_mm[1]) - np.maximum(a.box_mm[0], b.box_mm[0])
    shared = float(np.prod(edges.clip(0)))
    sizes = [float(np.prod(g.box_mm[1] - g.box_mm[0])) for g in (a, b)]
    return shared / min(sizes), shared / (sum(sizes) - shared)


def _same_view(a: Grid, b: Grid) -> bool:
    """Whether two boxes agree to half a voxel of the coarser grid."""
    return bool(np.abs(a.box_mm - b.box_mm).max() <= 0.5 * max(a.spacing_mm.max(), b.spacing_mm.max()) + 1e-3)
