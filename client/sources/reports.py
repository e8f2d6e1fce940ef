"""Reports for studies that have none: measured in the mask and the volumes, or made from the label; marked as such.

Measured: side, place, size and signal per modality, in the words of a report and without any diagnosis. Either kind
may tell the label (`leak.py` measures how well), so the manifest's reader gives it to training patients alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from client.grids import Grid, VolumeError, read_grid, read_voxels
from client.sources.found import Found, Row
from client.sources.leak import leak_of, told
from medmap_model.text.captions import caption
from medmap_model.vocabulary import Organ, Vocabulary

_RING_MM = (3.0, 10.0)  # the surroundings that a lesion is compared with: from here to there around it
_MARKED, _CLEAR = 1.8, 1.15  # ratio to the surroundings, or its inverse, from which a signal has a word
_MIDLINE_MM = 5.0  # a lesion this near the middle has no side
_FOREGROUND = 0.12  # of the 98th percentile
_PART = 0.02  # of the largest part's size: smaller ones are not counted as lesions


@dataclass(frozen=True)
class Lesions:
    """What a mask says. edges_mm: box of the largest lesion, right-left, back-front, foot-head; place: in words."""

    count: int
    edges_mm: tuple[float, float, float]
    volume_ml: float
    place: str
    signals: dict[str, float]  # modality -> mean of the lesions over that of their surroundings


def add_reports(found: Found, vocabulary: Vocabulary, kinds: Sequence[str]) -> None:
    """Give studies without a report one, of the first of `kinds` (measured, caption) that can be made.

    Measured: studies with a mask. Caption: studies with a label. Rows change in place; what cannot be measured is a
    problem. How well reports that no radiologist wrote, made here or found, tell the label is a note.
    """
    makers: dict[str, Callable[[list[Row], Organ], str]] = {"measured": _measured, "caption": _caption}
    made: dict[tuple[str, str], tuple[str, str]] = {}
    studies = found.studies().items() if kinds else ()
    for study, rows in track(studies, "Reports", console=Console(stderr=True), transient=True):
        organ = _organ(rows, vocabulary)
        if organ is None or any(row.report for row in rows):
            continue
        for kind in kinds:
            try:
                text = makers[kind](rows, organ)
            except VolumeError as error:
                found.say(f"Study {study[1]} of patient {study[0]} cannot be measured: {error.problem}", error.remedy)
                continue
            if text:
                made[study] = text, kind
                break
    for i, row in enumerate(found.rows):
        if row.study in made:
            text, kind = made[row.study]
            found.rows[i] = replace(row, report=text, report_source=kind)
    unsigned = {row.study for row in found.rows if row.report_source not in ("", "radiologist")}
    if unsigned:
        found.notes.append(f"Reports that are not a radiologist's: {len(unsigned)}; see the column report_source.")
        found.notes += _leaks(found, vocabulary, unsigned)


def measure(images: dict[str, Path], mask: Path, spacings: dict[str, tuple[float, float, float]]) -> Lesions | None:
    """The lesions of a mask (any value above 0), and their signal in each image; None for an empty mask.

    spacings: modality -> true voxel edges, where the header's are wrong. Raises VolumeError.
    """
    from scipy import ndimage

    grid, values = _open(mask, None)
    inside = np.argwhere(values > 0)
    if not len(inside):
        return None
    margin = np.ceil(_RING_MM[1] / grid.spacing_mm).astype(int)
    low, high = (inside.min(0) - margin).clip(0), inside.max(0) + margin + 1
    marked = values[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] > 0
    parts, _ = ndimage.label(marked, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel())[1:]
    largest = low + np.argwhere(parts == 1 + int(sizes.argmax()))
    edges = np.ptp(largest @ grid.affine[:3, :3].T, axis=0) + np.abs(grid.affine[:3, :3]).sum(1)
    distance = ndimage.distance_transform_edt(~marked, sampling=grid.spacing_mm)
    ring = low + np.argwhere((distance > _RING_MM[0]) & (distance <= _RING_MM[1]))
    place, signals = "", dict[str, float]()
    for modality, path in images.items():
        own, data = _open(path, spacings.get(modality))
        tissue = _FOREGROUND * np.percentile(data[::2, ::2, ::2], 98)
        place = place or _place(grid.to_mm(largest.mean(0)), own, data > tissue)
        lesion, around = (_values(data, own, grid, index) for index in (inside, ring))
        around = around[around > tissue]
        if len(lesion) and len(around) and around.mean() > 0:
            signals[modality] = float(lesion.mean() / around.mean())
    count = int((sizes >= _PART * sizes.max()).sum())
    volume_ml = float(len(inside) * abs(np.linalg.det(grid.affine[:3, :3])) / 1000)
    return Lesions(count, (float(edges[0]), float(edges[1]), float(edges[2])), volume_ml, place, signals)


def words(lesions: Lesions | None, organ: str) -> str:
    """Measurements as a report without a diagnosis."""
    if lesions is None:
        return f"No focal lesion of the {organ} is marked."
    size = " x ".join(f"{edge:.0f}" for edge in lesions.edges_mm)
    where = f"the {lesions.place} part of the {organ}" if lesions.place else f"the {organ}"
    several = f"{lesions.count} focal lesions, the largest" if lesions.count > 1 else "Focal lesion"
    levels: dict[str, list[str]] = {}
    for modality, ratio in lesions.signals.items():
        levels.setdefault(_level(ratio), []).append(modality)
    clauses = "; ".join(f"{level} on {_listed(names)}" for level, names in levels.items())
    first = f"{several} in {where}, {size} mm, {lesions.volume_ml:.1f} mL in all."
    return f"{first} {clauses[0].upper()}{clauses[1:]}." if clauses else first


def _measured(rows: list[Row], organ: Organ) -> str:
    mask = next((row.mask for row in rows if row.mask), None)
    if mask is None:
        return ""
    order = sorted(rows, key=lambda row: organ.modalities.index(row.modality))
    spacings = {row.modality: row.spacing_mm for row in rows if row.spacing_mm}
    return words(measure({row.modality: row.image for row in order}, mask, spacings), organ.name)


def _caption(rows: list[Row], organ: Organ) -> str:
    label = rows[0].abnormality
    if not label:
        return ""
    seed = int.from_bytes(hashlib.sha256("/".join(rows[0].study).encode()).digest()[:8])
    return caption(organ, label, [row.modality for row in rows], seed=seed)


def _organ(rows: list[Row], vocabulary: Vocabulary) -> Organ | None:
    if rows[0].organ:
        return vocabulary.organs.get(rows[0].organ)
    owners = [o for o in vocabulary.organs.values() if all(row.modality in o.modalities for row in rows)]
    return owners[0] if len(owners) == 1 else None


def _leaks(found: Found, vocabulary: Vocabulary, unsigned: set[tuple[str, str]]) -> list[str]:
    """A sentence per organ that has such reports; studies with a radiologist's report are another matter."""
    texts: dict[str, list[tuple[str, str, str]]] = {}
    for study, rows in found.studies().items():
        organ, report = _organ(rows, vocabulary), rows[0].report
        if organ is not None and rows[0].abnormality and (study in unsigned or not report):
            texts.setdefault(organ.name, []).append((study[0], report, rows[0].abnormality))
    return [told(leak_of(mine), name) for name, mine in texts.items() if any(text for _, text, _ in mine)]


def _open(path: Path, spacing_mm: tuple[float, float, float] | None) -> tuple[Grid, NDArray[np.float32]]:
    try:
        raw = path.read_bytes()
        grid = read_grid(raw, spacing_mm)
        return grid, read_voxels(raw, grid)
    except VolumeError as error:
        raise VolumeError(f"{path}: {error.problem}", error.remedy) from None
    except OSError as error:
        raise VolumeError(f"{path} cannot be read: {error.strerror}", "Check its permissions and the disk") from None


def _values(data: NDArray[np.float32], own: Grid, grid: Grid, index: NDArray[np.intp]) -> NDArray[np.float32]:
    """The voxels of one grid that are nearest to voxels of another; those outside are left out."""
    mm = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    near = np.rint((mm - own.affine[:3, 3]) @ np.linalg.inv(own.affine[:3, :3]).T).astype(int)
    near = near[((near >= 0) & (near < own.shape)).all(1)]
    return data[tuple(near.T)]


def _place(centre: NDArray[np.float64], grid: Grid, foreground: NDArray[np.bool_]) -> str:
    """Side, front or back, top or bottom of a point in what is imaged, by the foreground's box (RAS)."""
    where = np.argwhere(foreground)
    corners = np.array([where.min(0), where.max(0)]) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    offset = centre - corners.mean(0)
    names = (("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))
    sides = [pair[int(o > 0)] for pair, o in zip(names, offset, strict=True) if abs(o) > _MIDLINE_MM]
    return " ".join(sides) or "central"


def _level(ratio: float) -> str:
    if 1 / _CLEAR < ratio < _CLEAR:
        return "isointense"
    marked = "markedly " if not 1 / _MARKED < ratio < _MARKED else ""
    return f"{marked}{'hyper' if ratio > 1 else 'hypo'}intense"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
