"""run.json: what a run's folder remembers of how it was started, so that it can be gone on with, stopped and asked about."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from server.flower import SuperLink
from server.provision.authority import utc_now

FILE = "run.json"
SCHEMA_VERSION = 1


class RunError(RuntimeError):
    """A command on a run cannot be done; the message is one sentence: what, where, what to do."""


@dataclass
class Attempt:
    """One run of Flower's: the first, or one that went on. ended: Flower's last word on it, such as `finished:failed`.

    id: of 64 bits, as text: JSON's numbers may be shorter.
    """

    id: str
    started: str
    bundle: str = ""
    ended: str = ""

    @property
    def age_s(self) -> float:
        """Seconds since it was submitted."""
        return (utc_now() - dt.datetime.fromisoformat(self.started)).total_seconds()


@dataclass
class Record:
    """settings: as given; config: all of them, composed, which is what the run gets, the first time and ever after.

    superlink, home: which SuperLink (`server.flower.SuperLink`); kit: the server kit behind it, if it is one; app: the
    checkout that is bundled; sites: how many are to take part, 0: whoever is there.
    """

    settings: list[str]
    config: dict[str, Any]
    superlink: str | None
    kit: str | None
    app: str
    sites: int = 0
    sites_file: str | None = None
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def link(self) -> SuperLink:
        """The SuperLink that it runs at."""
        return SuperLink.of_kit(Path(self.kit)) if self.kit else SuperLink(self.superlink)

    def save(self, folder: Path) -> None:
        """Write run.json, whole or not at all."""
        from server.files import write_json

        write_json(folder / FILE, {"schema_version": SCHEMA_VERSION, **asdict(self)})


def read(folder: Path) -> Record:
    """The run.json of a folder. Raises RunError."""
    path = folder / FILE
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if told.pop("schema_version") != SCHEMA_VERSION:
            raise ValueError("another schema_version")
        return Record(**{**told, "attempts": [Attempt(**a) for a in told["attempts"]]})
    except FileNotFoundError:
        raise RunError(f"{folder} holds no run that `medmap-server run` started (no {FILE})") from None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({type(error).__name__}): restore it from a backup") from None


def note_end(folder: Path, attempt: Attempt) -> None:
    """Keep how an attempt ended. run.json is read afresh: another command may have gone on with the run meanwhile."""
    known = read(folder)
    known.attempts = [attempt if a.id == attempt.id else a for a in known.attempts]
    known.save(folder)
