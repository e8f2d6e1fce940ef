"""The reports of the studies: DICOM SR documents of the tree, or a CSV by accession number; scrubbed, by study."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from client.dicom.headers import READ, decode, number, text
from client.dicom.index import Index
from client.dicom.scrub import Known, ordinary_words, scrub
from client.problems import Problem
from client.sources.found import SourceError
from client.table import read_records
from medmap_model.vocabulary import Vocabulary

_CONTEXT = ("HAS OBS CONTEXT", "HAS ACQ CONTEXT", "HAS CONCEPT MOD")  # who observed, with what, in which language


@dataclass
class Reports:
    """Study instance UID -> scrubbed text; -> class, of a CSV that has the column abnormality."""

    texts: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_reports(index: Index, table: Path | None, vocabulary: Vocabulary) -> Reports:
    """All reports there are; a CSV's text goes before an SR's. Raises SourceError where the CSV cannot be understood."""
    made, known = Reports(), dict[str, Known]()
    for header in (*(s.header for s in index.series), *(ds for _, ds in index.reports)):
        _learn(known.setdefault(text(header, "StudyInstanceUID"), Known()), header)
    found = _documents(index, known, made)
    if table is not None:
        found |= _listed(index, table, made)
    words = ordinary_words(vocabulary)
    made.texts = {study: scrub(said, known[study], words) for study, said in found.items()}
    return made


def document_text(ds: Dataset) -> str:
    """An SR's content tree as lines: `Findings: ...`. What names people, times, places and images is not in it."""
    return "\n".join(_lines(ds.get("ContentSequence") or ()))


def _lines(items: Iterable[Dataset]) -> Iterator[str]:
    for item in items:
        if text(item, "RelationshipType") in _CONTEXT:
            continue
        heading = _meaning(item.get("ConceptNameCodeSequence"))
        value = ""
        kind = text(item, "ValueType")
        if kind == "TEXT":
            value = text(item, "TextValue")
        elif kind == "CODE":
            value = _meaning(item.get("ConceptCodeSequence"))
        elif kind == "NUM" and item.get("MeasuredValueSequence"):
            measured = item.MeasuredValueSequence[0]
            amount = number(measured.get("NumericValue"))
            unit = measured.get("MeasurementUnitsCodeSequence")
            value = f"{amount:g} {text(unit[0], 'CodeValue') if unit else ''}".strip() if amount is not None else ""
        if value:
            yield f"{heading}: {value}" if heading else value
        yield from _lines(item.get("ContentSequence") or ())


def _meaning(codes: list[Dataset] | None) -> str:
    return text(codes[0], "CodeMeaning") if codes else ""


def _documents(index: Index, known: Mapping[str, Known], made: Reports) -> dict[str, str]:
    """Study -> text of its best SR: verified before unverified, then the latest; none that names another patient."""
    best: dict[str, tuple[tuple[bool, str], str]] = {}
    patients = {text(s.header, "StudyInstanceUID"): text(s.header, "PatientID") for s in index.series}
    for path, header in index.reports:
        study = text(header, "StudyInstanceUID")
        if patients.get(study, text(header, "PatientID")) != text(header, "PatientID"):
            problem = f"{path}: its report names another patient than the images of its study"
            made.problems.append(
                Problem(None, "report", problem, "Correct it in the PACS; the study is used without it")
            )
            continue
        try:
            decode(ds := pydicom.dcmread(path))
            said, elements = document_text(ds), list(ds.iterall())
        except Exception as error:  # whatever a damaged file leads pydicom into
            remedy = "Export it again; its study is used without it"
            made.problems.append(
                Problem(None, "report", f"{path}: its report cannot be read ({type(error).__name__})", remedy)
            )
            continue
        for element in elements:  # observers, verifiers, organisations
            if element.VR == "PN" and element.value:
                known[study].names |= set(map(str, element.value if element.VM > 1 else [element.value]))
            elif element.keyword in ("VerifyingOrganization", "InstitutionName") and element.value:
                known[study].places.add(str(element.value))
        rank = (text(ds, "VerificationFlag") == "VERIFIED", text(ds, "ContentDate") + text(ds, "ContentTime"))
        if said and (study not in best or rank > best[study][0]):
            best[study] = (rank, said)
    return {study: said for study, (_, said) in best.items()}


def _listed(index: Index, table: Path, made: Reports) -> dict[str, str]:
    """Study -> text by the CSV's accession numbers, and its label into `made`; nothing that two rows say differently."""
    problems: list[Problem] = []
    try:
        header, rows = read_records(table.read_bytes(), problems)
    except OSError as error:
        raise SourceError(f"{table} cannot be read ({error.strerror}): give the CSV of reports") from None
    if missing := [name for name in ("accession_number", "report") if name not in header]:
        raise SourceError(f"{table} has no column {missing[0]}: it needs accession_number and report")
    studies, patients = _of_accession(index)
    unpadded = {accession.lstrip("0") for accession in studies}
    kept, found, strange = dict[str, dict[str, str]](), dict[str, str](), 0
    for row, record in rows:
        accession = record["accession_number"]
        said = {name: record.get(name, "") for name in ("report", "abnormality")}
        if len(patients.get(accession, ())) > 1:
            wrong = ["Exams of several patients have this number; the row is not used"]
            remedy = "Give each exam an accession number of its own"
        elif accession in studies:
            first = kept.setdefault(accession, said)
            wrong = [f"Another row of this exam has another {name}" for name in said if said[name] != first[name]]
            remedy = "Keep one row for each; the first is used, without a label where they differ in it"
            if said["abnormality"] != first["abnormality"]:
                first["abnormality"] = ""
        elif accession and accession.lstrip("0") in unpadded:
            wrong = ["It is an exam's but for its leading zeros; the row is not used"]
            remedy = "A spreadsheet drops them: export the column as text"
        else:
            strange += 1
            continue
        problems += [Problem(row, "accession_number", problem, remedy) for problem in wrong]
    for accession, said in kept.items():
        found |= dict.fromkeys(studies[accession], said["report"]) if said["report"] else {}
        made.labels |= dict.fromkeys(studies[accession], said["abnormality"]) if said["abnormality"] else {}
    made.problems += [Problem(p.row, p.column, f"{table.name}: {p.problem}", p.remedy) for p in problems]
    if strange:
        made.notes.append(f"{strange} rows of {table.name} have an accession number that no study has: passed over.")
    return found


def _of_accession(index: Index) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Accession number -> its studies; -> their patients."""
    studies, patients = dict[str, set[str]](), dict[str, set[str]]()
    for series in index.series:
        if accession := text(series.header, "AccessionNumber"):
            studies.setdefault(accession, set()).add(text(series.header, "StudyInstanceUID"))
            patients.setdefault(accession, set()).add(text(series.header, "PatientID"))
    return studies, patients


def _learn(known: Known, ds: Dataset) -> None:
    """Who and where a header names."""
    for kind, values in (("names", known.names), ("places", known.places), ("numbers", known.numbers)):
        for keyword in READ[kind]:
            values |= {v for v in text(ds, keyword).split("\\") if v}
    for other in ds.get("OtherPatientIDsSequence") or ():
        known.numbers.add(text(other, "PatientID"))
