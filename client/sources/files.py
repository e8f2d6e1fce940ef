"""A data set's folder in; its files by name, and its small texts and tables out, whatever program wrote them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from client.problems import Problem
from client.sources.found import Found, SourceError
from client.table import decode
from client.table import read_records as records_of

SUFFIXES = (".nii.gz", ".nii")
_T = TypeVar("_T")


def walk(root: Path, found: Found) -> Iterator[tuple[str, Path]]:
    """(path relative to root with forward slashes, path) of every visible file, sorted.

    Links to files are followed, links to folders are not. A name that is not UTF-8 cannot stand in a manifest: it is a
    problem, and left out; so are links that lead nowhere. Raises SourceError where there is no such folder.
    """
    if not root.is_dir():
        raise SourceError(f"{root} is not a folder: give the data set's")
    dangling: list[Path] = []

    def unreadable(error: OSError) -> None:
        found.say(
            f"{error.filename} cannot be opened ({error.strerror})", "Check its permissions; what is in it is left out"
        )

    for folder, folders, names in os.walk(root, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith("."):
                continue
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            try:
                relative.encode()
            except UnicodeEncodeError:
                shown = os.fsencode(relative).decode("latin-1")
                found.say(
                    f"{shown}: the name is not UTF-8", "Rename it: convmv -f latin1 -t utf8 -r --notest .", "image"
                )
                continue
            if path.is_symlink() and not path.exists():
                dangling.append(path)
                continue
            yield relative, path
    if dangling:
        found.say(
            f"{len(dangling)} files are links that lead nowhere, such as {dangling[0]}",
            "Fetch what they stand for (of a DataLad data set: datalad get .); they are left out",
            "image",
        )


def volumes(root: Path, found: Found) -> Iterator[tuple[str, Path]]:
    """As `walk`, the NIfTI files alone."""
    return ((name, path) for name, path in walk(root, found) if name.lower().endswith(SUFFIXES))


def stem(name: str) -> str:
    """A file's name without its folder and without .nii or .nii.gz."""
    name = name.rpartition("/")[2]
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def read_text(path: Path, found: Found) -> str:
    """A text file, any line end, with or without byte order mark; '' and a problem where it cannot be read."""
    return _read(path, found, lambda raw, problems: decode(raw, problems).replace("\r\n", "\n").replace("\r", "\n"), "")


def read_json(path: Path, found: Found) -> Any:
    """A JSON file's content; None and a problem where there is none."""

    def parse(raw: bytes, problems: list[Problem]) -> Any:
        try:
            return json.loads(decode(raw, problems))
        except ValueError as error:
            problems.append(Problem(None, None, f"It is not JSON ({error})", "Download or export it again"))

    return _read(path, found, parse, None)


def read_records(path: Path, found: Found) -> list[dict[str, str]]:
    """A table (CSV, TSV) as dicts; names of columns in lower case with _ for blanks, cells stripped."""

    def parse(raw: bytes, problems: list[Problem]) -> list[dict[str, str]]:
        return [record for _, record in records_of(raw, problems)[1]]

    return _read(path, found, parse, [])


def _read(path: Path, found: Found, parse: Callable[[bytes, list[Problem]], _T], nothing: _T) -> _T:
    problems: list[Problem] = []
    try:
        raw = path.read_bytes()
    except OSError as error:
        found.say(f"{path} cannot be read ({error.strerror})", "Check the path and its permissions")
        return nothing
    done = parse(raw, problems)
    found.problems += [Problem(p.row, p.column, f"{path}: {p.problem}", p.remedy) for p in problems]
    return done
