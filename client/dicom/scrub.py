"""A report's text in, the same without names, dates, ids, telephone numbers and institutions out, each replaced by `___`.

What the study's own headers say (the patient, the physicians, the hospital, the numbers) is taken out wherever it stands;
patterns (configs/dicom/scrub.yaml) find what headers do not know. No method finds everything: a person reads a sample.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache

import yaml

from configs import ROOT
from medmap_model.vocabulary import Vocabulary

MARK = "___"
_SHORT = 3  # letters of a name below which only the exact, capitalised word counts
_TIME = r"(?:[T ]\d\d:\d\d(?::\d\d)?(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d)?)?"
_DATES = (  # a whole year may stand against anything, such as the other end of a span; two digits of it against little
    re.compile(rf"(?<!\d)((?:19|20)\d\d)([./-]) ?(\d{{1,2}})\2 ?(\d{{1,2}})(?!\d){_TIME}"),
    re.compile(rf"(?<!\d)(\d{{1,2}}) ?([./-]) ?(\d{{1,2}}) ?\2 ?((?:19|20)\d\d)(?!\d){_TIME}"),
    re.compile(r"(?<![\d.,/-])(\d{1,2})([./-])(\d{1,2})\2(\d\d)(?![\d/-]|[.,]\d)"),
)
# What a pattern's NAME stands for.
_PART = r"[^\W\d_a-zäöüß][\w'’-]*"
_NAME = (
    rf"(?:[^\W\d_a-z]\.[ ]?){{0,3}}(?:(?:van|von|de|der|den|del|della|di|da|dos|la|le|el|ten|ter|zu|bin)[ ])*{_PART}"
    rf"(?:[ ]+(?:(?:van|von|de|der|den|del|della|di|da|dos|la|le|y|e|i)[ ])*{_PART}){{0,2}}"
)
_ENDINGS = "es|en|a|ą|ę|u|y|em|ie|owi|ego|emu|ej|а|у|ы|е|ом|ой|ым|ого|ому"  # what cases put at the end of a name
_GERMAN = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "ø": "oe", "å": "aa", "æ": "ae"})


@dataclass
class Known:
    """What headers say of one study that must not stand in its report."""

    names: set[str] = field(default_factory=set)
    places: set[str] = field(default_factory=set)
    numbers: set[str] = field(default_factory=set)


def scrub(report: str, known: Known, ordinary: frozenset[str]) -> str:
    """ordinary: words in small letters that are no name unless they begin with a capital."""
    text = unicodedata.normalize("NFC", report)
    places = {p for p in known.places if any(w.lower() not in ordinary for w in re.findall(r"\w+", p))}  # not "MRI"
    for pattern in (*_literals(known.numbers), *_literals(places)):
        text = pattern.sub(MARK, text)
    for date in _DATES:
        text = date.sub(lambda m: MARK if _is_date(m[1], m[3], m[4]) else m[0], text)
    for pattern in _patterns():
        text = pattern.sub(_kept_blanks, text)
    for pattern in _names(known.names, ordinary):
        text = pattern.sub(MARK, text)
    return re.sub(rf"{MARK}([ ,]*{MARK})+", MARK, text)


def ordinary_words(vocabulary: Vocabulary) -> frozenset[str]:
    """The words of a vocabulary's public texts, and those of scrub.yaml."""
    words = set(_rules()["words"])
    for organ in vocabulary.organs.values():
        attributes = [t for said in organ.attributes.values() for texts in said.values() for t in texts]
        prompts = [t for texts in organ.prompts.values() for t in texts]
        for said in (*attributes, *prompts, *organ.names.values(), *organ.modality_texts.values(), organ.query):
            words |= {w.lower() for w in re.findall(r"[^\W\d_]+", said)}
    return frozenset(words)


def _kept_blanks(match: re.Match[str]) -> str:
    """The mark, with the blank or comma that a pattern took along at its end."""
    taken = match[0]
    return MARK + taken[len(taken.rstrip(" ,")) :]


def _is_date(first: str, second: str, third: str) -> bool:
    """Day, month and year in any order that people write."""
    a, b, c = int(first), int(second), int(third)
    if len(first) == 4:
        return 1 <= b <= 12 and 1 <= c <= 31
    return len(first) <= 2 and min(a, b) in range(1, 13) and 1 <= max(a, b) <= 31


@cache
def _rules() -> dict[str, list[str]]:
    return dict(yaml.safe_load((ROOT / "dicom" / "scrub.yaml").read_text(encoding="utf-8")))


@cache
def _patterns() -> tuple[re.Pattern[str], ...]:
    rules = _rules()
    month, abroad = rf"(?:{rules['months']})", rf"(?:{rules['months_abroad']})"
    dates = (
        rf"\b\d{{1,2}}(?:st|nd|rd|th|\.)?[ -](?:of )?{month}\b\.?,?[ -]?(?:(?:19|20)?\d\d\b)?",
        rf"\b{month}\b\.? \d{{1,2}}(?:st|nd|rd|th)?\b(?:,? (?:19|20)\d\d)?",
        rf"\b{month}\b\.?,? (?:19|20)\d\d\b",
        rf"\b\d{{1,2}}{month}(?:19|20)?\d\d\b",
        rf"\b\d{{1,2}}[º.]?[ -](?:de |di |d['’])?{abroad}\b(?:[ -](?:de |del |di )?(?:19|20)\d\d\b)?",
        rf"\b{abroad}\b (?:de |del |di )?(?:19|20)\d\d\b",
    )
    folded = [re.compile(p, re.IGNORECASE | re.MULTILINE) for p in (*rules["folded"], *dates)]
    return (*(re.compile(p.replace("NAME", f"(?:{_NAME})")) for p in rules["cased"]), *folded)


def _literals(values: Iterable[str]) -> Iterator[re.Pattern[str]]:
    """Each value as it is, longest first, and the long numbers inside it; blanks may be any."""
    whole = {v for value in values if len(v := value.strip()) >= 3 and re.search(r"\w", v)}
    whole |= {_bare(value) for value in whole}
    inner = {n for value in whole for n in re.findall(r"\d{5,}", value)}
    for value in sorted(whole | inner, key=len, reverse=True):
        body = r"\s+".join(map(re.escape, value.split()))
        yield re.compile(rf"(?<!\w){body}(?!\w)", re.IGNORECASE)


def _names(names: Iterable[str], ordinary: frozenset[str]) -> Iterator[re.Pattern[str]]:
    """Every part of every name, longest first, in its usual spellings."""
    parts: set[str] = set()
    for name in names:
        for part in re.split(r"[\^=\\\s,.;()/]+", unicodedata.normalize("NFC", name)):
            parts |= {part, *(p for p in re.split(r"[-'’]", part) if len(p) > _SHORT)}
    parts = {p for p in parts if len(p) > 1 and p.lower() not in _rules()["titles"] and re.search(r"[^\W\d_]", p)}
    spelt = {variant for part in parts for variant in _spellings(part)}
    for part in sorted(spelt, key=lambda p: (-len(p), p)):
        body = re.escape(part)
        if not part.isascii() and unicodedata.category(part[0]) == "Lo":  # scripts without blanks between words
            yield re.compile(body)
        elif part.lower() in ordinary or len(part) <= _SHORT:
            forms = "|".join(re.escape(form) for form in {part.capitalize(), part.upper(), part.title()})
            yield re.compile(rf"(?<![\w-])(?:{forms})(?![\w-])")
        else:
            yield re.compile(rf"(?<![^\W_]){body}(?:['’]?s|{_ENDINGS})?(?![^\W_])", re.IGNORECASE)


def _spellings(part: str) -> set[str]:
    """As it is, without accents, and as German writes umlauts on a foreign keyboard."""
    return {part, _bare(part).replace("ß", "ss"), part.lower().translate(_GERMAN)}


def _bare(words: str) -> str:
    """Without accents."""
    return "".join(c for c in unicodedata.normalize("NFKD", words) if not unicodedata.combining(c))
