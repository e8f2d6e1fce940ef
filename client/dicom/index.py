"""A folder tree or PACS export in; its MR series, its structured reports and what is wrong with single files out."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.dataset import Dataset
from rich.console import Console
from rich.progress import track

from client.dicom.headers import BURNED, HeaderError, Image, number, read_header, text
from client.problems import Problem

_NO_IMAGES = ("PR", "KO", "SEG", "REG", "RWV")  # presentation states, key objects, segmentations, ...
_READERS = 4  # threads: they wait for disks and networks, parsing holds the interpreter's lock
_SHOWN = 3  # names of files in a message


@dataclass
class Series:
    """One series of one patient. header: of its first file. `where`: how messages name it."""

    header: Dataset
    folder: Path
    images: list[Image] = field(default_factory=list)

    @property
    def where(self) -> str:
        """Folder, number and description: for the hospital's own screen."""
        described = text(self.header, "SeriesDescription") or text(self.header, "ProtocolName")
        number_ = number(self.header.get("SeriesNumber"))
        return f"{self.folder}, series {'?' if number_ is None else int(number_)} {described!r}"

    def problem(self, problem: str, remedy: str) -> Problem:
        """One row about this series."""
        return Problem(None, "image", f"{self.where}: {problem}", remedy)


@dataclass
class Index:
    """All of a tree. reports: structured reports, (path, header)."""

    series: list[Series] = field(default_factory=list)
    reports: list[tuple[Path, Dataset]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class _Gathered:
    """A series whose files come in, and what may speak against it.

    patients: whom they name. copies: files that are there twice. clashes: other images under an id that one of its own
    has. elsewhere: series that have an image of an id of its own -> how many.
    """

    series: Series
    patients: set[str] = field(default_factory=set)
    copies: int = 0
    clashes: int = 0
    elsewhere: Counter[tuple[str, str]] = field(default_factory=Counter)


def index(root: Path, progress: Console | None = None) -> Index:
    """Read every header below `root`; no pixel, nothing outside of it (links are not followed), nothing written."""
    found, links = Index(), list[Path]()
    groups: dict[tuple[str, str], _Gathered] = {}
    seen: dict[str, tuple[tuple[str, str], object, Path]] = {}  # SOP instance UID -> series, place, file
    others = 0
    paths = list(_files(root, links, found.problems))
    with warnings.catch_warnings(), ThreadPoolExecutor(_READERS) as pool:
        warnings.simplefilter("ignore")  # pydicom's, about what is against the standard and readable all the same
        for path, result in track(
            zip(paths, pool.map(_try, paths), strict=True), "Reading", len(paths), console=progress, transient=True,
            disable=progress is None,
        ):  # fmt: skip
            if isinstance(result, HeaderError):
                remedy = "Export it again from the PACS, or remove it; the other files are used"
                found.problems.append(Problem(None, "image", f"{path}: {result}", remedy))
                continue
            if result is None or (kind := text(result[0], "Modality")) in _NO_IMAGES:
                others += 1
                continue
            ds, images = result
            if kind == "SR":
                found.reports.append((path, ds))
                continue
            key = (text(ds, "StudyInstanceUID"), text(ds, "SeriesInstanceUID"))
            gathered = groups.setdefault(key, _Gathered(Series(ds, path.parent)))
            gathered.patients.add(text(ds, "PatientID"))
            place = (images[0].position, images[0].instance)
            first = seen.setdefault(images[0].sop_uid or str(path), (key, place, path))
            if first[2] != path:
                if first[:2] == (key, place):
                    gathered.copies += 1
                    continue
                if first[0] == key:
                    gathered.clashes += 1
                else:
                    gathered.elsewhere[first[0]] += 1
            gathered.series.images.extend(images)
    _settle(found, groups)
    _one_patient_each(found)
    _links(found, links)
    if others:
        found.notes.append(
            f"{others} files hold no MR image or report (not DICOM, DICOMDIR, presentation states): passed over."
        )
    return found


def _try(path: Path) -> tuple[Dataset, list[Image]] | HeaderError | None:
    try:
        return read_header(path)
    except HeaderError as error:
        return error


def _files(root: Path, links: list[Path], problems: list[Problem]) -> Iterator[Path]:
    """Every file, sorted; links and what cannot be listed are put aside."""

    def denied(error: OSError) -> None:
        problem = f"{error.filename}: it cannot be listed ({error.strerror})"
        problems.append(Problem(None, "image", problem, "Give this user the right to read it"))

    for folder, folders, names in os.walk(root, onerror=denied):
        links += [Path(folder, n) for n in (*folders, *names) if os.path.islink(os.path.join(folder, n))]
        folders.sort()
        yield from (p for p in (Path(folder, name) for name in sorted(names)) if p.is_file() and not p.is_symlink())


def _links(found: Index, links: list[Path]) -> None:
    if links:
        shown = ", ".join(map(str, links[:_SHOWN])) + (
            f" and {len(links) - _SHOWN} more" if len(links) > _SHOWN else ""
        )
        remedy = "Give the folder that the links lead to, or copy the files"
        found.problems.append(Problem(None, "image", f"{shown}: links, which are not followed", remedy))


def _settle(found: Index, groups: dict[tuple[str, str], _Gathered]) -> None:
    """Keep the series that hold MR images of one patient; a row for each of the others."""
    for key, gathered in groups.items():
        series = gathered.series
        if wrong := _wrong(key, gathered, groups):
            found.problems.append(series.problem(*wrong))
            continue
        found.series.append(series)
        if gathered.copies:
            problem = (
                f"{gathered.copies} of its files are there twice (same SOP instance UID); the first of each is used"
            )
            found.problems.append(series.problem(problem, "Remove the copies to be rid of this row"))


def _wrong(
    key: tuple[str, str], gathered: _Gathered, groups: dict[tuple[str, str], _Gathered]
) -> tuple[str, str] | None:
    """Why a series is not used, and what to do; None for one that is."""
    series, count = gathered.series, len(gathered.series.images)
    kind = text(series.header, "Modality") or "unknown"
    if kind != "MR":
        return f"its modality is {kind}, not MR", "Nothing to do: only MR is used; leave it out to be rid of this row"
    if len(gathered.patients) > 1:
        remedy = "Export each patient's series again; a series of two people is never used"
        return f"it holds images of {len(gathered.patients)} patients", remedy
    if not text(series.header, "PatientID"):
        return (
            "it names no patient",
            "Fill in PatientID: privacy is counted by patient, and nobody can tell whose this is",
        )
    if not all(key):
        which = "study" if not key[0] else "series"
        return f"it has no {which} instance UID", "Export it again: nobody can tell what belongs to it"
    if gathered.elsewhere:
        other, shared = gathered.elsewhere.most_common(1)[0]
        problem = f"{shared} of its {count} images have the SOP instance UIDs of those of {groups[other].series.where}"
        return problem, "Remove the copy, or have the export give each image a UID of its own; this series is not used"
    if gathered.clashes:
        problem = f"{gathered.clashes} of its {count} images have the SOP instance UID of another of its images"
        return problem, "Have the export give each image a UID of its own"
    if bad := sorted({i.pixels for i in series.images} - {""}):
        problem = f"{sum(1 for i in series.images if i.pixels)} of its {count} images have {' or '.join(bad)}"
        if BURNED in bad:
            return problem, "Names may stand in the picture: export the images without it"
        return problem, "Retrieve the series again from the PACS"
    return None


def _one_patient_each(found: Index) -> None:
    """Take out the studies that several patients share: whose the images and the report are cannot be told."""
    studies: dict[str, list[Series]] = {}
    for series in found.series:
        studies.setdefault(text(series.header, "StudyInstanceUID"), []).append(series)
    for several in studies.values():
        patients = {text(series.header, "PatientID") for series in several}
        if len(patients) > 1:
            problem = f"its study has {len(several)} series of {len(patients)} patients (PatientID)"
            remedy = "Correct the PatientID in the PACS and export the study again; nothing of it is used"
            found.problems.append(several[0].problem(problem, remedy))
            left_out = {id(series) for series in several}
            found.series = [series for series in found.series if id(series) not in left_out]
