"""Text that another chose, made fit for a log and a screen: short, on one line, nothing in it that a terminal or an eye could be
deceived by."""

from __future__ import annotations

import logging

_LONGEST = 64  # a group id, a kind of message, an object's SHA-256
_LINE = 4000  # of a log; an exception's text can be as long as a message


def plain(text: str) -> str:
    """Short, and of printable ASCII alone."""
    return "".join(c if " " <= c <= "~" else "?" for c in text[:_LONGEST])


def visible(text: str, *, keep: str = "") -> str:
    """With every character written out that shows nothing, or turns the direction of writing; those in `keep` stay."""
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def one_line(record: logging.LogRecord) -> bool:
    """A logging filter: a record is one line whatever is in it, and a traceback's lines are indented, so that nobody can write
    another's line into this site's log."""
    if record.exc_info and not record.exc_text:
        traceback = logging.Formatter().formatException(record.exc_info)[-_LINE:]
        record.exc_text = "\n".join("  | " + visible(line) for line in traceback.splitlines())
    record.msg, record.args = visible(record.getMessage()[:_LINE]), None
    return True
