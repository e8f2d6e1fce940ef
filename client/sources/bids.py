"""BIDS: sub-X[/ses-Y]/anat/sub-X[_ses-Y][_key-value]_SUFFIX.nii.gz, sidecar JSON, participants.tsv, masks in derivatives/.

T1w, T2w and FLAIR are the vocabulary's T1, T2 and FLAIR; a T1w after contrast (entity ce-, or ContrastBolusIngredient in
a sidecar) is T1ce. Any other suffix stands for itself. Phase, real and imaginary parts are not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.sources.files import SUFFIXES, read_json, read_records, stem, walk
from client.sources.found import Found, Row, SourceError

_SUFFIXES = {"T1w": "T1", "T2w": "T2", "FLAIR": "FLAIR"}
_LESION = ("lesion", "tumor", "tumour")
_UNKNOWN = ("", "n/a")


@dataclass(frozen=True)
class Columns:
    """Which columns of participants.tsv say what. labels: a value of the column `label` -> abnormality."""

    label: str = ""
    site: str = "site"
    report: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("label", "site", "report"):  # as `read_records` names them
            object.__setattr__(self, name, (getattr(self, name) or "").lower().replace(" ", "_"))


@dataclass(frozen=True)
class _Name:
    """A BIDS file name: entities and suffix."""

    entities: Mapping[str, str]
    suffix: str

    @classmethod
    def of(cls, name: str) -> _Name:
        *parts, suffix = name.split("_")
        return cls(dict(part.split("-", 1) for part in parts if "-" in part), suffix)

    @property
    def study(self) -> str:
        session = self.entities.get("ses")
        return f"sub-{self.entities['sub']}" + (f"_ses-{session}" if session else "")


_Sidecars = dict[str, list[tuple[_Name, dict[str, Any]]]]


def scan(root: Path, *, organ: str = "brain", columns: Columns | None = None) -> Found:
    """Every NIfTI below sub-*/. Raises SourceError: no such folder, no subjects, or a column that is not there."""
    found, columns = Found(), columns or Columns()
    people = _participants(root, columns, found)
    files = list(walk(root, found))
    images = [(relative, path) for relative, path in files if relative.lower().endswith(SUFFIXES)]
    sidecars, masks, strange, complex_ = _sidecars(files, found), _masks(images, found), list[str](), 0
    for relative, path in images:
        if not relative.startswith("sub-"):
            continue
        name = _Name.of(stem(relative))
        if "sub" not in name.entities or f"sub-{name.entities['sub']}" != relative.partition("/")[0]:
            strange.append(relative)
            continue
        if name.entities.get("part", "mag") != "mag":
            complex_ += 1
            continue
        told = _inherited(sidecars, relative, name)
        patient = f"sub-{name.entities['sub']}"
        person = people.get(patient, {})
        report = person.get(columns.report, "") if columns.report else ""
        found.rows.append(
            Row(
                patient_id=patient,
                study_id=name.study,
                modality=_modality(name, told),
                image=path,
                organ=organ,
                abnormality=_abnormality(person, columns),
                report="" if report in _UNKNOWN else report,
                mask=masks.get(name.study),
                site=_site(person, told, columns),
            )
        )
    if not found.rows and not found.problems:
        raise SourceError(f"{root} holds no NIfTI file below a folder sub-*: give a BIDS data set's own folder")
    if strange:
        found.say(
            f"{len(strange)} files are not named after their folder sub-*, such as {strange[0]}", "They are left out"
        )
    if people and (absent := sorted({row.patient_id for row in found.rows} - people.keys())):
        problem = f"{len(absent)} subjects are not in participants.tsv, such as {absent[0]}"
        found.say(problem, "They go without label and site; participant_id is written as sub-01", "patient_id")
    if complex_:
        found.notes.append(f"Phase, real and imaginary parts (part-) left out: {complex_}; magnitudes are used.")
    if not columns.label:
        found.notes.append(
            "No label: --label-column names participants.tsv's column, --label VALUE=CLASS what it means."
        )
    return found


def _participants(root: Path, columns: Columns, found: Found) -> dict[str, dict[str, str]]:
    path = root / "participants.tsv"
    records = read_records(path, found) if path.is_file() else []
    for column in (columns.label, columns.report):
        if column and not (records and column in records[0]):
            there = ", ".join(records[0]) if records else "none"
            raise SourceError(f"{path} has no column {column}: there are {there}")
    people: dict[str, dict[str, str]] = {}
    for record in records:
        name = record.get("participant_id", "")
        if people.setdefault(name, record) != record:
            remedy = "Keep one row; until then it goes without label, site and report"
            found.say(f"{path} has {name} twice, with other values", remedy, "patient_id")
            people[name] = {"participant_id": name}
    return people


def _abnormality(person: Mapping[str, str], columns: Columns) -> str:
    value = person.get(columns.label, "") if columns.label else ""
    return "" if value in _UNKNOWN else columns.labels.get(value, value)


def _site(person: Mapping[str, str], told: Mapping[str, Any], columns: Columns) -> str:
    site = person.get(columns.site, "")
    return str(told.get("InstitutionName") or "") if site in _UNKNOWN else site


def _modality(name: _Name, told: Mapping[str, Any]) -> str:
    agent = str(told.get("ContrastBolusIngredient") or "none").casefold()
    if name.suffix == "T1w" and ("ce" in name.entities or agent not in ("none", *_UNKNOWN)):
        return "T1ce"
    return _SUFFIXES.get(name.suffix, name.suffix)


def _sidecars(files: Sequence[tuple[str, Path]], found: Found) -> _Sidecars:
    """Folder -> (name, content) of its sidecars, the general ones first."""
    sidecars: _Sidecars = {}
    for relative, path in files:
        folder, _, name = relative.rpartition("/")
        if name.endswith(".json") and (not folder or folder.startswith("sub-")):
            content = read_json(path, found)
            if isinstance(content, dict):
                sidecars.setdefault(folder, []).append((_Name.of(name.removesuffix(".json")), content))
    for inside in sidecars.values():
        inside.sort(key=lambda sidecar: len(sidecar[0].entities))
    return sidecars


def _inherited(sidecars: _Sidecars, relative: str, name: _Name) -> dict[str, Any]:
    """What all sidecars say of a file: those of its suffix, in its folder or above, whose entities it has."""
    told: dict[str, Any] = {}
    parts = relative.split("/")[:-1]
    for depth in range(len(parts) + 1):
        for other, content in sidecars.get("/".join(parts[:depth]), ()):
            if other.suffix == name.suffix and other.entities.items() <= name.entities.items():
                told |= content
    return told


def _masks(images: Sequence[tuple[str, Path]], found: Found) -> dict[str, Path]:
    """Study -> lesion mask of derivatives/."""
    masks: dict[str, Path] = {}
    for relative, path in images:
        if not relative.startswith("derivatives/"):
            continue
        name = _Name.of(stem(relative))
        marks = [value.casefold() for value in name.entities.values()]
        if name.suffix not in ("mask", "dseg", "roi") or not any(word in mark for mark in marks for word in _LESION):
            continue
        if "sub" in name.entities and (first := masks.setdefault(name.study, path)) != path:
            found.say(f"{path} is a lesion mask of {name.study} as {first} is", "The first is used", "mask")
    return masks
