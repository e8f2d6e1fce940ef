"""The SuperLink's database, between runs: what SQLite keeps of pages that are free again is given back to the disk.

Flower deletes an update when it was delivered, and SQLite uses its pages again: within a run the file stays as large as
what was on its way at one time. It never shrinks by itself, and the write-ahead log stays as large as it once was.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

FREE_MB = 16  # less than this is not worth rewriting the file


def size_mb(database: Path) -> float:
    """Of the database and its write-ahead log, in 10^6 bytes."""
    files = (database, Path(f"{database}-wal"))
    return sum(f.stat().st_size for f in files if f.is_file()) / 1e6


def compact(database: Path, *, free_mb: float = FREE_MB) -> str | None:
    """Give back what is free, where it is free_mb or more. No SuperLink may run. What was done, or why it was not; or None."""
    if not database.is_file():
        return None
    before = size_mb(database)
    try:
        with closing(sqlite3.connect(database, timeout=5, isolation_level=None)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            (free,), (page,) = (db.execute(f"PRAGMA {p}").fetchone() for p in ("freelist_count", "page_size"))
            if free * page >= free_mb * 1e6:
                db.execute("VACUUM")
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except sqlite3.Error as error:
        return (
            f"{database} was not compacted ({error}): nobody may use it, and as much disk must be free as it is large"
        )
    after = size_mb(database)
    return f"{database}: {before:.0f} MB, now {after:.0f} MB" if before - after >= free_mb else None
