"""Who works in a run's folder: a lock that ends with its process, however that ends."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FILE = ".lock"
_WAIT_S = 60.0  # what is left of a run whose server was killed ends by itself within seconds


class FolderBusy(RuntimeError):
    """Another process works in the folder; the message is one sentence."""


@contextmanager
def working_in(folder: Path, *, wait_s: float = _WAIT_S) -> Iterator[None]:
    """Hold the folder for as long as this lasts. Raises FolderBusy when another process still has it after wait_s."""
    end = time.monotonic() + wait_s
    with (folder / _FILE).open("a") as file:
        while not _lock(file.fileno()):
            if time.monotonic() > end:
                raise FolderBusy(f"another run works in {folder}: take another folder, or wait until it has ended")
            time.sleep(0.2)
        yield


def is_worked_in(folder: Path) -> bool:
    """Whether a process of this machine holds the folder now. Whoever else asks is not taken for one, and no file is made."""
    try:
        with (folder / _FILE).open("rb") as file:
            return not _lock(file.fileno(), fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def _lock(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
