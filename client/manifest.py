"""A hospital's manifest (CSV, a row per volume) in, checked studies out; all its problems are listed in one pass.

Columns: patient_id, study_id, modality, image (required), organ, abnormality, report, report_source, mask, site, split,
spacing_mm (optional); others are ignored. Paths are relative to the file.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from client.problems import DataError, Problem, nearest
from client.table import read_table
from medmap_model.vocabulary import Vocabulary

REQUIRED = ("patient_id", "study_id", "modality", "image")
OPTIONAL = ("organ", "abnormality", "report", "report_source", "mask", "site", "split", "spacing_mm")
SPLITS = ("train", "val", "test", "common")
# Who wrote a report: a radiologist (also where the cell is empty), or code: measured from a mask, made from the label
# (caption), or otherwise (generated). What code wrote may tell the label: it is read of training patients alone.
REPORT_SOURCES = ("radiologist", "measured", "caption", "generated")
_NOTHING_SAID = frozenset(("n/a", "na", "nan", "nil", "none", "null", "no report", "not available", "tbd", "xxx"))

Spacing = tuple[float, float, float]


class ManifestError(DataError):
    """A manifest with problems; nothing of it is used."""


@dataclass(frozen=True)
class Study:
    """One exam of one patient. `rows`: modality -> row of the manifest, for messages.

    spacings: modality -> true voxel edges in mm along the file's axes, where the file's header is wrong.
    """

    patient_id: str
    study_id: str
    organ: str
    abnormality: str | None
    report: str | None
    split: str
    site: str | None
    images: Mapping[str, Path]
    mask: Path | None
    rows: Mapping[str, int] = field(default_factory=dict, compare=False)
    spacings: Mapping[str, Spacing] = field(default_factory=dict)
    report_source: str | None = None


@dataclass(frozen=True)
class Manifest:
    """The studies of one file, in its order. `ignored`: columns that mean nothing here."""

    path: Path
    studies: tuple[Study, ...]
    ignored: tuple[str, ...] = ()


def read_manifest(path: Path, vocabulary: Vocabulary, *, check_files: bool = True) -> Manifest:
    """The manifest, or ManifestError with every problem in it.

    `check_files=False` leaves missing images and masks to whoever opens them (and has a policy for them).
    """
    manifest, problems = scan_manifest(path, vocabulary, check_files=check_files)
    if problems:
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        raise ManifestError(f"{path}: {count}; nothing was used", problems)
    return manifest


def scan_manifest(path: Path, vocabulary: Vocabulary, *, check_files: bool = True) -> tuple[Manifest, list[Problem]]:
    """Its sound part, and every problem. Raises ManifestError where no row can be understood."""
    path, problems = Path(path), list[Problem]()
    try:
        raw = path.read_bytes()
    except OSError as error:
        problem = f"The file cannot be read: {error.strerror}"
        said = Problem(None, None, problem, "Check the path and its permissions")
        raise ManifestError(f"{path}: cannot be read", [said]) from None
    header, rows = read_table(raw, problems)
    if not header:
        problems.append(Problem(None, None, "The file is empty", f"Start it with {','.join(REQUIRED)}"))
        raise ManifestError(f"{path}: nothing to read", problems)
    if not _check_header(header, problems):
        raise ManifestError(f"{path}: columns are missing", problems)
    reader = _Reader(path.parent, vocabulary, header, problems, check_files)
    for number, cells in rows:
        reader.add(number, cells)
    studies = reader.studies()
    if not studies and not problems:
        problems.append(Problem(None, None, "The manifest has no rows", "Add one row per volume"))
    problems.sort(key=lambda p: p.row or 0)
    ignored = tuple(name for name in header if name and name not in REQUIRED + OPTIONAL)
    return Manifest(path, studies, ignored), problems


def split_of(patient_id: str) -> str:
    """The split of a patient when the manifest has none: 70/10/20 by a hash of the id, stable."""
    share = int.from_bytes(hashlib.sha256(f"medmap-split:{patient_id}".encode()).digest()[:8]) / 2**64
    return "train" if share < 0.7 else "val" if share < 0.8 else "test"


def _check_header(header: list[str], problems: list[Problem]) -> bool:
    spare = [name for name in header if name and name not in REQUIRED + OPTIONAL]
    missing = [name for name in REQUIRED if name not in header]
    for name in missing:
        close = difflib.get_close_matches(name, spare, n=1, cutoff=0.6)
        remedy = f"Rename {close[0]} to {name}" if close else f"Add it; columns found: {', '.join(header) or 'none'}"
        problems.append(Problem(1, name, "The column is missing", remedy))
    for name in dict.fromkeys(header):
        if name in REQUIRED + OPTIONAL and header.count(name) > 1:
            problems.append(Problem(1, name, "Two columns have this name", "Remove or rename one"))
    return not missing


class _Reader:
    """Rows in, studies out; each rule of the manifest is a few lines of one method."""

    def __init__(
        self, folder: Path, vocabulary: Vocabulary, header: list[str], problems: list[Problem], files: bool
    ) -> None:
        self.folder, self.vocabulary, self.width = folder, vocabulary, len(header)
        self.problems, self.files = problems, files
        self.where = {name: header.index(name) for name in REQUIRED + OPTIONAL if name in header}
        self.owners: dict[str, list[str]] = {}  # modality -> organs
        for organ in vocabulary.organs.values():
            for modality in organ.modalities:
                self.owners.setdefault(modality, []).append(organ.name)
        self.values: dict[tuple[str, str], dict[str, tuple[str, int]]] = {}  # study -> column -> value, row
        self.images: dict[tuple[str, str], dict[str, tuple[Path, int]]] = {}  # study -> modality -> path, row
        self.patients: dict[str, dict[str, tuple[str, int]]] = {}  # patient -> row, split, site, told
        self.spacings: dict[tuple[str, str], dict[str, Spacing]] = {}  # study -> modality -> edges
        self.named: dict[str, int] = {}  # image -> the row that named it first
        self.exists: dict[str, bool] = {}

    def say(self, row: int, column: str | None, problem: str, remedy: str) -> None:
        self.problems.append(Problem(row, column, problem, remedy))

    def add(self, row: int, cells: list[str]) -> None:
        """Check one row and file it under its study."""
        if len(cells) < self.width or any(cells[self.width :]):
            problem = f"The row has {len(cells)} cells, the header {self.width}"
            self.say(row, None, problem, "Quote texts that contain a separator or a line break; keep empty cells")
            return
        cell = {name: cells[i].strip() for name, i in self.where.items()}
        for name in REQUIRED:
            if not cell[name]:
                self.say(row, name, "The cell is empty", "Fill it in; every volume needs it")
        organ = self.organ(row, cell.get("organ", ""), cell["modality"])
        label, split = cell.get("abnormality", ""), cell.get("split", "")
        if label and organ:
            spec = self.vocabulary.organs[organ]
            unknown = [name for name in spec.classes_of(label) if name not in spec.abnormalities]
            if unknown:
                problem = f"'{unknown[0]}' is not an abnormality of the {organ}"
                self.say(row, "abnormality", problem, nearest(unknown[0], spec.abnormalities))
                cell["abnormality"] = ""
        if split and split not in SPLITS:
            self.say(row, "split", f"'{split}' is not a split", nearest(split, SPLITS))
            del cell["split"]
        self.report(row, cell)
        image = self.path(row, "image", cell["image"]) if cell["image"] else None
        mask = self.path(row, "mask", cell["mask"]) if cell.get("mask") else None
        cell["organ"], cell["mask"] = organ or "", str(mask or "")
        if cell["patient_id"]:
            self.person(row, cell)
        if cell["patient_id"] and cell["study_id"]:
            sound = organ and organ in self.owners.get(cell["modality"], ())
            key = cell["patient_id"], cell["study_id"]
            self.file(row, key, cell, image if sound else None)
            if spacing := self.spacing(row, cell.get("spacing_mm", "")):
                self.spacings.setdefault(key, {}).setdefault(cell["modality"], spacing)

    def report(self, row: int, cell: dict[str, str]) -> None:
        """A report has words, and one of the known sources."""
        report, source = cell.get("report", ""), cell.get("report_source", "")
        if report and (report.casefold() in _NOTHING_SAID or not any(map(str.isalpha, report))):
            self.say(row, "report", f"The report says nothing: '{report}'", "Leave the cell empty where there is none")
            cell["report"] = ""
        if source and source not in REPORT_SOURCES:
            remedy = nearest(source, REPORT_SOURCES)
            self.say(row, "report_source", f"'{source}' is not a source of reports", remedy)
            cell["report_source"] = "generated"  # until it is mended: the most careful

    def spacing(self, row: int, text: str) -> Spacing | None:
        """Three voxel edges in mm, apart by blanks, commas or x; None where none are given."""
        if not text:
            return None
        try:
            x, y, z = map(float, re.split(r"[\s,;x]+", text))
        except ValueError:
            x = y = z = 0.0
        if all(0.01 <= edge <= 100 for edge in (x, y, z)):
            return x, y, z
        remedy = "Write three edges between 0.01 and 100 mm, as 0.8 0.8 5.5; empty: the header's"
        self.say(row, "spacing_mm", f"'{text}' is no voxel size", remedy)
        return None

    def organ(self, row: int, name: str, modality: str) -> str | None:
        """The row's organ, inferred from a modality that only one organ has; None where it cannot be told."""
        organs, owners = self.vocabulary.organs, self.owners.get(modality, [])
        if name and name not in organs:
            self.say(row, "organ", f"'{name}' is not an organ of this vocabulary", nearest(name, tuple(organs)))
            return None
        if modality and (name not in owners if name else not owners):
            whose = f"of the {name}" if name else "of this vocabulary"
            choices = organs[name].modalities if name else self.vocabulary.modalities
            self.say(row, "modality", f"'{modality}' is not a modality {whose}", nearest(modality, choices))
        elif not name and len(owners) > 1:
            self.say(row, "organ", f"{modality} belongs to {' and '.join(owners)}", "Name the organ")
        return name or (owners[0] if len(owners) == 1 else None)

    def path(self, row: int, column: str, name: str) -> Path | None:
        path = os.path.join(self.folder, name)
        if self.files and path not in self.exists:
            self.exists[path] = os.path.isfile(path)
        if self.exists.get(path, True):
            return Path(path)
        slashed, parent = name.replace("\\", "/"), os.path.dirname(path)
        remedy = "Correct the path, which is relative to the manifest, or remove the row"
        forms = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
        if other := next((form for form in forms if form != name and (self.folder / form).is_file()), None):
            form = "composed" if len(other) < len(name) else "decomposed"
            remedy = f"The file's name on disk is spelt the same in {form} Unicode: write that, or rename the file"
        elif slashed != name and (self.folder / slashed).is_file():
            remedy = f"Write {slashed}, with forward slashes"
        elif not os.path.isdir(parent):
            remedy += f"; there is no folder {parent}"
        self.say(row, column, f"The file is missing: {path}", remedy)
        return None

    def person(self, row: int, cell: dict[str, str]) -> None:
        """A patient has one split and one site."""
        patient = self.patients.setdefault(cell["patient_id"], {"row": ("", row)})
        for name in ("split", "site"):
            if (value := cell.get(name)) and (first := patient.setdefault(name, (value, row)))[0] != value:
                who = f"Patient {cell['patient_id']}"
                problem = f"{who} is in {name} {value}, but in {first[0]} in row {first[1]} (leakage)"
                self.say(row, name, problem, f"Keep a patient in one {name}, or give two people two ids")
        if "split" in self.where and "split" not in cell:
            patient["told"] = ("", row)  # that what stands there is not a split

    def file(self, row: int, key: tuple[str, str], cell: dict[str, str], image: Path | None) -> None:
        """Keep the row, and say where its study or its file has said otherwise already."""
        study, images = self.values.setdefault(key, {}), self.images.setdefault(key, {})
        who = f"Study {key[1]} of patient {key[0]}"
        for name in ("organ", "abnormality", "report", "report_source", "mask"):
            if (value := cell.get(name)) and (first := study.setdefault(name, (value, row)))[0] != value:
                remedy = "Give every row of a study the same, or another study_id"
                self.say(row, name, f"{who} has another {name} in row {first[1]}", remedy)
        if image is None:
            return
        if (slot := images.setdefault(cell["modality"], (image, row)))[1] != row:
            problem = f"{who} has {cell['modality']} in row {slot[1]} already"
            self.say(row, "modality", problem, "Keep one of the two rows, or give the other another study_id")
        if (first_row := self.named.setdefault(str(image), row)) != row:
            problem = f"{image.name} is the image of row {first_row} already"
            self.say(row, "image", problem, "Correct the path; one file is one volume of one patient")

    def studies(self) -> tuple[Study, ...]:
        """All studies in the order of the file."""
        if any("split" in patient for patient in self.patients.values()):
            remedy = "Fill it in, or leave the whole column empty for a 70/10/20 split by patient"
            for name, patient in self.patients.items():
                if not patient.keys() & {"split", "told"}:
                    self.say(patient["row"][1], "split", f"Patient {name} has no split, but others have", remedy)
        studies = []
        for (name, study), images in self.images.items():
            if not images:
                continue
            known = {column: value for column, (value, _) in self.values[name, study].items()}
            person = {column: value for column, (value, _) in self.patients[name].items()}
            split, source = person.get("split") or split_of(name), known.get("report_source")
            read = split == "train" or source in (None, "radiologist")  # else it may tell the label
            studies.append(
                Study(
                    patient_id=name,
                    study_id=study,
                    organ=known["organ"],
                    abnormality=known.get("abnormality"),
                    report=known.get("report") if read else None,
                    split=split,
                    site=person.get("site"),
                    images={modality: path for modality, (path, _) in images.items()},
                    mask=Path(known["mask"]) if "mask" in known else None,
                    rows={modality: row for modality, (_, row) in images.items()},
                    spacings={m: edges for m, edges in self.spacings.get((name, study), {}).items() if m in images},
                    report_source=source,
                )
            )
        return tuple(studies)
