"""A bound on a folder's size on the disk: files used longest ago are deleted first. Time of use = a file's mtime."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

_SHARE = 0.02  # of the bound that this process writes before it looks at the folder again: others write there as well
_LEFT = 0.95  # of the bound that is left when something has to go, so that not every write deletes


def touch(path: Path) -> None:
    """Mark a file as used now. Raises OSError where it is gone."""
    os.utime(path)


class Room:
    """Keeps files below `folder` within `limit` bytes. Threads and processes may share the folder.

    Each process looks at the folder itself, after every fiftieth of the limit that it wrote: with k processes the folder
    may exceed the limit by k fiftieths for a moment. A file that is open stays readable when it is deleted.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._lock, self._since = threading.Lock(), 0

    def tidy(self) -> None:
        """Bring what is there within the bound."""
        with self._lock:
            self._make_room()

    def took(self, path: Path) -> None:
        """Tell of a new file; the others make room for it where they must."""
        with self._lock:
            with suppress(OSError):  # another process may have deleted it already
                self._since += path.stat().st_size
            if self._since < _SHARE * self.limit:
                return
            self._since = 0
            self._make_room(spare=path)

    def _make_room(self, *, spare: Path | None = None) -> None:
        files = []
        for inner in self.folder.rglob("*"):
            with suppress(OSError):  # another process deletes as well
                if inner.is_file():
                    status = inner.stat()
                    files.append((status.st_mtime_ns, status.st_size, inner))
        taken = sum(size for _, size, _ in files)
        if taken <= self.limit:
            return
        for _, size, inner in sorted(files, key=lambda f: f[0]):
            if taken <= _LEFT * self.limit:
                return
            if inner != spare:
                with suppress(OSError):
                    inner.unlink()
                taken -= size
