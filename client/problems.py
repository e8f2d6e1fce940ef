"""What is wrong with a hospital's data, as objects: where, what, and what to do about it.

Problems name patients and files: they are for the hospital's own screen and log and never leave the site.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Sequence
from dataclasses import dataclass

_NEAREST = 0.5  # similarity from which a name is offered as what was meant


@dataclass(frozen=True)
class Problem:
    """One thing to mend. `row` counts as a spreadsheet does: the header is row 1."""

    row: int | None
    column: str | None
    problem: str
    remedy: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "problem", printable(self.problem))

    def __str__(self) -> str:
        place = (("row", self.row), ("column", self.column))
        where = ", ".join(f"{name} {value}" for name, value in place if value is not None)
        return f"{where}: {self.problem}. {self.remedy}." if where else f"{self.problem}. {self.remedy}."


class DataError(ValueError):
    """Data that cannot be used as it is. `problems` lists all of it; str() has a line for each."""

    def __init__(self, summary: str, problems: Sequence[Problem]) -> None:
        self.summary, self.problems = summary, list(problems)
        super().__init__("\n".join([summary, *(f"  {p}" for p in self.problems)]))


def printable(text: str) -> str:
    """For a screen or a UTF-8 file: bytes of a file's name that are no UTF-8 as \\xfc, other control characters likewise."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else _escaped(ord(c)) for c in text)


def _escaped(code: int) -> str:
    byte = code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code  # what Python makes of such a byte
    return f"\\x{byte:02x}" if byte < 0x100 else f"\\u{byte:04x}"


@functools.lru_cache  # one wrong name usually stands in thousands of rows
def nearest(name: str, choices: tuple[str, ...]) -> str:
    """Advice for a name that is not among the choices."""
    folded = {c.casefold(): c for c in reversed(choices)}
    close = difflib.get_close_matches(name.casefold(), list(folded), n=2, cutoff=_NEAREST)
    if close:
        return f"Did you mean {' or '.join(folded[c] for c in close)}? Choices: {', '.join(choices)}"
    return f"Take one of {', '.join(choices)}"


class SiteError(Exception):
    """Why a site does not do what it is asked: a code of `contract.REFUSALS`, and a text for its own log only."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
