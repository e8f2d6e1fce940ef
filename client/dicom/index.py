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

from client.dicom.headers import HeaderError, Image, number, read_header, text
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


def index(root: Path, progress: Console | None = None) -> Index:
    """Read every header below `root`; no pixel, nothing outside of it (links are not followed), nothing written."""
    found, links = Index(), list[Path]()
    groups: dict[tuple[str, str], Series] = {}
    owners: dict[str, set[str]] = {}
    seen: set[str] = set()
    twice: Counter[tuple[str, str]] = Counter()
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
            uid = images[0].sop_uid
            key = (text(ds, "StudyInstanceUID"), text(ds, "SeriesInstanceUID"))
            if uid and uid in seen:
                twice[key] += 1
                continue
            seen.add(uid)
            owners.setdefault(key[1], set()).add(text(ds, "PatientID"))
            groups.setdefault(key, Series(ds, path.parent)).images.extend(images)
    _settle(found, groups, owners, twice)
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


def _settle(
    found: Index, groups: dict[tuple[str, str], Series], owners: dict[str, set[str]], twice: Counter[tuple[str, str]]
) -> None:
    """Keep the series that hold MR images of one patient; a row for each of the others."""
    for key, series in groups.items():
        kind = text(series.header, "Modality") or "unknown"
        repeated = twice[key]
        if kind != "MR":
            note = "Nothing to do: only MR is used; leave it out to be rid of this row"
            found.problems.append(series.problem(f"its modality is {kind}, not MR", note))
        elif len(owners[key[1]]) > 1:
            remedy = "Export each patient's series again; a series of two people is never used"
            found.problems.append(series.problem(f"it holds images of {len(owners[key[1]])} patients", remedy))
        elif not text(series.header, "PatientID"):
            remedy = "Fill in PatientID: privacy is counted by patient, and nobody can tell whose this is"
            found.problems.append(series.problem("it names no patient", remedy))
        elif wrong := sorted({i.pixels for i in series.images} - {""}):
            count = sum(1 for i in series.images if i.pixels)
            problem = f"{count} of its {len(series.images)} images have {' or '.join(wrong)}"
            found.problems.append(series.problem(problem, "Retrieve the series again from the PACS"))
        else:
            found.series.append(series)
            if repeated:
                problem = f"{repeated} of its files are there twice (same SOP instance UID); the first of each is used"
                found.problems.append(series.problem(problem, "Remove the copies to be rid of this row"))
