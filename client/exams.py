"""What `predict` is given: a manifest, a folder or loose NIfTI files; out come exams, one per study, no label needed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from client.manifest import SPLITS, Spacing, Study, scan_manifest
from client.problems import Problem, nearest
from client.table import read_table
from medmap_model.vocabulary import Vocabulary

_COLUMNS = (
    None,
    "patient_id",
    "study_id",
    "modality",
    "image",
    "organ",
    "mask",
    "spacing_mm",
)  # problems elsewhere do not matter here
_SUFFIXES = (".nii", ".nii.gz")
_MASKS = ("mask", "seg", "segmentation", "label")


class UsageError(ValueError):
    """A command line that cannot be understood; the message is one sentence."""


@dataclass(frozen=True)
class Ignored:
    """A volume that is not used, and why."""

    modality: str | None
    file: str
    reason: str


@dataclass
class Exam:
    """One study to predict. organ: None where it cannot be told. images: modality of the organ -> file."""

    patient_id: str
    study_id: str
    organ: str | None
    images: dict[str, Path] = field(default_factory=dict)
    mask: Path | None = None
    rows: Mapping[str, int] = field(default_factory=dict)
    spacings: Mapping[str, Spacing] = field(default_factory=dict)
    ignored: list[Ignored] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def study(self) -> Study:
        """As a study of a manifest, for messages that name rows and files."""
        return Study(
            self.patient_id,
            self.study_id,
            self.organ or "",
            None,
            None,
            "test",
            None,
            self.images,
            self.mask,
            self.rows,
        )


def read_exams(
    arguments: Sequence[str], vocabulary: Vocabulary, *, split: str | None = None, organ: str | None = None
) -> list[Exam]:
    """The exams of a command line: manifests (.csv), folders of NIfTI files, MODALITY=FILE (all of them: one study).

    split: of manifests, this split's studies alone. organ: of folders and files whose modalities do not tell it.
    Raises UsageError, and ManifestError where no row of a manifest can be understood.
    """
    if split is not None and split not in SPLITS:
        raise UsageError(f"--split {split} is not a split: take one of {', '.join(SPLITS)}")
    if organ is not None and organ not in vocabulary.organs:
        raise UsageError(
            f"--organ {organ} is not an organ of the checkpoint: {nearest(organ, tuple(vocabulary.organs))}"
        )
    exams: list[Exam] = []
    loose: list[tuple[str, Path]] = []
    for argument in arguments:
        name, equals, file = argument.partition("=")
        path = Path(argument)
        if path.is_dir():
            exams.append(_of_folder(path, vocabulary, organ))
        elif path.suffix == ".csv" and path.is_file():
            exams += _of_manifest(path, vocabulary, split)
        elif equals and name and file:
            loose.append((name, Path(file)))
        elif path.name.endswith(_SUFFIXES):
            raise UsageError(f"{argument}: say which modality it is, such as {vocabulary.modalities[0]}={argument}")
        else:
            raise UsageError(f"{argument} is not there: give a manifest (.csv), a folder or MODALITY=FILE")
    if loose:
        exams.append(_of_files(loose, vocabulary, organ))
    if not exams:
        raise UsageError(f"no study{f' of split {split}' if split else ''} was found in what was given")
    return exams


def _of_manifest(path: Path, vocabulary: Vocabulary, split: str | None) -> Iterator[Exam]:
    """Every study that a row names, also one of which no row is sound."""
    manifest, problems = scan_manifest(path, vocabulary)
    of_row: dict[int | None, list[Problem]] = {}
    for p in problems:
        if p.column in _COLUMNS:
            of_row.setdefault(p.row, []).append(p)
    sound = {(s.patient_id, s.study_id): s for s in manifest.studies}
    header, lines = read_table(path.read_bytes(), [])
    exams: dict[tuple[str, str], Exam] = {}
    splits: dict[str, str] = {s.patient_id: s.split for s in manifest.studies}
    for number, cells in lines:
        row = dict(zip(header, (c.strip() for c in cells), strict=False))
        key = (row.get("patient_id", ""), row.get("study_id", ""))
        splits.setdefault(key[0], row.get("split", ""))
        study = sound.get(key)
        exam = exams.get(key)
        if exam is None:
            exam = exams[key] = Exam(*key, organ=row.get("organ") or None)
            if study is not None:
                exam.organ, exam.mask, exam.rows = study.organ, study.mask, study.rows
                exam.images, exam.spacings = dict(study.images), study.spacings
        modality = row.get("modality", "")
        organ = vocabulary.organs.get(exam.organ or "")
        if modality and modality not in (organ.modalities if organ else vocabulary.modalities):
            exam.ignored.append(_unknown(modality, row.get("image", ""), vocabulary, exam.organ))
            continue
        exam.problems += of_row.get(number, [])
    for exam in exams.values():
        exam.problems += of_row.get(None, [])  # of the file as a whole
    yield from (e for e in exams.values() if split is None or splits.get(e.patient_id) == split)


def _of_folder(folder: Path, vocabulary: Vocabulary, organ: str | None) -> Exam:
    """The NIfTI files of a folder; the modality is the longest of the vocabulary's names that a file's name holds."""
    pairs, ignored, problems = [], list[Ignored](), list[Problem]()
    mask = None
    for path in sorted(p for p in folder.iterdir() if p.name.endswith(_SUFFIXES)):
        stem = path.name.removesuffix(".gz").removesuffix(".nii")
        found = _named(stem, vocabulary.modalities)
        if len(found) == 1:
            pairs.append((found[0], path))
        elif not found and _named(stem, _MASKS):
            mask = path
        elif not found:
            ignored.append(Ignored(None, str(path), "its name holds no modality of the model"))
        else:
            problem = f"{path}: its name holds {' and '.join(found)}"
            problems.append(Problem(None, None, problem, f"Rename it, or give {found[0]}={path}"))
    if not pairs and not ignored and not problems:
        raise UsageError(f"{folder} holds no NIfTI file (.nii or .nii.gz)")
    exam = _of_files(pairs, vocabulary, organ, name=folder.resolve().name)
    exam.mask = exam.mask or mask
    exam.ignored += ignored
    exam.problems += problems
    return exam


def _named(stem: str, names: Sequence[str]) -> list[str]:
    """The names that stand in a file's name as words of their own, without those that are part of a longer one."""
    spans = {}
    for name in names:
        for match in re.finditer(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", stem, re.IGNORECASE):
            spans[name] = match.span()
    return [
        n for n, (a, b) in spans.items()
        if not any(c <= a and b <= d and (c, d) != (a, b) for c, d in spans.values())
    ]  # fmt: skip


def _of_files(
    pairs: Sequence[tuple[str, Path]], vocabulary: Vocabulary, organ: str | None, *, name: str | None = None
) -> Exam:
    """One study from (modality, file); `mask` is a modality of its own kind."""
    known = {m.casefold(): m for m in vocabulary.modalities}
    given = [(known.get(m.casefold(), m), path) for m, path in pairs]
    names = [m for m, _ in given if m in vocabulary.modalities]
    home = name or (given[0][1].resolve().parent.name if given else "study")
    exam = Exam(home, home, organ or _organ_of(names, vocabulary))
    slots = vocabulary.organs[exam.organ].modalities if exam.organ else vocabulary.modalities
    for modality, path in given:
        if modality.casefold() == "mask" and path.is_file():
            exam.mask = path
        elif not path.is_file():
            exam.problems.append(Problem(None, None, f"{path} is not there", "Correct the path"))
        elif modality not in slots:
            exam.ignored.append(_unknown(modality, str(path), vocabulary, exam.organ))
        elif modality in exam.images:
            problem = f"{path} and {exam.images[modality]} are both {modality}"
            exam.problems.append(Problem(None, None, problem, "Give one of them; the first was taken"))
        else:
            exam.images[modality] = path
    return exam


def _organ_of(modalities: Sequence[str], vocabulary: Vocabulary) -> str | None:
    """The organ that has most of the modalities. Raises UsageError where two have as many."""
    counts = {o.name: sum(m in o.modalities for m in modalities) for o in vocabulary.organs.values()}
    most = max(counts.values())
    if most == 0:
        return None
    best = [name for name, n in counts.items() if n == most]
    if len(best) > 1:
        raise UsageError(f"{', '.join(modalities)}: of the {' or the '.join(best)}? say it with --organ")
    return best[0]


def _unknown(modality: str, file: str, vocabulary: Vocabulary, organ: str | None) -> Ignored:
    """A volume of a modality that the vocabulary, or the organ, does not have; a slip of the pen is pointed out."""
    words = vocabulary.organs.get(organ or "")
    known = words.modalities if words else vocabulary.modalities
    whose = f"of the {organ}" if organ else "of the model's vocabulary"
    close = difflib.get_close_matches(modality, known, n=1, cutoff=0.75)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return Ignored(modality, file, f"'{modality}' is not a modality {whose}: the model never saw it{hint}")
