"""A run's folder, read: where the run stands, which sites take part, and which rounds a subset of them made."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from server import history
from server.files import read_json
from server.provision.authority import utc_now
from server.running import record
from server.running.kit import health
from server.running.lock import is_worked_in

SUMMARY, LIVE, CONFIG = "summary.json", "status.json", "config.yaml"
STARTING_S = 60.0  # from submission to a ServerApp that works in the folder; longer only on a machine that hangs
State = Literal["complete", "running", "starting", "stopped", "failed", "cut off"]


def standing(folder: Path) -> dict[str, Any]:
    """Where a run stands: `state`, `server` (null: not a kit's), `attempts`, `live` (status.json) and `rounds` (metrics.jsonl).

    Raises RunError where the folder holds no run, KitError where the run's kit is gone.
    """
    known = record.read(folder) if (folder / record.FILE).is_file() else None
    live, lines = read_live(folder), read_rounds(folder)
    if known is None and live is None and not lines and not (folder / CONFIG).is_file():
        raise record.RunError(f"{folder} holds no run (no {record.FILE}, {CONFIG} or {LIVE}): give its output folder")
    server = asdict(health(Path(known.kit))) if known and known.kit else None
    return {
        "schema_version": 1,
        "folder": str(folder),
        "state": state(folder, known, live),
        "server": server,
        "attempts": [asdict(a) for a in known.attempts] if known else [],
        "live": live,
        "rounds": lines,
    }


def state(folder: Path, known: record.Record | None, live: Mapping[str, Any] | None) -> State:
    """Whether a run goes on. Only a process that works in the folder is taken for a sign of life, never an old file."""
    if (folder / SUMMARY).is_file():
        return "complete"
    if is_worked_in(folder):
        return "running"
    last = known.attempts[-1] if known and known.attempts else None
    if last and is_starting(last, live):
        return "starting"
    if last and last.ended == "finished:stopped":
        return "stopped"
    return "failed" if (live or {}).get("phase") == "failed" or (last and last.ended) else "cut off"


def is_starting(attempt: record.Attempt, live: Mapping[str, Any] | None) -> bool:
    """Whether it was submitted just now and has not come to work yet: status.json, if any, is of an attempt before."""
    told = dt.datetime.fromisoformat(live["updated"]) if live else None
    begun = told is not None and told >= dt.datetime.fromisoformat(attempt.started)
    return not attempt.ended and not begun and attempt.age_s < STARTING_S


def read_live(folder: Path) -> dict[str, Any] | None:
    """What the round loop last said of itself; None where it has said nothing."""
    try:
        return dict(read_json(folder / LIVE) or {}) or None
    except (OSError, TypeError, ValueError) as error:
        raise record.RunError(f"{folder / LIVE} cannot be read ({type(error).__name__}): delete it") from None


def read_rounds(folder: Path) -> list[dict[str, Any]]:
    """The rounds so far; a line that a kill has cut off is left out, as resuming leaves it out."""
    path, found = folder / history.FILE, []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def ago_s(when: str | None) -> float | None:
    """Seconds since an ISO time."""
    return (utc_now() - dt.datetime.fromisoformat(when)).total_seconds() if when else None


def partial(lines: list[dict[str, Any]]) -> str:
    """Which rounds were made by a subset of the sites, such as `; 2 of 6 rounds without south`; nothing where none was."""
    without: dict[str, int] = {}
    for line in lines:
        for site in {*line["missing"], *line.get("absent", []), *(r["site"] for r in line["refused"])}:
            without[site] = without.get(site, 0) + 1
    return "".join(f"; {n} of {len(lines)} rounds without {site}" for site, n in sorted(without.items()))
