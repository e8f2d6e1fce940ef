"""Whether this site left the federation properly: a file that is there, and fresh, as long as its gate lives.

A SuperNode that was killed is online to the server until two of its heartbeats are missing, and Flower takes no node in that is
online: the one that comes after it would be refused. So it waits for that, and says so.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, HEARTBEAT_PATIENCE

_TOUCH_S = 2.0
_GONE_S = HEARTBEAT_DEFAULT_INTERVAL * HEARTBEAT_PATIENCE + 2 * _TOUCH_S


class Online:
    """The file `online` in the gate's folder."""

    def __init__(self, folder: Path) -> None:
        self._path, self._entered, self._left = folder / "online", False, threading.Event()

    def wait_s(self, now: float | None = None) -> float:
        """Seconds until the server takes this site for gone; 0 where it left properly, or long ago."""
        try:
            age = (time.time() if now is None else now) - self._path.stat().st_mtime
        except OSError:
            return 0.0
        return max(0.0, _GONE_S - age) if age > -_GONE_S else 0.0  # a time far ahead is another clock's

    def enter(self) -> None:
        """From now on this process counts as online, until it leaves or dies; said again, nothing happens."""
        if self._entered:
            return
        self._entered = True
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path.touch(mode=0o600)
        threading.Thread(target=self._keep, daemon=True).start()

    def leave(self) -> None:
        """The server knows that this site is gone."""
        self._left.set()
        if self._entered:
            self._path.unlink(missing_ok=True)

    def _keep(self) -> None:
        while not self._left.wait(_TOUCH_S):
            if self._path.exists():
                self._path.touch()
