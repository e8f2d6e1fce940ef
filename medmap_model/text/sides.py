"""Side words of English reports: the one table that mirrored reports and hard negatives both go by; text in, text out."""

from __future__ import annotations

import re

SIDES = {"left": "right", "right": "left", "lt": "rt", "rt": "lt"}
_SIDE = re.compile(r"\b(left|right|lt|rt)(?=(?:wards?|most)?\b)", re.IGNORECASE)


def swap_sides(text: str) -> str:
    """The text with left and right swapped, the case of letters kept; the same text where there is no side word."""
    return _SIDE.sub(lambda m: _cased(SIDES[m[1].lower()], m[1]), text)


def _cased(word: str, like: str) -> str:
    return word.upper() if like.isupper() else word.capitalize() if like[0].isupper() else word
