"""A folder of DICOM in; a review of its volumes, NIfTI files and the rows of a manifest out. The source is only read."""

from __future__ import annotations

import os
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
from medmap_model.vocabulary import Vocabulary

_WORKERS = min(4, os.cpu_count() or 1)  # dcm2niix runs beside the interpreter


@dataclass(frozen=True)
class Request:
    """What the command line asks for. output: the manifest; without it nothing is converted."""

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
    if not request.key.exists():
        found.notes.append("There is no key yet: the pseudonyms of this dry run are of this run alone.")
    lines = _lines(tree, book, vocabulary, pseudonyms, request.organ, found)
    review.settle(lines, book.review_below)
    if request.review is not None:
        found.problems += review.obey(lines, request.review, vocabulary)
    if request.review_to is not None:
        _private(request.review_to, review.to_csv(lines).encode())
    if lines:
        console.print(review.table(lines))
        console.print(review.summary(lines, book.review_below))
    reports = read_reports(tree, request.reports, vocabulary)
    found.problems += reports.problems
    found.notes += reports.notes
    _write(request, [line for line in lines if line.use], reports, pseudonyms, found)
    return found


def _check(request: Request, vocabulary: Vocabulary) -> None:
    if not request.root.is_dir():
        raise SourceError(f"{request.root} is not a folder: give the one with the DICOM files")
    for path in (request.output, request.review_to):
        if path is not None and path.resolve().is_relative_to(request.root.resolve()):
            raise SourceError(f"{path} lies in the source, where nothing is written: choose another folder")
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


def _line(part: Part, facts: Facts, choice: Choice, pseudonyms: Pseudonyms) -> Line:
    """With pseudonyms for patient, exam and volume."""
    header = part.series.header
    exam, series = text(header, "StudyInstanceUID"), text(header, "SeriesInstanceUID")
    return Line(
        key=pseudonyms.of("volume", series, part.label),
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


def _write(request: Request, lines: list[Line], reports: Reports, pseudonyms: Pseudonyms, found: Found) -> None:
    """Convert what is used, and add its rows; what cannot be converted is a problem each, and nothing else is lost."""
    faces = sum(line.choice.organ == "brain" for line in lines)
    if faces and request.deface is None:
        found.notes.append(
            f"{faces} head volumes keep their faces, by which people can be known: --deface takes a tool."
        )

    def made(line: Line) -> Path | Problem:
        if request.output is None:
            return line.part.images[0].path
        try:
            return _convert(request, line, request.output.parent)
        except ConversionError as error:
            return line.part.series.problem(error.problem, error.remedy)
        except OSError as error:
            problem = f"it cannot be converted ({error.strerror})"
            return line.part.series.problem(problem, "Look for room and rights in the temporary folder")

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
    if request.copies and request.output is not None:
        found.problems += _copy(lines, request.output.parent, pseudonyms)


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


def _convert(request: Request, line: Line, folder: Path) -> Path:
    """images/PATIENT/STUDY/MODALITY.nii.gz and .json below the manifest's folder."""
    image = convert(line.part)
    if request.deface is not None and line.choice.organ == "brain":
        image = defaced(image, request.deface)
    target = folder / "images" / line.patient_id / line.study_id / f"{line.choice.modality}.nii.gz"
    _private(target.with_name(f"{line.choice.modality}.json"), sidecar(line.part, line.facts).encode())
    _private(target, bare(image))
    return target


def _copy(lines: list[Line], folder: Path, pseudonyms: Pseudonyms) -> list[Problem]:
    """De-identified copies of the files of all volumes used, dicom/PATIENT/SERIES/; a problem for each series without."""
    problems: list[Problem] = []
    files = {image.path: line for line in lines for image in line.part.images}
    refused: set[int] = set()
    for number, (path, line) in enumerate(files.items()):
        series = line.part.series
        if id(series) in refused:
            continue
        target = folder / "dicom" / line.patient_id / pseudonyms.of("series", text(series.header, "SeriesInstanceUID"))
        target.mkdir(parents=True, exist_ok=True)
        try:
            deidentified(path, pseudonyms, line.patient_id).save_as(
                target / f"{number:06d}.dcm", enforce_file_format=True
            )
        except RefusedError as error:
            refused.add(id(series))
            remedy = "It has no whole DICOM copy; the NIfTI file is made"
            problems.append(series.problem(f"it cannot be de-identified: {error}", remedy))
    return problems


def _private(path: Path, content: bytes) -> None:
    """Write whole or not at all, for this user alone. Raises SourceError."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise SourceError(f"{path} cannot be written ({error.strerror}): choose another folder") from None
