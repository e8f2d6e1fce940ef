"""Who works in a folder, a run's or a server kit's: a lock that ends with its process, however that ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

_FILE = ".lock"
_WAIT_S = 60.0  # what is left of a run whose server was killed ends by itself within seconds


class FolderBusy(RuntimeError):
    """Another process works in the folder; the message is one sentence."""


@contextmanager
def working_in(folder: Path, *, wait_s: float = _WAIT_S) -> Iterator[int]:
    """Make the folder and hold it for as long as this lasts. Raises FolderBusy when another process still has it after wait_s.

    Yields the lock's descriptor: a child process that it is passed to holds the folder too, until it has ended.
    """
    end = time.monotonic() + wait_s
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / _FILE).open("a+", encoding="utf-8") as file:
            if _lock(file.fileno()) and _is_in(folder, file):
                file.truncate(0)
                file.write(f"{os.getpid()}\n")
                file.flush()
                yield file.fileno()
                return
        if time.monotonic() > end:
            who = worker(folder)
            raise FolderBusy(
                f"another run{f' (process {who})' if who else ''} works in {folder}: take another folder, or wait until it has "
                "ended"
            )
        time.sleep(0.2)


def is_worked_in(folder: Path) -> bool:
    """Whether a process of this machine holds the folder now. Whoever else asks is not taken for one, and no file is made."""
    try:
        with (folder / _FILE).open("rb") as file:
            return not _lock(file.fileno(), fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def worker(folder: Path) -> str:
    """The id of the process that held the folder last; empty where nobody did."""
    file = folder / _FILE
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


def _lock(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_in(folder: Path, file: TextIO) -> bool:
    """Whether it is still the folder's own: whoever held it before may have moved the folder aside, with this file in it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), (folder / _FILE).stat())
    except FileNotFoundError:
        return False
