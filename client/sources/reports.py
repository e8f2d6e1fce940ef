"""Reports for studies that have none: measured, the same in a language model's words, or made from the label; marked so.

Measured: side, place, size and signal per modality, in the words of a report and without any diagnosis. Each kind may
tell the label (`leak.py` measures how well), so the manifest's reader gives it to training patients alone.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from client.grids import Grid, VolumeError, read_grid, read_voxels
from client.sources.found import Found, Row, SourceError
from client.sources.language import FAULTS, Facts, Writer, generate
from client.sources.leak import leak_of, told
from medmap_model.vocabulary import Organ, Vocabulary

_RING_MM = (3.0, 10.0)  # the surroundings that a lesion is compared with: from here to there around it
_MARKED, _CLEAR = 1.8, 1.15  # ratio to the surroundings, or its inverse, from which a signal has a word
_MIDLINE_MM = 5.0  # a lesion this near the middle has no side
_FOREGROUND = 0.12  # of the 98th percentile
_PART = 0.02  # of the largest part's size: smaller ones are not counted as lesions


_Study = tuple[str, str]
_Studies = dict[_Study, tuple[list[Row], Organ]]


@dataclass(frozen=True)
class Lesions:
    """What a mask says. edges_mm: box of the largest lesion, right-left, back-front, foot-head; place: in words."""

    count: int
    edges_mm: tuple[float, float, float]
    volume_ml: float
    place: str
    signals: dict[str, float]  # modality -> mean of the lesions over that of their surroundings


@dataclass(frozen=True)
class Kind:
    """What one `--reports` asks for. writer: of generated ones; informed: it is told the label."""

    name: str
    writer: Writer | None = None
    informed: bool = False


def kind_of(asked: str) -> Kind:
    """measured, caption, generated:WRITER or generated-with-label:WRITER, as typed. Raises SourceError."""
    name, _, writer = asked.partition(":")
    if asked in ("measured", "caption"):
        return Kind(asked)
    if writer and name in ("generated", "generated-with-label"):
        from client.sources.language_writers import writer_of

        return Kind("generated", writer_of(writer), informed=name == "generated-with-label")
    choices = "measured, caption, generated:MODEL or generated-with-label:MODEL"
    raise SourceError(f"'{asked}' is no kind of reports: take {choices}")


def add_reports(found: Found, vocabulary: Vocabulary, kinds: Sequence[Kind]) -> None:
    """Give studies without a report one, of the first of `kinds` that can be made.

    Measured: studies with a mask. Generated: those, and with the label told those with a label. Caption: studies with a
    label. Rows change in place; what cannot be measured is a problem. How many of a writer's texts were not used, and how
    well reports that no radiologist wrote, made here or found, tell the label are notes. Raises SourceError: a writer failed.
    """
    bare: _Studies = {}
    for study, rows in found.studies().items() if kinds else ():
        organ = _organ(rows, vocabulary)
        if organ is not None and not any(row.report for row in rows):
            bare[study] = rows, organ
    measured, made = _Measured(found), dict[_Study, tuple[str, Kind]]()
    for kind in kinds:
        left = {study: of for study, of in bare.items() if study not in made}
        if kind.writer is not None:
            texts = _generated(kind.writer, left, measured, found, vocabulary, informed=kind.informed)
        elif kind.name == "caption":
            texts = {study: _caption(rows, organ) for study, (rows, organ) in left.items()}
        else:
            texts = {study: prose(findings) for study, findings in measured(left).items()}
        made |= {study: (text, kind) for study, text in texts.items() if text}
    for i, row in enumerate(found.rows):
        if row.study in made:
            text, kind = made[row.study]
            found.rows[i] = replace(row, report=text, report_source=kind.name)
    unsigned = {row.study for row in found.rows if row.report_source not in ("", "radiologist")}
    if unsigned:
        found.notes.append(f"Reports that are not a radiologist's: {len(unsigned)}; see the column report_source.")
        informed = {study for study, (_, kind) in made.items() if kind.informed}
        found.notes += _leaks(found, vocabulary, unsigned, informed)


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
    place, signals, shown = "", dict[str, float](), False
    for modality, path in images.items():
        own, data = _open(path, spacings.get(modality))
        tissue = _FOREGROUND * np.percentile(data[::2, ::2, ::2], 98)
        lesion, around = (_values(data, own, grid, index) for index in (inside, ring))
        if not len(lesion):
            continue
        shown = True
        place = place or _place(grid.to_mm(largest.mean(0)), own, data > tissue)
        around = around[around > tissue]
        if len(around) and around.mean() > 0:
            signals[modality] = float(lesion.mean() / around.mean())
    if images and not shown:
        remedy = "Resample it to one of them, or correct its affine"
        raise VolumeError(f"{mask}: nothing of it lies in a volume of its study", remedy)
    count = int((sizes >= _PART * sizes.max()).sum())
    volume_ml = float(len(inside) * abs(np.linalg.det(grid.affine[:3, :3])) / 1000)
    return Lesions(count, (float(edges[0]), float(edges[1]), float(edges[2])), volume_ml, place, signals)


def findings_of(lesions: Lesions | None, organ: str) -> tuple[str, ...]:
    """Measurements in words, without a diagnosis: the lesions and their place, the size, then each signal."""
    if lesions is None:
        return (f"No focal lesion of the {organ} is marked",)
    size = " x ".join(f"{edge:.0f}" for edge in lesions.edges_mm)
    where = f"the {lesions.place} part of the {organ}" if lesions.place else f"the {organ}"
    several = f"{lesions.count} focal lesions, the largest" if lesions.count > 1 else "Focal lesion"
    levels: dict[str, list[str]] = {}
    for modality, ratio in lesions.signals.items():
        levels.setdefault(_level(ratio), []).append(modality)
    signals = (f"{level} on {_listed(names)}" for level, names in levels.items())
    return f"{several} in {where}", f"{size} mm, {lesions.volume_ml:.1f} mL in all", *signals


def prose(findings: Sequence[str]) -> str:
    """Findings as a report."""
    first, signals = ", ".join(findings[:2]) + ".", "; ".join(findings[2:])
    return f"{first} {signals[0].upper()}{signals[1:]}." if signals else first


class _Measured:
    """Findings of studies that have a mask; a study is measured once, and said once where it cannot be."""

    def __init__(self, found: Found) -> None:
        self._found, self._known = found, dict[_Study, tuple[str, ...]]()

    def __call__(self, studies: _Studies) -> dict[_Study, tuple[str, ...]]:
        todo = {study: of for study, of in studies.items() if study not in self._known}
        console = Console(stderr=True)
        steps = track(todo.items(), "Measuring", console=console, transient=True, disable=not console.is_terminal)
        for study, (rows, organ) in steps:
            try:
                self._known[study] = _findings(rows, organ)
            except VolumeError as error:
                problem = f"Study {study[1]} of patient {study[0]} cannot be measured: {error.problem}"
                self._found.say(problem, error.remedy)
                self._known[study] = ()
        return {study: self._known[study] for study in studies if self._known[study]}


def _findings(rows: list[Row], organ: Organ) -> tuple[str, ...]:
    """Empty without a mask. Raises VolumeError."""
    mask = next((row.mask for row in rows if row.mask), None)
    if mask is None:
        return ()
    spacings = {row.modality: row.spacing_mm for row in rows if row.spacing_mm}
    return findings_of(measure({row.modality: row.image for row in _ordered(rows, organ)}, mask, spacings), organ.name)


def _ordered(rows: list[Row], organ: Organ) -> list[Row]:
    return sorted(rows, key=lambda row: organ.modalities.index(row.modality))


def _generated(
    writer: Writer, studies: _Studies, measured: _Measured, found: Found, vocabulary: Vocabulary, *, informed: bool
) -> dict[_Study, str]:
    """The writer's texts that say nothing but the facts; a note counts the others."""
    findings, facts = measured(studies), dict[_Study, Facts]()
    for study, (rows, organ) in studies.items():
        label = rows[0].abnormality if informed else ""
        spoken = " and ".join(organ.spoken(name) for name in organ.classes_of(label)) if label else ""
        names = tuple(row.modality for row in _ordered(rows, organ))
        one = Facts(organ.name, names, findings.get(study, ()), spoken)
        if one.lines:
            facts[study] = one
    if not facts:
        return {}
    texts, faults = generate(writer, list(facts.values()), vocabulary)
    void = "; ".join(f"{FAULTS[name]}: {count}" for name, count in faults.most_common())
    found.notes.append(f"Texts of the language model: {len(texts)}, not used: {faults.total()}{void and f' ({void})'}.")
    return dict(zip(facts, texts, strict=True))


def _caption(rows: list[Row], organ: Organ) -> str:
    from medmap_model.text.captions import caption  # torch comes with it, which no other row needs

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


def _leaks(found: Found, vocabulary: Vocabulary, unsigned: set[_Study], informed: set[_Study]) -> list[str]:
    """A sentence per organ that has such reports; studies with a radiologist's report are another matter."""
    texts, knew = dict[str, list[tuple[str, str, str]]](), Counter[str]()
    for study, rows in found.studies().items():
        organ, report = _organ(rows, vocabulary), rows[0].report
        if organ is not None and rows[0].abnormality and (study in unsigned or not report):
            texts.setdefault(organ.name, []).append((study[0], report, rows[0].abnormality))
            knew[organ.name] += study in informed
    return [
        told(leak_of(mine), name, informed=knew[name])
        for name, mine in texts.items()
        if any(text for _, text, _ in mine)
    ]


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
    if not len(where):
        return ""
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
