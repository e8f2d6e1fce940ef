"""What a JSON value may be: small checks, and objects of them. A check takes a value and says whether it is of its shape."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]
NAME, DIGITS = re.compile(r"[\w+./ -]{1,64}"), re.compile(r"[0-9]{1,9}")
_ENTRIES = 4096  # of one object, more than any federation has of anything


def text(value: Any) -> bool:
    """A name: of a site, a modality, a module group."""
    return isinstance(value, str) and bool(NAME.fullmatch(value))


def whole(value: Any) -> bool:
    """A whole number, not a truth value."""
    return type(value) is int and abs(value) < 2**63


def count(value: Any) -> bool:
    """How many of something that a hospital has."""
    return whole(value) and 0 <= value < 10_000_000


def number(value: Any) -> bool:
    """A finite number."""
    return type(value) in (int, float) and math.isfinite(value)


def hexadecimal(most: int) -> Check:
    """At most so many hexadecimal digits."""
    return lambda value: isinstance(value, str) and len(value) <= most and bool(re.fullmatch("[0-9a-f]*", value))


def counts(*depths: int) -> Check:
    """Whole numbers in lists, nested as deep as one of these."""

    def nested(value: Any, depth: int) -> bool:
        if depth == 0:
            return whole(value)
        return isinstance(value, list) and len(value) <= _ENTRIES and all(nested(v, depth - 1) for v in value)

    return lambda value: any(nested(value, depth) for depth in depths)


def table(*checks: Check, keys: re.Pattern[str] = NAME) -> Check:
    """An object with names that are held against what may be named elsewhere, each value passing one of the checks."""
    return lambda value: (
        isinstance(value, dict)
        and len(value) <= _ENTRIES
        and all(keys.fullmatch(k) and any(check(v) for check in checks) for k, v in value.items())
    )


def fields(known: Mapping[str, Check], *, optional: frozenset[str] = frozenset()) -> Check:
    """An object with these names and no other, each value passing its check."""
    return lambda value: (
        isinstance(value, dict)
        and known.keys() - optional <= value.keys() <= known.keys()
        and all(known[name](v) for name, v in value.items())
    )
