"""A volume's facts and a rule book (configs/dicom/rules.yaml) in; its modality, how sure that is and why out."""

from __future__ import annotations

import math
import re
from dataclasses import MISSING, dataclass, replace
from pathlib import Path

from client.dicom.headers import number, text
from client.dicom.index import Series
from client.dicom.parts import Part
from configs import ROOT
from configs.documents import read_document
from configs.setting import ConfigError, setting

DYNAMIC = "dynamic"  # the modality of a rule that leaves the phase to phases.py
_UNKNOWN = 0.9  # confidence times this: the header does not say what a rule expects
_OTHERWISE = 0.5  # says otherwise
_DERIVED = 0.9  # the image is not an original one
_FAT_HZ_PER_T = 3.4 * 42.577  # 3.4 ppm between fat and water
_NO_AGENT = re.compile(r"no|none|n/?a|without|0|-*", re.IGNORECASE)
_UNITS = {"tr_ms": "TR {:g} ms", "te_ms": "TE {:g} ms", "ti_ms": "TI {:g} ms", "b_value": "b {:g}", "flip_deg": "flip angle {:g}",
          "fat_phase": "fat phase {:.2f}"}  # fmt: skip


@dataclass(frozen=True)
class Range:
    """Closed; an end that is not given is open."""

    at_least: float | None = setting(None, "the smallest value")
    at_most: float | None = setting(None, "the largest value")
    best: float | None = setting(None, "of several volumes of a study, the nearest to it is used")

    def __contains__(self, value: float) -> bool:
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


@dataclass(frozen=True)
class Condition:
    """All that is given must hold."""

    words: str | None = setting(None, "found in description or protocol")
    not_words: str | None = setting(None, "not found there")
    sequence: str | None = setting(None, "found in the sequence's names")
    image_type: str | None = setting(None, "found in the image type")
    not_image_type: str | None = setting(None, "not found there")
    contrast: bool | None = setting(None, "with contrast, or without")
    tr_ms: Range | None = setting(None, "repetition time")
    te_ms: Range | None = setting(None, "echo time")
    ti_ms: Range | None = setting(None, "inversion time")
    b_value: Range | None = setting(None, "diffusion weighting, s/mm2")
    flip_deg: Range | None = setting(None, "flip angle")
    fat_phase: Range | None = setting(None, "cosine between fat and water at TE")

    def told(self, facts: Facts) -> list[tuple[str, bool | None]]:
        """(what a fact is, whether that holds) of each condition; None where the header does not say."""
        said: list[tuple[str, bool | None]] = []
        for name in ("words", "sequence", "image_type"):
            if (pattern := getattr(self, name)) is not None:
                match = re.search(pattern, getattr(facts, name), re.MULTILINE)
                what = f"'{match[0].strip()}' in its {_OF[name]}" if match else f"its {_OF[name]}"
                said.append((what, match is not None))
        for name in ("words", "image_type"):
            if (pattern := getattr(self, f"not_{name}")) is not None:
                said.append(("", re.search(pattern, getattr(facts, name), re.MULTILINE) is None))
        if self.contrast is not None:
            said.append(("with contrast" if facts.contrast else "no contrast named", facts.contrast == self.contrast))
        for name, form in _UNITS.items():
            if (wanted := getattr(self, name)) is not None:
                value = getattr(facts, name)
                said.append((f"no {name} given", None) if value is None else (form.format(value), value in wanted))
        return said


_PATTERNS = ("words", "not_words", "sequence", "image_type", "not_image_type")
_OF = {"words": "name", "sequence": "sequence", "image_type": "image type"}


@dataclass(frozen=True)
class Contrast:
    """What a name says of contrast; where it says neither, the header's contrast agent decides."""

    words: str = setting(MISSING, "with")
    not_words: str = setting(MISSING, "without")


@dataclass(frozen=True)
class Place:
    """Where an organ is told."""

    organ: str = setting(MISSING, "an organ of the vocabulary")
    place: str = setting(MISSING, "found in body part, series or protocol name, else in the study's")


@dataclass(frozen=True)
class Ignored:
    """What is not used."""

    why: str = setting(MISSING, "for the review table")
    when: Condition = setting(MISSING, "conditions")


@dataclass(frozen=True)
class Rule:
    """One modality."""

    modality: str = setting(MISSING, "a modality of the vocabulary, or dynamic")
    organ: str = setting(MISSING, "its organ")
    when: Condition = setting(MISSING, "conditions that decide")
    confidence: float = setting(MISSING, "of the decision", minimum=0, maximum=1)
    expect: Condition | None = setting(None, "conditions that make it more or less sure")


@dataclass(frozen=True)
class Phase:
    """One phase of a dynamic series."""

    modality: str = setting(MISSING, "what the phase is called in the vocabulary")
    words: str = setting(MISSING, "found in description or protocol")
    after_s: Range | None = setting(None, "seconds since the contrast agent; none: before it")
    typical_s: float = setting(0.0, "the best of them")


@dataclass(frozen=True)
class RuleBook:
    """A whole rules.yaml."""

    review_below: float = setting(MISSING, "confidence below which a person must look", minimum=0, maximum=1)
    contrast: Contrast = setting(MISSING, "words of contrast")
    organs: tuple[Place, ...] = setting(MISSING, "in order")
    rules: tuple[Rule, ...] = setting(MISSING, "in order")
    phases: tuple[Phase, ...] = setting(MISSING, "in order of time")
    ignored: tuple[Ignored, ...] = setting((), "in order")


@dataclass(frozen=True)
class Facts:
    """What rules may ask about a volume; texts in small letters, None where the header does not say.

    place: what says where the series belongs, with the body part (`part`) in it; study: what only the exam's name says.
    """

    words: str
    place: str
    study: str
    part: str
    sequence: str
    image_type: str
    contrast: bool
    tr_ms: float | None = None
    te_ms: float | None = None
    ti_ms: float | None = None
    b_value: float | None = None
    flip_deg: float | None = None
    fat_phase: float | None = None


@dataclass(frozen=True)
class Choice:
    """What a volume is. modality None: no rule holds.

    Where several are one: distance, from the best of its kind; earlier: the first in time is taken, not the last.
    """

    modality: str | None
    organ: str | None
    confidence: float
    reason: str
    distance: float = 0.0
    earlier: bool = False


def read_rules(path: Path | None = None) -> RuleBook:
    """The rule book that comes with MedMAP-FL, or one of the hospital's. Raises ConfigError: file, line, what to do."""
    path = path or ROOT / "dicom" / "rules.yaml"
    book = read_document(path, RuleBook)
    if len(book.phases) < 2 and any(rule.modality == DYNAMIC for rule in book.rules):
        raise ConfigError(f"{path}: a rule says {DYNAMIC}, but `phases` has no two: add them, in the order of time")
    conditions = [rule.when for rule in book.rules] + [entry.when for entry in book.ignored]
    conditions += [rule.expect for rule in book.rules if rule.expect is not None]
    patterns = [getattr(c, name) for c in conditions for name in _PATTERNS]
    patterns += [book.contrast.words, book.contrast.not_words]
    patterns += [*(p.place for p in book.organs), *(p.words for p in book.phases)]
    for pattern in patterns:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ConfigError(f"{path}: {pattern!r} is not a regular expression ({error}): mend it") from None
    return book


def facts_of_series(series: Series, book: RuleBook) -> Facts:
    """What the header of a series says; no number that its volumes may differ in."""
    ds = series.header
    words = _plain("\n".join(text(ds, k) for k in ("SeriesDescription", "ProtocolName", "AcquisitionContrast")))
    agent = bool(ds.get("ContrastBolusAgentSequence")) or not _NO_AGENT.fullmatch(text(ds, "ContrastBolusAgent"))
    without = re.search(book.contrast.not_words, words, re.MULTILINE) is not None
    return Facts(
        words=words,
        place=_plain(text(ds, "BodyPartExamined", "SeriesDescription", "ProtocolName")),
        study=_plain(text(ds, "StudyDescription")),
        part=_plain(text(ds, "BodyPartExamined")),
        sequence=_plain(
            text(ds, "SequenceName", "PulseSequenceName", "ScanningSequence", "SequenceVariant", "ScanOptions")
        ),
        image_type=types.pop() if len(types := {i.image_type for i in series.images}) == 1 else "",
        contrast=not without and (agent or re.search(book.contrast.words, words, re.MULTILINE) is not None),
    )


def facts_of(part: Part, book: RuleBook) -> Facts:
    """What the header says of one volume of a series."""
    ds, common = part.series.header, facts_of_series(part.series, book)
    shared = (ds.get("SharedFunctionalGroupsSequence") or [ds])[0]
    timing = (shared.get("MRTimingAndRelatedParametersSequence") or [ds])[0]
    modifier = (shared.get("MRModifierSequence") or [ds])[0]
    field_t, te_ms = number(ds.get("MagneticFieldStrength")), part.te_ms
    return replace(
        common,
        image_type=part.images[0].image_type,
        tr_ms=number(timing.get("RepetitionTime")) or number(ds.get("RepetitionTime")),
        te_ms=te_ms,
        ti_ms=number(modifier.get("InversionTimes")) or number(ds.get("InversionTime")) or None,
        b_value=part.images[0].b_value,
        flip_deg=number(timing.get("FlipAngle")),
        fat_phase=math.cos(2e-3 * math.pi * te_ms * _FAT_HZ_PER_T * field_t) if te_ms and field_t else None,
    )


def ignored(facts: Facts, book: RuleBook) -> str | None:
    """Why a series is none to train on, or None."""
    for entry in book.ignored:
        if all(holds for _, holds in entry.when.told(facts)):
            return entry.why
    return None


def choose(facts: Facts, book: RuleBook, organ: str | None = None) -> Choice:
    """The first rule of the organ that holds. organ: the hospital's word, where names do not tell it."""
    named = _organ(facts.place, book)
    told = named or _organ(facts.study, book)
    organ = told or organ
    for rule in book.rules:
        if organ not in (None, rule.organ):
            continue
        said = rule.when.told(facts)
        if not all(holds for _, holds in said):
            continue
        confidence, reasons = rule.confidence, [what for what, _ in said if what]
        for what, holds in rule.expect.told(facts) if rule.expect else ():
            confidence *= 1.0 if holds else _UNKNOWN if holds is None else _OTHERWISE
            reasons.append(f"{what}, not as expected" if holds is False else what)
        if "original" not in facts.image_type:
            confidence *= _DERIVED
            reasons.append("not an original image")
        if organ is None:
            confidence *= _OTHERWISE
            reasons.append("no body part named")
        elif told and not named and facts.part:
            confidence *= _OTHERWISE
            reasons.append(f"of the {organ} by its study, but of '{facts.part}' by its body part")
        earlier = rule.when.contrast is False  # a later one may be after contrast, though nobody wrote it down
        distance = _distance(rule.when, facts)
        return Choice(rule.modality, rule.organ, round(confidence, 2), ", ".join(reasons), distance, earlier)
    return Choice(None, organ, 0.0, "no rule holds" if organ else "no rule holds, no body part named")


def _organ(words: str, book: RuleBook) -> str | None:
    return next((place.organ for place in book.organs if re.search(place.place, words)), None)


def _distance(when: Condition, facts: Facts) -> float:
    ranges = [(getattr(when, name), getattr(facts, name)) for name in _UNITS]
    return sum(abs(value - wanted.best) for wanted, value in ranges if wanted is not None and wanted.best is not None)


def _plain(words: str) -> str:
    return re.sub(r"[_^]+", " ", words.lower()).strip()
