"""Hard negatives: a report in, the same report with a side or one negation turned out, which the images contradict.

Frozen sentence encoders put such pairs almost on one point (`benchmarks.text`), so nothing else teaches the difference.
Rules for English alone; another language has no negatives.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

from medmap_model.text.sides import swap_sides

# What is there or not, as radiologists put it.
_NOUN = (
    r"(?:hyper|hypo)?enhancement|uptake|washout|o?edema|mass effect|restricted diffusion|diffusion restriction"
    r"|necrosis|ha?emorrhage|midline shift|signal drop|fill-in|capsule"
)
_COUNTED = r"(?:(?:mass|focal|space-occupying) )*(?:lesion|mass|nodule|tumou?r)(?! effect)"
# No adjectives: what may stand before a noun of the list without describing it, or a verb.
_STOP = (
    r"(?:an?|the|no|not|it|its|this|that|these|there|in|on|of|at|by|from|after|with|without|and|or|but|then|is|are|was"
    r"|were|has|shows?|seen|suggests?|for|impression|conclusion|findings)\b"
)
_ADJECTIVES = rf"(?:(?!{_STOP})[\w-]+ ){{0,3}}?"
_PHRASE = rf"{_ADJECTIVES}(?:{_NOUN})\b"
_EVIDENT = rf"(?:an? )?{_ADJECTIVES}(?:{_NOUN}|{_COUNTED})\b"
_START = r"(?:\A|(?<=[.;:!?]\s)|(?<=\n))"
# Verb in the third person -> infinitive.
_VERBS = {"enhances": "enhance", "washes out": "wash out", "loses signal": "lose signal", "fills in": "fill in"}
_STATES = r"enhancing|displaced|o?edematous|restricted|necrotic|compressed|effaced|encapsulated"
_Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], str]]


def hard_negatives(text: str) -> tuple[str, ...]:
    """The report with sides swapped, and with one negation turned; without those that cannot be made. Never the text itself."""
    return tuple(turned for turn in TURNS if (turned := turn(text)) is not None)


def side_negative(text: str) -> str | None:
    """Left and right swapped; None where no side is named or only both together ("left and right lobes")."""
    both = r"\b(?:left|right|lt|rt)\b\.? ?(?:and|or|to|/|-|&) ?(?:the )?(?:left|right|lt|rt)\b"
    parts = re.split(f"({both})", text, flags=re.IGNORECASE)
    turned = "".join(part if i % 2 else swap_sides(part) for i, part in enumerate(parts))
    return turned if turned != text else None


def negation_negative(text: str) -> str | None:
    """One statement turned into its opposite: "No enhancement" <-> "Enhancement", "with washout" <-> "without washout".

    Of several statements the text's hash chooses, so that over many reports every kind is met. None where none applies.
    """
    turned = _turned(text)
    if not turned:
        return None
    return turned[int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % len(turned)]


def _turned(text: str) -> list[str]:
    """The text with each turnable statement turned, in the order of the statements."""
    found: dict[tuple[int, int], str] = {}
    for pattern, replacement in _RULES:
        for match in pattern.finditer(text):
            start, end = match.span()
            if all(end <= a or b <= start for a, b in found):  # of rules that overlap the first has its way
                found[start, end] = text[:start] + replacement(match) + text[end:]
    return [found[span] for span in sorted(found)]


def _rule(pattern: str, replacement: Callable[[re.Match[str]], str]) -> _Rule:
    return re.compile(pattern, re.IGNORECASE), replacement


def _article(word: str) -> str:
    return "an" if word[:1].lower() in "aeiou" else "a"


def _like(word: str, text: str) -> str:
    """The text with its first letter as large as the word's."""
    return text[:1].upper() + text[1:] if word[:1].isupper() else text


def _lowered(text: str) -> str:
    """Without the capital of a sentence's start; abbreviations keep theirs."""
    return text if text[1:2].isupper() or text[1:2].isdigit() else text[:1].lower() + text[1:]


def _enhancing(m: re.Match[str]) -> str:
    article, negated, word = m[1], m[2], m[3]
    new = word if negated else f"non-{word}"
    return new if not article else f"{_like(article, _article(new))} {new}"


_RULES: tuple[_Rule, ...] = (
    _rule(rf"\bno evidence of (?={_EVIDENT})", lambda m: _like(m[0], "evidence of ")),
    _rule(rf"(?<!no )\bevidence of (?={_EVIDENT})", lambda m: _like(m[0], "no evidence of ")),
    _rule(
        rf"\bthere is no ({_ADJECTIVES}{_COUNTED})\b", lambda m: f"{_like(m[0], 'there is')} {_article(m[1])} {m[1]}"
    ),
    _rule(rf"\bthere is (?={_PHRASE})", lambda m: _like(m[0], "there is no ")),
    _rule(rf"\bno ({_PHRASE}|{_ADJECTIVES}{_COUNTED}\b)", lambda m: _like(m[0], m[1])),
    _rule(rf"\bwithout (?:an? |any )?({_ADJECTIVES}{_COUNTED})\b", lambda m: f"with {_article(m[1])} {m[1]}"),
    _rule(rf"\bwithout (?:any )?(?={_PHRASE})", lambda m: "with "),
    _rule(rf"\bwith (?:an? )?(?={_PHRASE})", lambda m: "without "),
    _rule(rf"{_START}({_PHRASE})(?! (?:is|are) (?:absent|present|not)\b)", lambda m: f"No {_lowered(m[1])}"),
    _rule(
        rf"\bdoes not ({'|'.join(_VERBS.values())})\b",
        lambda m: next(third for third, verb in _VERBS.items() if verb == m[1].lower()),
    ),
    _rule(rf"\b({'|'.join(_VERBS)})\b", lambda m: f"does not {_VERBS[m[1].lower()]}"),
    _rule(r"\bdoes not appear restricted\b", lambda m: "appears restricted"),
    _rule(r"\bappears restricted\b", lambda m: "does not appear restricted"),
    _rule(r"\bdoes not suggest restricted\b", lambda m: "suggests restricted"),
    _rule(r"\bsuggests restricted\b", lambda m: "does not suggest restricted"),
    _rule(rf"\b(is|are|was|were) not ({_STATES})\b", lambda m: f"{m[1]} {m[2]}"),
    _rule(rf"\b(is|are|was|were) ({_STATES})\b", lambda m: f"{m[1]} not {m[2]}"),
    _rule(r"(?<![\w-])(?:(an?) )?(non-?)?(enhancing)\b", _enhancing),
    _rule(r"\b(is|are) absent\b", lambda m: f"{m[1]} present"),
    _rule(r"\b(is|are) present\b", lambda m: f"{m[1]} absent"),
)

# The slots of `Batch.negatives`, in this order.
TURNS: tuple[Callable[[str], str | None], ...] = (side_negative, negation_negative)
