"""Any folder, described by a YAML file: which files are volumes, what the parts of their paths mean, which table to join.

files: '(?P<patient>[^/]+)/(?P<study>[^/]+)/(?P<modality>[^/]+)\\.nii(\\.gz)?'   # a regular expression of the whole path
organ: brain
modality: {t1_gd: T1ce, t1: T1, flair: FLAIR, seg: mask}   # what a path says -> the vocabulary's name, or mask
abnormality: {GBM: tumour, none: no_tumour}
table:
  file: clinical.csv        # beside the YAML
  key: mrn                  # its column that holds the patient (or, with `by: study`, the study)
  abnormality: diagnosis
  report: findings
  site: hospital
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from client.manifest import REPORT_SOURCES, SPLITS
from client.sources.files import read_records, volumes
from client.sources.found import Found, Row
from configs.documents import read_document
from configs.setting import ConfigError, setting

_GROUPS = ("patient", "study", "modality", "abnormality", "site", "split")
MASK = "mask"


@dataclass(frozen=True)
class Table:
    """A CSV or TSV with a row per patient or per study; each further setting names a column of it."""

    file: Path = field(metadata={"help": "the table"})
    key: str = field(metadata={"help": "the column that holds the patient or the study"})
    by: str = setting("patient", "what the key is", choices=("patient", "study"))
    abnormality: str | None = setting(None, "a column")
    report: str | None = setting(None, "a column")
    report_source: str | None = setting(
        None, "who wrote the reports; none: a radiologist", choices=(None, *REPORT_SOURCES)
    )
    site: str | None = setting(None, "a column")
    split: str | None = setting(None, "a column")

    @property
    def columns(self) -> dict[str, str]:
        """Column of the manifest -> column of the table."""
        named = {name: getattr(self, name) for name in ("abnormality", "report", "site", "split")}
        return {name: column for name, column in named.items() if column}


@dataclass(frozen=True)
class Layout:
    """The YAML file."""

    files: str = field(
        metadata={"help": "a regular expression of a volume's path below the folder, with / between folders"}
    )
    organ: str | None = setting(None, "the organ, where modalities do not tell it")
    modality: dict[str, str] = setting({}, "what a path says -> modality, or mask")
    abnormality: dict[str, str] = setting({}, "what a path or the table says -> abnormality")
    split: dict[str, str] = setting({}, f"what a path or the table says -> {', '.join(SPLITS)}")
    table: Table | None = setting(None, "labels, reports, sites and splits")


def scan(root: Path, layout_file: Path) -> Found:
    """The volumes that the layout describes. Raises ConfigError (the layout) and SourceError (the folder)."""
    layout, found = read_document(layout_file, Layout), Found()
    pattern = _pattern(layout, layout_file)
    table = _table(layout.table, layout_file, found) if layout.table else {}
    by = layout.table.by if layout.table else "patient"
    masks, unknown = dict[tuple[str, str], Path](), dict[str, None]()
    matched = list(_matched(root, pattern, layout_file, found))
    if by == "study":
        _drop_shared(table, matched, found)
    for path, parts in matched:
        patient, study = parts["patient"], parts["study"]
        modality = layout.modality.get(parts["modality"], parts["modality"])
        if modality == MASK:
            if (first := masks.setdefault((patient, study), path)) != path:
                found.say(f"{path} is a mask of study {study} as {first} is", "The first is used", "mask")
            continue
        record = table.get(parts[by])
        if layout.table and record is None:
            unknown[parts[by]] = None
        found.rows.append(_row(path, parts, study, modality, record or {}, layout))
    found.rows = [replace(row, mask=masks.get(row.study)) for row in found.rows]
    for mask in sorted(masks.keys() - {row.study for row in found.rows}):
        found.say(f"{masks[mask]} is a mask of a study without images", "It is left out", "mask")
    if unknown:
        many = {"patient": "patients", "study": "studies"}[by]
        found.say(
            f"{len(unknown)} {many} are not in the table, such as {next(iter(unknown))}", "They go without a label"
        )
    return found


def _matched(
    root: Path, pattern: re.Pattern[str], layout_file: Path, found: Found
) -> Iterator[tuple[Path, dict[str, str]]]:
    """Each volume that the pattern describes, and what its path tells; a path without a study is one of its own."""
    strange: list[str] = []
    for relative, path in volumes(root, found):
        match = pattern.fullmatch(relative)
        parts = {name: value for name, value in match.groupdict().items() if value} if match else {}
        if {"patient", "modality"} <= parts.keys():
            yield path, {"study": parts["patient"], **parts}
        else:
            strange.append(relative)
    if strange:
        shown = ", ".join(strange[:3])
        found.say(
            f"{len(strange)} NIfTI files do not match `files`, such as {shown}",
            f"Widen it in {layout_file}, if they matter",
        )


def _drop_shared(
    table: dict[str, dict[str, str]], matched: Sequence[tuple[Path, dict[str, str]]], found: Found
) -> None:
    """Take out of a table by study the studies that several patients have: whose a row is cannot be told."""
    owners: dict[str, set[str]] = {}
    for _, parts in matched:
        owners.setdefault(parts["study"], set()).add(parts["patient"])
    if shared := sorted(study for study in table if len(owners.get(study, ())) > 1):
        found.say(
            f"{len(shared)} studies of the table belong to several patients, such as {shared[0]}",
            "Join by patient, or give `study` a pattern that differs between patients; they go without a label",
        )
        for study in shared:
            table[study] = {}


def _pattern(layout: Layout, path: Path) -> re.Pattern[str]:
    try:
        pattern = re.compile(layout.files)
    except re.error as error:
        raise ConfigError(f"{path}, files: not a regular expression ({error})") from None
    names = pattern.groupindex.keys()
    if lacking := {"patient", "modality"} - names:
        raise ConfigError(f"{path}, files: it needs a group (?P<{min(lacking)}>...)")
    if unknown := names - set(_GROUPS):
        raise ConfigError(f"{path}, files: (?P<{min(unknown)}>...) means nothing, take {', '.join(_GROUPS)}")
    return pattern


def _table(table: Table, path: Path, found: Found) -> dict[str, dict[str, str]]:
    """Key -> column of the manifest -> value."""
    if not table.file.is_file():
        raise ConfigError(f"{path}, table.file: there is no {table.file}")
    records = read_records(table.file, found)
    named = {
        name: column.strip().lower().replace(" ", "_") for name, column in {"key": table.key, **table.columns}.items()
    }
    for name, column in named.items():
        if records and column not in records[0]:
            raise ConfigError(f"{path}, table.{name}: {table.file} has no column {column}, but {', '.join(records[0])}")
    joined: dict[str, dict[str, str]] = {}
    for record in records:
        values = {name: record.get(column, "") for name, column in named.items()}
        key = values.pop("key")
        if joined.setdefault(key, values) != values:
            found.say(f"{table.file} has {table.by} {key} twice, with other values", "The first row is used; keep one")
    return joined


def _row(
    path: Path, parts: Mapping[str, str], study: str, modality: str, record: Mapping[str, str], layout: Layout
) -> Row:
    said = {name: record.get(name) or parts.get(name, "") for name in ("abnormality", "site", "split")}
    source = layout.table.report_source if layout.table and record.get("report") else None
    return Row(
        patient_id=parts["patient"],
        study_id=study,
        modality=modality,
        image=path,
        organ=layout.organ or "",
        abnormality=layout.abnormality.get(said["abnormality"], said["abnormality"]),
        report=record.get("report", ""),
        report_source=source or "",
        site=said["site"],
        split=layout.split.get(said["split"], said["split"]),
    )
