"""What a run is doing now, for `medmap-server status`: `status.json` in its folder, written at each event of the round loop.

    {"schema_version": 1, "updated": UTC, "phase": one of PHASES, "stage": s, "round": n, "rounds": n, "done": n, "total": n,
     "round_started": UTC, "seconds_per_round": x, "eta_s": x, "error": s, "void": s,
     "sites": {name: {"state": one of STATES, "since": UTC, "last_seen": UTC, "last_round": n, "seconds": x, "reason": s,
                      "budget": {"spent": x, "budget": x}}}}

Null is what is not known. `round` of `rounds` is within the stage; `done` of `total`, and a site's `last_round` (the last that it
returned an update in, in `seconds`), count over both stages. `budget`: of the site's privacy ledger, if the site tells it.
`void`: why the round did not count, while it is tried again.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from server import files
from server.members import FederationError
from server.progress import Clock, Event, Track

FILE = "status.json"
PHASES = ("joining", "training", "validating", "finished", "failed")
STATES = ("joined", "asked", "returned", "refused", "silent", "absent")
_SEEN = {"joined", "returned", "refused"}  # states in which a site has just been heard of


class Live:
    """folder: of the run. hold_s: what happens within a round waits for the next write when the last was less than this ago:
    writing is slow against a simulated round. clock: monotonic seconds. now: the time of day, UTC.
    """

    def __init__(
        self,
        folder: Path,
        *,
        hold_s: float = 0.0,
        clock: Clock = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._path, self._hold_s, self._clock, self._now = folder / FILE, hold_s, clock, now
        self._written = -math.inf
        self._phase, self._error, self._void = PHASES[0], "", ""
        self._track: Track | None = None
        self._round_started: str | None = None
        self._sites: dict[str, dict[str, Any]] = {}

    def enter(self, phase: str) -> None:
        """The run is in another phase."""
        self._phase = phase
        self._write()

    def void(self, why: str) -> None:
        """The round has found no quorum and is to be tried again."""
        self._void = why
        self._write()

    def fail(self, error: BaseException) -> None:
        """The run has been ended by an error. On a full disk the file cannot say so; whoever raised it does."""
        known = isinstance(error, FederationError)
        self._error = str(error) if known else f"ended by {type(error).__name__} {error}".strip()
        with contextlib.suppress(OSError):
            self.enter("failed")

    def take(self, event: Event) -> None:
        """An event of the round loop; no message."""
        if event.kind == "reply":  # `site` tells of it
            return
        now = self._clock()
        if self._track is None:
            self._track = Track(now, now, event.done)
        self._track.take(event, now)
        if event.kind == "round_end":
            self._void = ""
        if event.kind == "round_start":
            self._phase, self._round_started = "training", self._stamp()
        self._write(hold=event.kind != "round_start")

    def site(
        self,
        name: str,
        state: str,
        reason: str = "",
        *,
        seconds: float | None = None,
        receipt: Mapping[str, Any] | None = None,
    ) -> None:
        """A site is in another state. seconds: how long its update took. receipt: of its ledger, with what it tells of it."""
        entry = self._entry(name, state, reason)
        if state == "returned" and self._track is not None:
            entry["last_round"] = self._track.done + 1
            entry["seconds"] = seconds if seconds is None else round(seconds, 2)
        if receipt and {"spent", "budget"} <= set(receipt):
            entry["budget"] = {k: receipt[k] for k in ("spent", "budget")}
        self._write(hold=True)

    def asked(self, names: Iterable[str]) -> None:
        """These sites take part in the round that starts now; written with that event."""
        for name in names:
            self._entry(name, "asked", "")

    def _entry(self, name: str, state: str, reason: str) -> dict[str, Any]:
        stamp = self._stamp()
        empty = dict.fromkeys(("state", "since", "last_seen", "last_round", "seconds", "reason", "budget"))
        entry = self._sites.setdefault(name, empty)
        if entry["state"] != state:
            entry |= {"state": state, "since": stamp}
        entry["reason"] = reason or None
        if state in _SEEN:
            entry["last_seen"] = stamp
        return entry

    def _stamp(self) -> str:
        return self._now().isoformat(timespec="seconds")

    def _write(self, *, hold: bool = False) -> None:
        if hold and self._clock() - self._written < self._hold_s:
            return
        track = self._track or Track(0.0, 0.0, 0)
        rounds = track.done - track.first
        left = None if self._phase in ("finished", "failed") else track.left_s(self._clock())
        value = {
            "schema_version": 1,
            "updated": self._stamp(),
            "phase": self._phase,
            "stage": track.stage or None,
            "round": track.round,
            "rounds": track.rounds,
            "done": track.done,
            "total": track.total,
            "round_started": self._round_started,
            "seconds_per_round": round((track.ended - track.started) / rounds, 2) if rounds > 0 else None,
            "eta_s": None if left is None else round(left, 1),
            "error": self._error or None,
            "void": self._void or None,
            "sites": {name: self._sites[name] for name in sorted(self._sites)},
        }
        files.write_json(self._path, value)
        self._written = self._clock()
