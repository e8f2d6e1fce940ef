"""`medmap-client ingest dicom` as tests type it, and what it left."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from typer.testing import CliRunner

from client.cli import app
from client.dicom.ingest import Request, ingest
from client.sources.found import Found
from configs import load_vocabulary
from tests.client.dicom import scanner as s

MEDMOM = load_vocabulary("medmom")


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["ingest", "dicom", *map(str, arguments)], env={"COLUMNS": "160"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def snapshot(root: Path) -> dict[str, tuple[str, int]]:
    return {
        str(p): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns)
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def edited(tmp_path: Path, export: Path, change: Callable[..., object]) -> Path:
    """The export's review after `change` has had its rows."""
    path = tmp_path / "review.csv"
    assert run(export, "--key", tmp_path / "key", "--review-to", path)[0] == 0
    table = rows(path)
    table = change(table) or table
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return path


def ingested(folder: Path, *, convert: bool = False) -> Found:
    """With a sound FLAIR series beside whatever the test wrote to `folder`/source/bad; it must never be lost."""
    s.write_series(folder / "source" / "good", s.FLAIR, number=90)
    output = folder / "out" / "manifest.csv" if convert else None
    found = ingest(Request(folder / "source", folder / "key", output), MEDMOM, Console(quiet=True))
    assert "FLAIR" in [row.modality for row in found.rows]
    return found


def only_row(found: Found) -> str:
    (problem,) = found.problems
    assert problem.remedy
    return problem.problem
