"""A folder of DICOM in; a review of its volumes, NIfTI files and the rows of a manifest out. The source is only read."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.progress import track

from client.dicom import review
from client.dicom.convert import ConversionError, bare, convert, sidecar
from client.dicom.deface import check_template, defaced
from client.dicom.deidentify import RefusedError, deidentified
from client.dicom.headers import text
from client.dicom.index import Index, index
from client.dicom.parts import Part, split
from client.dicom.phases import phases_of
from client.dicom.pseudonyms import Pseudonyms, open_key
from client.dicom.reports import Reports, read_reports
from client.dicom.review import Line
from client.dicom.rules import DYNAMIC, Choice, Facts, RuleBook, choose, facts_of, facts_of_series, ignored, read_rules
from client.problems import Problem
from client.sources.found import Found, Row, SourceError
from client.sources.write import check_output, write_whole
from medmap_model.vocabulary import Vocabulary

_WORKERS = min(4, os.cpu_count() or 1)  # dcm2niix runs beside the interpreter


@dataclass(frozen=True)
class Request:
    """What the command line asks for. output: the manifest; without it nothing is converted. force: replace a review."""

    root: Path
    key: Path
    output: Path | None = None
    organ: str | None = None
    rules: Path | None = None
    review: Path | None = None
    review_to: Path | None = None
    reports: Path | None = None
    deface: str | None = None
    copies: bool = False
    force: bool = False


def ingest(request: Request, vocabulary: Vocabulary, console: Console) -> Found:
    """Find, choose, show and, with an output, convert. Raises SourceError and ConfigError for what cannot be asked."""
    _check(request, vocabulary)
    book = read_rules(request.rules)
    if request.review is not None and not request.key.exists():
        raise SourceError(f"{request.key} is not there: a review holds for the key that it was written with")
    pseudonyms = open_key(request.key, make=bool(request.output or request.review_to))
    found = Found()
    tree = index(request.root, Console(stderr=True))
    found.problems += tree.problems
    found.notes += tree.notes
    found.notes += _people(tree, pseudonyms)
    if not request.key.exists():
        found.notes.append("There is no key yet: the pseudonyms of this dry run are of this run alone.")
    lines = _lines(tree, book, vocabulary, pseudonyms, request.organ, found)
    review.settle(lines, book.review_below)
    if request.review is not None:
        found.problems += review.obey(lines, request.review, vocabulary)
    if request.review_to is not None:
        write_whole(request.review_to, review.to_csv(lines).encode(), private=True)
        found.notes.append(f"{request.review_to} holds the review; edit it, and give it with --review.")
    if lines:
        console.print(review.table(lines))
        console.print(review.summary(lines, book.review_below))
    reports = read_reports(tree, request.reports, vocabulary)
    found.problems += reports.problems
    found.notes += reports.notes
    converted = _write(request, [line for line in lines if line.use], reports, found)
    if request.copies and request.output is not None:
        _copy(converted, request.output.parent, pseudonyms, found, without_heads=bool(request.deface))
    return found


def _check(request: Request, vocabulary: Vocabulary) -> None:
    if not request.root.is_dir():
        raise SourceError(f"{request.root} is not a folder: give the one with the DICOM files")
    for path in (request.output, request.review_to, None if request.key.exists() else request.key):
        if path is not None and path.resolve().is_relative_to(request.root.resolve()):
            raise SourceError(f"{path} lies in the source, where nothing is written: choose another folder")
    if request.review_to is not None:  # what a person has decided there
        check_output(request.review_to, force=request.force)
    if request.organ is not None and request.organ not in vocabulary.organs:
        raise SourceError(f"--organ {request.organ} is not an organ: take one of {', '.join(vocabulary.organs)}")
    if request.deface is not None:
        check_template(request.deface)
    if request.copies and find_spec("deid") is None:
        raise SourceError("--dicom-copies needs deid: pip install 'medmap-fl[ingest]'")


def _lines(
    tree: Index, book: RuleBook, vocabulary: Vocabulary, pseudonyms: Pseudonyms, organ: str | None, found: Found
) -> list[Line]:
    """A line for each volume, by patient and study; what is no volume to train on is counted."""
    lines, passed = list[Line](), Counter[str]()
    for series in tree.series:
        if why := ignored(facts_of_series(series, book), book):
            passed[why] += 1
            continue
        parts, problems = split(series)
        found.problems += problems
        if not parts and not problems:
            passed["fewer than 4 slices in one plane"] += 1
        for part in parts:
            facts = facts_of(part, book)
            if why := ignored(facts, book):
                passed[why] += 1
                continue
            lines.append(_line(part, facts, choose(facts, book, organ), pseudonyms))
    if passed:
        counts = ", ".join(f"{why} {n}" for why, n in passed.most_common())
        found.notes.append(f"{sum(passed.values())} series or volumes are none to train on: {counts}.")
    by_study: dict[str, list[Line]] = {}
    for line in lines:
        if line.choice.modality == DYNAMIC:
            by_study.setdefault(line.study_id, []).append(line)
    for dynamic in by_study.values():
        chosen = phases_of([(line.part, line.facts) for line in dynamic], book.phases, dynamic[0].choice.organ)
        for line, choice in zip(dynamic, chosen, strict=True):
            sure = min(choice.confidence, line.choice.confidence)
            line.choice = replace(choice, confidence=sure, reason=f"{line.choice.reason}; {choice.reason}")
    for line in lines:
        line.choice = _of_vocabulary(line.choice, vocabulary)
    return sorted(lines, key=lambda line: (line.patient_id, line.study_id, line.part.time_s or 0.0, line.part.label))


def _people(tree: Index, pseudonyms: Pseudonyms) -> list[str]:
    """What names and birth dates say against taking a PatientID for one person, by pseudonyms."""
    born, ids = dict[str, set[str]](), dict[tuple[str, str], set[str]]()
    for series in tree.series:
        date, patient = text(series.header, "PatientBirthDate"), text(series.header, "PatientID")
        name = " ".join(re.findall(r"\w+", text(series.header, "PatientName").casefold()))
        if date:
            born.setdefault(patient, set()).add(date)
        if date and name:
            ids.setdefault((name, date), set()).add(patient)

    def shown(patients: Iterable[str]) -> str:
        return " and ".join(sorted(pseudonyms.of("patient", patient)[:8] for patient in patients))

    notes = [f"Patient {shown([p])} has several birth dates: several people may share a PatientID." for p, dates in
             born.items() if len(dates) > 1]  # fmt: skip
    return notes + [
        f"Patients {shown(several)} have one name and birth date: if they are one person, merge them in the PACS."
        for several in ids.values() if len(several) > 1
    ]  # fmt: skip


def _line(part: Part, facts: Facts, choice: Choice, pseudonyms: Pseudonyms) -> Line:
    """With pseudonyms for patient, exam and volume."""
    header = part.series.header
    exam, series = text(header, "StudyInstanceUID"), text(header, "SeriesInstanceUID")
    return Line(
        key=pseudonyms.of("volume", exam, series, part.label),
        part=part,
        facts=facts,
        patient_id=pseudonyms.of("patient", text(header, "PatientID")),
        exam_id=pseudonyms.of("exam", exam),
        choice=choice,
    )


def _of_vocabulary(choice: Choice, vocabulary: Vocabulary) -> Choice:
    organ = vocabulary.organs.get(choice.organ or "")
    if choice.modality is None or (organ and choice.modality in organ.modalities):
        return choice
    reason = f"{choice.reason}; {choice.modality} of {choice.organ} is not in the vocabulary"
    return Choice(None, choice.organ, 0.0, reason)


def _write(request: Request, lines: list[Line], reports: Reports, found: Found) -> list[Line]:
    """Convert what is used, and add its rows; what cannot be converted is a problem each. Returns what was converted."""
    faces = sum(line.choice.organ == "brain" for line in lines)
    if faces and request.deface is None:
        found.notes.append(
            f"{faces} head volumes keep their faces, by which people can be known: --deface takes a tool."
        )

    def made(line: Line) -> Path | Problem:
        if request.output is None:
            return line.part.images[0].path
        target = _target(line, request.output.parent)
        try:
            return _convert(request, line, target)
        except ConversionError as error:
            target.unlink(missing_ok=True)  # what an earlier run made, of other rules or with its face
            return line.part.series.problem(error.problem, error.remedy)
        except OSError as error:
            problem = f"it cannot be converted ({error.strerror})"
            return line.part.series.problem(problem, "Look for room and rights in the temporary folder")

    converted: list[Line] = []
    with ThreadPoolExecutor(_WORKERS) as pool:
        shown = Console(stderr=True) if request.output else None
        results: Iterable[Path | Problem] = pool.map(made, lines)
        for line, result in track(
            zip(lines, results, strict=True),
            "Converting",
            len(lines),
            console=shown,
            transient=True,
            disable=shown is None,
        ):
            if isinstance(result, Problem):
                found.problems.append(result)
                continue
            found.rows.append(_row(line, result, reports))
            converted.append(line)
    return converted


def _row(line: Line, image: Path, reports: Reports) -> Row:
    exam = text(line.part.series.header, "StudyInstanceUID")
    assert line.choice.modality is not None  # it is used
    return Row(
        patient_id=line.patient_id,
        study_id=line.study_id,
        modality=line.choice.modality,
        image=image,
        organ=line.choice.organ or "",
        abnormality=reports.labels.get(exam, ""),
        report=reports.texts.get(exam, ""),
    )


def _target(line: Line, folder: Path) -> Path:
    return folder / "images" / line.patient_id / line.study_id / f"{line.choice.modality}.nii.gz"


def _convert(request: Request, line: Line, target: Path) -> Path:
    """The volume, and a .json beside it."""
    image = convert(line.part)
    if request.deface is not None and line.choice.organ == "brain":
        image = defaced(image, request.deface)
    write_whole(target.with_name(f"{line.choice.modality}.json"), sidecar(line.part, line.facts).encode(), private=True)
    write_whole(target, bare(image), private=True)
    return target


def _copy(lines: list[Line], folder: Path, pseudonyms: Pseudonyms, found: Found, *, without_heads: bool) -> None:
    """De-identified copies of the files of all volumes used, dicom/PATIENT/SERIES/; a problem for each series without."""
    kept = [line for line in lines if not (without_heads and line.choice.organ == "brain")]
    if heads := len(lines) - len(kept):
        found.notes.append(f"{heads} head volumes have no DICOM copy: it would show the face that --deface removes.")
    series_of = {id(line.part.series): (line.part.series, line.patient_id) for line in kept}
    used = {image.path for line in kept for image in line.part.images}
    for series, patient in series_of.values():
        uids = text(series.header, "StudyInstanceUID"), text(series.header, "SeriesInstanceUID")
        target = folder / "dicom" / patient / pseudonyms.of("series", *uids)
        try:
            for number, path in enumerate(sorted({image.path for image in series.images}), 1):
                if path in used:  # its number is the same whichever volumes of the series are
                    write_whole(target / f"{number:06d}.dcm", deidentified(path, pseudonyms, patient), private=True)
        except RefusedError as error:
            remedy = "It has no whole DICOM copy; the NIfTI file is made"
            found.problems.append(series.problem(f"it cannot be de-identified: {error}", remedy))
