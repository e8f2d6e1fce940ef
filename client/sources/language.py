"""Reports in a language model's words: what is known of a study in, a text out that says nothing else, or none.

A writer is any function from facts to texts (`language_writers.py` makes two). Each text is compared with its facts here: a
number, side, signal or diagnosis that was not given makes it void. What is left is marked `generated`.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from medmap_model.vocabulary import Vocabulary

INSTRUCTION = "Write each finding as a sentence. Add nothing."
# Findings and a text. No vocabulary has this organ, so that a text that copies one of these is found out.
EXAMPLES = (
    (("No focal lesion of the kidney is marked",), "There is no focal lesion in the kidney."),
    (
        (
            "2 focal lesions, the largest in the right superior part of the kidney",
            "12 x 15 x 11 mm, 1.4 mL in all",
            "hypointense on OutPhase",
            "hyperintense on T2, DWI and FLAIR",
            "isointense on T1 and InPhase",
        ),
        "There are 2 focal lesions, the largest in the right superior part of the kidney. It measures 12 x 15 x 11 mm, "
        "and the volume in all is 1.4 mL. It is hypointense on OutPhase. It is hyperintense on T2, DWI and FLAIR. It is "
        "isointense on T1 and InPhase.",
    ),
    (
        (
            "Focal lesion in the left inferior part of the kidney",
            "21 x 17 x 26 mm, 5.3 mL in all",
            "markedly hyperintense on T2 and DWI",
            "isointense on T1",
        ),
        "There is a focal lesion in the left inferior part of the kidney. It measures 21 x 17 x 26 mm, with a volume of "
        "5.3 mL. It is markedly hyperintense on T2 and DWI. It is isointense on T1.",
    ),
)
FAULTS = {
    "empty": "says nothing",
    "echo": "repeats what the model was given",
    "number": "has a number that was not measured",
    "claim": "says what was not measured",
    "signal": "gives a sequence another signal",
}
_FEWEST = 4  # words of a report, units and the like not counted
_LONGEST = 2000  # characters that are looked at
_COUNTS = {w: str(n) for n, w in enumerate(("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), 2)}
_NUMBER = r"\d+(?:\.\d+)?"
_QUANTITY = re.compile(rf"(?<![\w.+-])({_NUMBER}(?:\s*(?:x|×|by)\s*{_NUMBER})*)\s*-?\s*(mm|cm|ml|cc|l|%)?(?!\w)")
_SIGNAL = re.compile(r"(markedly\s+)?(hyper|hypo|iso)-?\s?intens\w+")
_CLAIM = re.compile(
    r"\b(?:left|right|bilateral\w*|both|midline|central\w*|anterior\w*|posterior\w*|superior\w*|inferior\w*|upper|lower"
    r"|lateral\w*|medial\w*|frontal|temporal|parietal|occipital|cerebell\w+|lobes?|segments?|kidneys?|single|solitary"
    r"|multiple|several|lesions|no|not|none|without|normal\w*|abnormal\w*|unremarkable|absen\w+|negative|bright\w*|dark\w*"
    r"|enhanc\w+|o?edema\w*|necro\w+|restrict\w+|washout|ring|rim|ha?emorrh\w+|diffus\w+|mass\w*|\w+omas?|cysts?|cystic"
    r"|abscess\w*|metasta\w+|tumou?rs?|cancer\w*|neoplas\w+|malignan\w+|benign|infarct\w*|strokes?|hyperplas\w+)\b"
)
_KEPT = ("no", "lesions")  # without them a text says the contrary of facts that have them


@dataclass(frozen=True)
class Facts:
    """All that a writer is given of a study: no id, no name of a file.

    findings: what was measured, a line each. label: the class in words, where the site chose to tell it; else empty.
    """

    organ: str
    modalities: tuple[str, ...]
    findings: tuple[str, ...]
    label: str = ""

    @property
    def lines(self) -> tuple[str, ...]:
        """The findings, and the label where it is told."""
        return (*self.findings, f"Diagnosis: {self.label}") if self.label else self.findings


Writer = Callable[[Sequence[Facts]], list[str]]  # a text for each of the facts, in their order; raises SourceError


def generate(writer: Writer, facts: Sequence[Facts], vocabulary: Vocabulary) -> tuple[list[str], Counter[str]]:
    """(N,) texts, '' where the writer's is void; and how many are void by which of `FAULTS`. Raises SourceError."""
    texts, faults = [], Counter[str]()
    for one, raw in zip(facts, writer(facts), strict=True):
        text = trimmed(raw, most=len(one.lines))
        if why := fault(text, one, vocabulary):
            faults[why] += 1
        texts.append("" if why else text)
    return texts, faults


def trimmed(text: str, *, most: int) -> str:
    """Its first whole sentences on one line, at most so many, up to one that comes again.

    A small model that has said everything goes on with inventions or says it again.
    """
    kept: list[str] = []
    for sentence in re.findall(r"\S.*?[.!?](?=\s|$)", " ".join(text.split())[:_LONGEST])[:most]:
        if sentence in kept:
            break
        kept.append(sentence)
    return " ".join(kept)


def fault(text: str, facts: Facts, vocabulary: Vocabulary) -> str:
    """Which of `FAULTS` makes a text void; '' where none does.

    Seen: numbers and their units, words that claim something, names of sequences and classes, which signal a sequence has.
    Not seen: a claim in words that are not on the list, a number in the wrong place.
    """
    said, known = _plain(text), _plain(f"{'. '.join(facts.lines)}. {facts.organ}: {', '.join(facts.modalities)}.")
    if len(re.findall(r"[a-z]{3,}", said)) < _FEWEST:
        return "empty"
    if _plain(INSTRUCTION).rstrip(".") in said or _words(said) == _words(_plain(" ".join(facts.lines))):
        return "echo"
    amounts = _amounts(known)
    if _amounts(said) - amounts - {(number, "") for number, _ in amounts}:
        return "number"
    sequences, classes = _sequences(vocabulary.modalities), _classes(vocabulary)
    claims, allowed = (
        {match[0] for pattern in (_CLAIM, sequences, classes) for match in pattern.finditer(t)} for t in (said, known)
    )
    if claims - allowed or any(word in allowed - claims for word in _KEPT):
        return "claim"
    return "signal" if _signals(said, sequences) - _signals(known, sequences) else ""


def _plain(text: str) -> str:
    """Lower case, number words as digits."""
    return re.sub(r"[a-z]+", lambda m: _COUNTS.get(m[0], m[0]), text.casefold())


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def _amounts(text: str) -> set[tuple[str, str]]:
    """(number, unit) of all that is counted or measured."""
    return {(number, m[2] or "") for m in _QUANTITY.finditer(text) for number in re.findall(_NUMBER, m[1])}


def _any(names: Collection[str]) -> str:
    return "|".join(re.escape(name.casefold()) for name in sorted(names, key=lambda n: (-len(n), n)))


@functools.cache
def _sequences(names: tuple[str, ...]) -> re.Pattern[str]:
    """Names of modalities, and what looks like one."""
    return re.compile(rf"(?<![\w+-])(?:(?:{_any(names)})(?![\w+-])|[a-z]+\d\w*|c[+-]\w+)")


def _classes(vocabulary: Vocabulary) -> re.Pattern[str]:
    """Names of classes, as in a manifest and as spoken."""
    names = {n for organ in vocabulary.organs.values() for c in organ.abnormalities for n in (c, organ.spoken(c))}
    return re.compile(rf"(?<!\w)(?:{_any(names)})(?!\w)")


def _signals(text: str, sequences: re.Pattern[str]) -> set[tuple[str, str]]:
    """(sequence, signal) as each clause says; a marked signal is a plain one too.

    `Hyperintense on T2 and FLAIR`: names after a signal have it. `T1 is hypointense, T2 hyperintense`: those before it.
    """
    pairs: set[tuple[str, str]] = set()
    for clause in re.split(r"[;.](?:\s|$)", text):
        marks = sorted([*_SIGNAL.finditer(clause), *sequences.finditer(clause)], key=lambda mark: mark.start())
        names_first = bool(marks) and marks[0].re is sequences
        waiting, signal = list[str](), ""
        for mark in marks:
            if mark.re is _SIGNAL:
                signal = f"{'markedly ' if mark[1] else ''}{mark[2]}"
                pairs |= {(name, signal) for name in waiting}
                waiting = []
            elif names_first:
                waiting.append(mark[0])
            else:
                pairs.add((mark[0], signal))
    return pairs | {(name, signal.removeprefix("markedly ")) for name, signal in pairs}
