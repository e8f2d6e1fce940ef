"""What a source finds: rows for a manifest, problems and notes; and the rules that hold whatever the source.

Rows keep absolute paths; `write.py` makes them relative. Nothing here opens a volume.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from client.manifest import SPLITS, Spacing, split_of
from client.problems import Problem, nearest
from medmap_model.vocabulary import Vocabulary

HELD_OUT = ("test", "common", "val", "train")  # where a patient goes that a source puts into several: the first


class SourceError(ValueError):
    """A folder or an option that a source cannot do anything with; the message is one sentence."""


@dataclass(frozen=True)
class Row:
    """A row of the manifest. extra: columns that training ignores. spacing_mm: where the header's is wrong."""

    patient_id: str
    study_id: str
    modality: str
    image: Path
    organ: str = ""
    abnormality: str = ""
    report: str = ""
    report_source: str = ""
    mask: Path | None = None
    site: str = ""
    split: str = ""
    spacing_mm: Spacing | None = None
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def study(self) -> tuple[str, str]:
        """What its study is told by."""
        return self.patient_id, self.study_id


@dataclass
class Found:
    """All that a source has to say. notes: what is unknown, or was left out on purpose."""

    rows: list[Row] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def say(self, problem: str, remedy: str, column: str | None = None) -> None:
        """One problem more."""
        self.problems.append(Problem(None, column, problem, remedy))

    def studies(self) -> dict[tuple[str, str], list[Row]]:
        """Rows of each study, in order."""
        grouped: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            grouped.setdefault(row.study, []).append(row)
        return grouped


def settle(found: Found, vocabulary: Vocabulary) -> Found:
    """The same, without what no manifest may hold; each thing left out is a problem or a note.

    Left out: organs and modalities that the vocabulary lacks, a modality's second volume, labels that are no class or
    contradict one another. A patient in several splits goes to the most held-out one; of several sites the first holds.
    """
    done = Found([], list(found.problems), list(found.notes))
    rows = _of_vocabulary(found.rows, vocabulary, done)
    rows = _once(rows, done)
    rows = _one_label(rows, done)
    done.rows = _one_home(rows, done)
    return done


def _of_vocabulary(rows: list[Row], vocabulary: Vocabulary, done: Found) -> list[Row]:
    kept, lacking, strange = [], Counter[str](), Counter[tuple[str, str]]()
    foreign = Counter(row.organ for row in rows if row.organ and row.organ not in vocabulary.organs)
    for organ, count in sorted(foreign.items()):
        remedy = nearest(organ, tuple(vocabulary.organs)) + "; they are left out"
        done.say(f"'{organ}' ({count} volumes) is not an organ of vocabulary {vocabulary.name}", remedy, "organ")
    for row in rows:
        if row.organ in foreign:
            continue
        owners = [o for o in vocabulary.organs.values() if row.modality in o.modalities and row.organ in ("", o.name)]
        if not owners:
            lacking[row.modality] += 1
            continue
        if row.abnormality and len(owners) == 1:
            spec = owners[0]
            if unknown := [name for name in spec.classes_of(row.abnormality) if name not in spec.abnormalities]:
                strange[unknown[0], spec.name] += 1
                row = replace(row, abnormality="")
        kept.append(row)
    if lacking:
        counts = ", ".join(f"{modality} {count}" for modality, count in sorted(lacking.items()))
        done.notes.append(f"Volumes left out, as vocabulary {vocabulary.name} has no such modality: {counts}.")
    for (name, organ), count in sorted(strange.items()):
        choices = vocabulary.organs[organ].abnormalities
        done.say(
            f"'{name}' ({count} volumes) is not an abnormality of the {organ}", nearest(name, choices), "abnormality"
        )
    return kept


def _once(rows: list[Row], done: Found) -> list[Row]:
    kept: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        first = kept.setdefault((*row.study, row.modality), row)
        if first is not row:
            problem = (
                f"{row.image}: study {row.study_id} of patient {row.patient_id} has {row.modality} in {first.image}"
            )
            done.say(problem, "The first is used; remove one, or keep them in two studies", "modality")
    return list(kept.values())


def _one_label(rows: list[Row], done: Found) -> list[Row]:
    labels: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.abnormality and row.abnormality not in labels.setdefault(row.study, []):
            labels[row.study].append(row.abnormality)
    for (patient, study), said in labels.items():
        if len(said) > 1:
            problem = f"Study {study} of patient {patient} is called {' and '.join(said)}"
            done.say(problem, "It is used without a label; correct the label's source", "abnormality")
    agreed = {study: said[0] for study, said in labels.items() if len(said) == 1}
    return [replace(row, abnormality=agreed.get(row.study, "")) for row in rows]


def _one_home(rows: list[Row], done: Found) -> list[Row]:
    """Each patient in one split and one site; where only some have a split, the others get theirs by the hash."""
    homes: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        home = homes.setdefault(row.patient_id, {"split": [], "site": []})
        for name, said in home.items():
            if (value := getattr(row, name)) and value not in said:
                said.append(value)
    for split in dict.fromkeys(s for home in homes.values() for s in home["split"] if s not in SPLITS):
        done.say(f"'{split}' is not a split", nearest(split, SPLITS), "split")
    divided = any(set(home["split"]) & set(SPLITS) for home in homes.values())
    hashed, chosen = 0, dict[str, tuple[str, str]]()
    for patient, home in homes.items():
        splits = [split for split in HELD_OUT if split in home["split"]]
        site = home["site"][0] if home["site"] else ""
        split = splits[0] if splits else split_of(patient) if divided else ""
        hashed += divided and not splits
        chosen[patient] = split, site
        for name, said, taken in (("split", splits, split), ("site", home["site"], site)):
            if len(said) > 1:
                problem = f"Patient {patient} is in {name} {' and '.join(said)}"
                done.say(problem, f"All of the patient goes to {taken}; correct the source to change that", name)
    if hashed:
        done.notes.append(f"Patients without a split, divided 70/10/20 by a hash of their id: {hashed}.")
    return [replace(row, split=chosen[row.patient_id][0], site=chosen[row.patient_id][1]) for row in rows]
