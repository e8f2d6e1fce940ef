"""Found rows in, a manifest out: the same rows give the same bytes, and the file appears whole or not at all."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from client.manifest import OPTIONAL, REQUIRED
from client.sources.found import Row, SourceError


def manifest_text(rows: Sequence[Row], folder: Path) -> str:
    """The CSV of rows, in their order by patient, study and modality; paths relative to `folder` where that is possible.

    Columns: the four that are required, the others where any row has a value, then what training ignores.
    """
    cells = [_cells(row, folder) for row in sorted(rows, key=lambda r: (*r.study, r.modality))]
    extra = sorted({name for row in rows for name in row.extra} - set(REQUIRED + OPTIONAL))
    used = [name for name in OPTIONAL if any(row[name] for row in cells)]
    used += [name for name in extra if any(row.get(name) for row in cells)]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*REQUIRED, *used], restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(cells)
    return text.getvalue()


def check_output(path: Path, *, force: bool) -> None:
    """Raises SourceError: it is a folder, or is there already and not to be replaced (`force`)."""
    if path.is_dir():
        raise SourceError(f"{path} is a folder: give the file that is to be written")
    if path.exists() and not force:
        raise SourceError(f"{path} is there already: choose another name, or --force to replace it")


def write_manifest(rows: Sequence[Row], path: Path, *, force: bool = False, private: bool = False) -> None:
    """Whole or not at all; private: for this user alone. Raises SourceError: it is there already, or cannot be written."""
    check_output(path, force=force)
    write_whole(path, manifest_text(rows, path.parent.resolve()).encode(), private=private)


def write_whole(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write aside, then rename; missing folders are made. private: file and new folders are for this user alone.

    Raises SourceError where that cannot be done.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        make_folder(path.parent, private=private)
        with os.fdopen(
            os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if private else 0o666), "wb"
        ) as file:
            file.write(content)
        os.replace(aside, path)
    except OSError as error:
        raise SourceError(f"{path} cannot be written ({error.strerror}): choose another folder") from None
    finally:
        with suppress(OSError):
            aside.unlink()


def make_folder(folder: Path, *, private: bool = False) -> None:
    """The folder and those above it that are missing; private: each for this user alone. Raises OSError."""
    if not folder.is_dir():  # mkdir(parents=True) would give its mode to the last one only
        make_folder(folder.parent, private=private)
        folder.mkdir(0o700 if private else 0o777, exist_ok=True)


def _cells(row: Row, folder: Path) -> dict[str, str]:
    spacing = " ".join(f"{edge:.6g}" for edge in row.spacing_mm) if row.spacing_mm else ""
    cells = {name: str(getattr(row, name) or "") for name in REQUIRED + OPTIONAL}
    cells |= {"image": _relative(row.image, folder), "spacing_mm": spacing}
    cells |= {"mask": _relative(row.mask, folder) if row.mask else ""}
    return {**row.extra, **cells}


def _relative(path: Path, folder: Path) -> str:
    """From the manifest's folder; absolute on another drive."""
    try:
        return Path(os.path.relpath(os.path.abspath(path), folder)).as_posix()
    except ValueError:
        return Path(os.path.abspath(path)).as_posix()
