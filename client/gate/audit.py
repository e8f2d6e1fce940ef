"""The audit log of a site: one JSON line for everything received and sent, hash-chained and on disk before it counts.

A line says who, when, what, how large and which hash, never a value. `hash` is the SHA-256 of the line without it, `previous`
the hash of the line before: a line that was changed, taken out or put in breaks the chain. What a chain cannot show is a
log that was cut at its end or written anew as a whole: note the newest hash elsewhere now and then.

A line that a kill cut short is mended when the log is next opened: what there is of it is taken off, and a line says so. Of a
reply nothing is lost by that, since none is sent before its line is on disk.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from client.gate import GateError
from client.gate.words import plain

_GENESIS = "0" * 64
_CHOSEN = ("kind", "group", "peer", "request", "object", "bundle")  # by others, at least while they are not checked


class AuditError(GateError):
    """A log that is broken or cannot be used; the message is one sentence."""


@dataclass(frozen=True)
class Event:
    """What happened. direction: in, out, or log (the log itself). request: the id of the request, also of a reply's line.

    object: the SHA-256 by which Flower knows the message; bytes: of all that it holds; bundle: of the run's app bundle;
    outcome: accepted, sent, or why not.
    """

    direction: str
    outcome: str
    peer: str = ""
    run: str = ""
    kind: str = ""
    group: str = ""
    bytes: int = 0
    object: str = ""
    request: str = ""
    bundle: str = ""
    incident: str = ""


class Audit:
    """The log at `path`, made at first use. One process at a time writes it. Raises AuditError where it is broken or in use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AuditError(f"{path} is in use by another process: is this site's gate running already?") from None
        except OSError as error:
            raise AuditError(f"{path} cannot be used ({error.strerror}): choose another egress.folder") from None
        self._head, self._answered = _GENESIS, set[str]()
        self._end, torn = 0, 0  # bytes of whole lines
        with open(self._file.fileno(), "rb", closefd=False) as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    torn = len(line)
                    break
                self._take(_checked(line, number, self._head, path))
                self._end += len(line)
        if torn:
            self.write(Event("log", f"mended: {torn} bytes of a line that was cut short", bytes=torn))

    def write(self, event: Event) -> None:
        """Append a line; it is on disk when this returns. Raises AuditError where it cannot be, and then there is no line."""
        said = asdict(event) | {"time": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")}
        said |= {name: plain(said[name]) for name in _CHOSEN}
        body = said | {"previous": self._head}
        whole = body | {"hash": _digest(body)}
        line = _canonical(whole) + b"\n"
        try:
            self._file.truncate(self._end)  # what a write left that failed half way
            self._file.seek(self._end)
            while line:
                line = line[self._file.write(line) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise AuditError(
                f"{self.path} cannot be written ({error.strerror}), and nothing leaves without its line: make room on its disk"
            ) from None
        self._end = self._file.tell()
        self._take(whole)

    def answered(self, request: str) -> bool:
        """Whether a reply to this request has been sent, in this process or one before."""
        return request in self._answered

    def close(self) -> None:
        """Let another process write."""
        self._file.close()

    def _take(self, line: dict[str, Any]) -> None:
        self._head = line["hash"]
        if line["direction"] == "out":
            self._answered.add(line["request"])


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines, each checked against the chain. Raises AuditError naming the first that does not fit, or a torn last one."""
    head = _GENESIS
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    raise AuditError(
                        f"{path}, line {number} was cut short by a kill: the gate mends it at its next start"
                    )
                said = _checked(line, number, head, path)
                head = said["hash"]
                yield said
    except OSError as error:
        raise AuditError(f"{path} cannot be read ({error.strerror}): give the gate's audit.jsonl") from None


def _checked(line: bytes, number: int, previous: str, path: Path) -> dict[str, Any]:
    try:
        said = json.loads(line)
        body = {k: v for k, v in said.items() if k != "hash"}
        good = said["hash"] == _digest(body) and said["previous"] == previous and line == _canonical(said) + b"\n"
    except (ValueError, KeyError, AttributeError, TypeError):
        good = False
    if not good:
        raise AuditError(
            f"{path}, line {number} does not fit the chain: it or the line before was changed, taken out or put in; "
            "keep the file as it is, find out why, and move it away for a new log"
        )
    return dict(said)


def _canonical(said: dict[str, Any]) -> bytes:
    return json.dumps(said, sort_keys=True, separators=(",", ":")).encode()


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(body)).hexdigest()
