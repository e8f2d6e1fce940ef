"""What is to become of each volume, as a table: on the screen, as a CSV, and read back from one that a person edited."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from client.dicom.headers import text
from client.dicom.parts import Part
from client.dicom.rules import Choice, Facts
from client.problems import Problem, nearest, printable
from client.sources.found import SourceError
from client.table import read_table
from medmap_model.vocabulary import Vocabulary

COLUMNS = (
    "volume",
    "use",
    "modality",
    "organ",
    "confidence",
    "reason",
    "patient_id",
    "study_id",
    "series",
    "images",
    "where",
)
_USE = {"yes": True, "no": False}


@dataclass
class Line:
    """One volume: what it is (`choice`), and whether it is used. key, patient_id, exam_id: pseudonyms."""

    key: str
    part: Part
    facts: Facts
    patient_id: str
    exam_id: str
    choice: Choice
    use: bool = False

    @property
    def study_id(self) -> str:
        """A study is of one organ: an exam of two organs is two studies."""
        return f"{self.exam_id}-{self.choice.organ or 'unknown'}"

    def cells(self) -> dict[str, str]:
        """As a row of the review's CSV."""
        header = self.part.series.header
        return {
            "volume": self.key,
            "use": "yes" if self.use else "no",
            "modality": self.choice.modality or "",
            "organ": self.choice.organ or "",
            "confidence": f"{self.choice.confidence:.2f}",
            "reason": printable(self.choice.reason),
            "patient_id": self.patient_id,
            "study_id": self.study_id,
            "series": printable(f"{text(header, 'SeriesNumber', 'SeriesDescription')} {self.part.label}".strip()),
            "images": str(len(self.part.images)),
            "where": printable(str(self.part.images[0].path)),
        }


def settle(lines: Sequence[Line], review_below: float) -> None:
    """Use what is sure enough, one volume per study and modality: the surest, the best of its kind, the last in time.

    Of what must be without contrast, the first in time.
    """
    best: dict[tuple[str, str], Line] = {}

    def rank(line: Line) -> tuple[float, ...]:
        time_s = (line.part.time_s or 0.0) * (-1 if line.choice.earlier else 1)
        return (line.choice.confidence, -line.choice.distance, len(line.part.images), time_s)

    for line in lines:
        if line.choice.modality is not None and line.choice.confidence >= review_below:
            slot = (line.study_id, line.choice.modality)
            if slot not in best or rank(line) > rank(best[slot]):
                best[slot] = line
    for line in lines:
        line.use = any(line is chosen for chosen in best.values())
        if not line.use and line.choice.modality and line.choice.confidence >= review_below:
            chosen = best[line.study_id, line.choice.modality]
            line.choice = replace(line.choice, reason=f"{line.choice.reason}; {chosen.key[:8]} is used instead")


def obey(lines: Sequence[Line], path: Path, vocabulary: Vocabulary) -> list[Problem]:
    """Set use, modality and organ as the edited CSV says; a volume that it does not list is not used.

    What it says that cannot be done is a row each. Raises SourceError where it is no review.
    """
    problems: list[Problem] = []
    try:
        header, rows = read_table(path.read_bytes(), problems)
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror}): give the review's CSV") from None
    if missing := [name for name in ("volume", "use", "modality") if name not in header]:
        raise SourceError(f"{path} has no column {missing[0]}: write one with --review-to and edit it")
    known = {line.key: line for line in lines}
    for each in lines:
        each.use = False
    told: set[str] = set()
    for number, cells in rows:
        row = dict(zip(header, (c.strip() for c in cells), strict=False))
        if row.get("volume", "") in told:
            problems.append(Problem(number, "volume", "The volume has a row already", "Keep one; the first holds"))
            continue
        told.add(row.get("volume", ""))
        if (line := known.get(row.get("volume", ""))) is None:
            remedy = "Take the row out, or give the folder and the key it was written with"
            problems.append(Problem(number, "volume", f"There is no volume {row.get('volume', '')!r}", remedy))
        else:
            problems += _set(line, row, number, vocabulary)
    if unlisted := len(known.keys() - told):
        remedy = "Write a new review with --review-to to decide on them"
        problems.append(Problem(None, "volume", f"{unlisted} volumes are not in {path.name}, and not used", remedy))
    problems += _twice(lines)
    return problems


def _set(line: Line, row: dict[str, str], number: int, vocabulary: Vocabulary) -> list[Problem]:
    use = _USE.get(row.get("use", "").lower())
    if use is None:
        return [
            Problem(number, "use", f"{row.get('use', '')!r} is neither yes nor no", "Write yes or no; it is not used")
        ]
    modality = row.get("modality") or None
    organs = [o.name for o in vocabulary.organs.values() if modality in o.modalities]
    organ = row.get("organ") or (organs[0] if len(organs) == 1 else None)
    if use and organ not in organs:
        problem = f"'{modality or ''}' is not a modality of {organ or 'one organ of the vocabulary'}"
        return [
            Problem(number, "modality", problem, nearest(modality or "", vocabulary.modalities) + "; it is not used")
        ]
    if (modality, organ) != (line.choice.modality, line.choice.organ):
        line.choice = Choice(modality, organ, 1.0, "said in the review")
    line.use = use
    return []


def _twice(lines: Sequence[Line]) -> list[Problem]:
    """A study has one volume of a modality: where the review wants two, the first is used."""
    problems, first = list[Problem](), dict[tuple[str, str | None], Line]()
    for line in lines:
        if line.use and first.setdefault((line.study_id, line.choice.modality), line) is not line:
            line.use = False
            problem = f"{line.key} is a second {line.choice.modality} of study {line.study_id}, and not used"
            problems.append(Problem(None, "use", problem, "Say yes to one of them"))
    return problems


def to_csv(lines: Sequence[Line]) -> str:
    """The review as CSV, in the order of the lines."""
    made = io.StringIO(newline="")
    writer = csv.DictWriter(made, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(line.cells() for line in lines)
    return made.getvalue()


def table(lines: Sequence[Line]) -> Table:
    """The review on the screen: what is not used, or not sure, is what a person must look at."""
    shown = Table(box=box.SIMPLE_HEAD, title="Volumes", title_justify="left", title_style="bold", pad_edge=False)
    wide = {"series": 3, "reason": 4}
    for name in ("patient", "series", "images", "modality", "sure", "use", "reason"):
        shown.add_column(name, ratio=wide.get(name), overflow="fold")
    for line in lines:
        cells = line.cells()
        names = ("patient_id", "series", "images", "modality", "confidence", "use", "reason")
        row = [cells[name] for name in names]
        shown.add_row(row[0][:8], *map(Text, row[1:]), style="" if line.use else "dim")
    return shown


def summary(lines: Sequence[Line], review_below: float) -> str:
    """One sentence: how many volumes are used, of which a person should decide."""
    used = Counter(line.use for line in lines)
    unsure = sum(1 for line in lines if not line.use and line.choice.modality and line.choice.confidence < review_below)
    waiting = f"{unsure} are too unsure (below {review_below:g}) and wait for a review"
    return f"{used[True]} of {len(lines)} volumes are used; {waiting}."
