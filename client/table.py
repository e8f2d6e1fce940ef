"""A CSV file's bytes in, its header and numbered rows of cells out, whatever program wrote it.

Commas, semicolons and tabs separate; UTF-8 and UTF-16 are read, with or without a byte order mark.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from client.problems import Problem


def read_table(raw: bytes, problems: list[Problem]) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """(header in lower case, rows as (row number, cells)); blank rows are left out, what is wrong is appended."""
    rows = _rows(decode(raw, problems), problems)
    _, header = next(rows, (1, []))
    return [name.strip().lower().replace(" ", "_") for name in header], rows


def read_records(raw: bytes, problems: list[Problem]) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """As `read_table`, a row as column -> cell, stripped; cells that a row lacks at its end are empty.

    A row with more cells than the header is a problem and left out: which of them belongs where cannot be told.
    """
    header, rows = read_table(raw, problems)

    def records() -> Iterator[tuple[int, dict[str, str]]]:
        for number, cells in rows:
            if any(cell.strip() for cell in cells[len(header) :]):
                problem = f"The row has {len(cells)} cells, the header {len(header)}"
                remedy = "Quote texts that contain a separator; the row is left out"
                problems.append(Problem(number, None, problem, remedy))
                continue
            yield number, dict.fromkeys(header, "") | dict(zip(header, map(str.strip, cells), strict=False))

    return header, records()


def decode(raw: bytes, problems: list[Problem]) -> str:
    """A text file's bytes as text, without byte order mark; what is wrong with its encoding is appended."""
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):  # Excel's "Unicode text"
        return raw.decode("utf-16", errors="replace")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = raw.count(b"\n", 0, error.start) + 1, raw[error.start]
        problem = f"The file is not UTF-8: byte 0x{byte:02x} on line {line}"
        remedy = "Save it as 'CSV UTF-8', or convert it: iconv -f WINDOWS-1252 -t UTF-8"
        problems.append(Problem(None, None, problem, remedy))
        return raw.decode("cp1252", errors="replace")  # so that the other problems are found as well


def _rows(text: str, problems: list[Problem]) -> Iterator[tuple[int, list[str]]]:
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    number = 0
    while True:
        number += 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = f"A quotation mark is never closed, or stands alone inside a text ({error})"
            remedy = 'Write a quotation mark inside a quoted text twice (""); from here on no row was read'
            problems.append(Problem(number, None, problem, remedy))
            return
        if any(cell.strip() for cell in cells):
            yield number, cells
