"""App bundles (Flower's FABs) that a site has approved, by the SHA-256 of the file: a folder of copies and one list.

    approved.json        who approved which, and when
    approved/HASH.fab    what was approved, to compare the next one with
    pending/HASH.fab     what a run asked for and was refused; never run

The list is read afresh each time it is asked: an approval, or its end, needs no restart.
"""

from __future__ import annotations

import datetime as dt
import difflib
import fcntl
import getpass
import hashlib
import io
import json
import os
import re
import tomllib
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from client.gate import GateError

_LIST = ".info/CONTENT"
# What `flwr build` packs: no machine code, no .pyc, which Python would prefer to the .py beside it.
_KINDS = (".py", ".toml", ".md", ".yaml", ".yml", ".json", ".jsonl")
_LARGEST, _PACKED = 100 << 20, 10 << 20  # bytes of a bundle, unpacked and (Flower's own limit) packed
_KEPT = 20  # pending bundles; a server that sends ever new ones does not fill the disk


class BundleError(GateError):
    """A bundle that is none, or is not there; the message is one sentence."""


@dataclass(frozen=True)
class Approval:
    """One approved bundle. name: publisher/name and version, as the bundle itself says."""

    hash: str
    name: str
    when: str
    by: str


@dataclass(frozen=True)
class Change:
    """A file that differs between two bundles: lines that came and that went, and the unified diff."""

    path: str
    kind: str
    came: int
    went: int
    diff: str


class Bundles:
    """The approved bundles in the gate's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._list = folder / "approved.json"

    def approvals(self) -> list[Approval]:
        """Oldest first. Raises BundleError when the list cannot be read: then nothing is approved."""
        try:
            return [Approval(**a) for a in json.loads(self._list.read_text(encoding="utf-8"))]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError) as error:
            raise BundleError(
                f"{self._list} cannot be read ({type(error).__name__}): see whose file it is, or move it away and approve anew"
            ) from None

    def approved(self, digest: str) -> bool:
        """Whether this is the SHA-256 of an approved bundle. Raises BundleError when the list cannot be read."""
        return any(a.hash == digest for a in self.approvals())

    def approve(self, data: bytes) -> Approval:
        """Add a bundle, with a copy. Raises BundleError where it is none."""
        digest = sha256(data)
        approval = Approval(digest, name(files(data)), dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), _user())
        _write(self.folder / "approved" / f"{digest}.fab", data)
        with self._alone():
            self._save([*(a for a in self.approvals() if a.hash != digest), approval])
        self.pending(digest).unlink(missing_ok=True)
        return approval

    def withdraw(self, digest: str) -> Approval:
        """End an approval, found by the start of its hash. Raises BundleError when it is none, or not one alone."""
        with self._alone():
            approvals = self.approvals()
            found = [a for a in approvals if a.hash.startswith(digest.lower())]
            if len(found) != 1:
                raise BundleError(
                    f"{len(found)} approved bundles have a hash that starts with '{digest}': `medmap-client approve --list`"
                )
            self._save([a for a in approvals if a != found[0]])
        return found[0]

    def latest(self) -> tuple[Approval, dict[str, bytes]] | None:
        """The bundle approved last and its files; None where none is, or its copy is gone."""
        approvals = self.approvals()
        path = self.folder / "approved" / f"{approvals[-1].hash}.fab" if approvals else None
        return (approvals[-1], files(path.read_bytes())) if path and path.is_file() else None

    def pending(self, digest: str) -> Path:
        """Where a bundle of this SHA-256 waits. Raises BundleError for what is none."""
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise BundleError("the run names its bundle by what is no SHA-256")
        return self.folder / "pending" / f"{digest}.fab"

    def keep_pending(self, data: bytes) -> Path:
        """Keep a bundle that was refused, for its engineer to look at; the oldest of too many goes. Its path.

        Raises BundleError for one that is too large.
        """
        if len(data) > _PACKED:
            raise BundleError(
                f"the run's app bundle has {len(data) >> 20} MB, more than Flower allows: it was not kept"
            )
        path = self.pending(sha256(data))
        if not path.is_file():
            _write(path, data)
            for old in sorted(path.parent.glob("*.fab"), key=lambda p: p.stat().st_mtime)[:-_KEPT]:
                old.unlink()
        return path

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process changes the list meanwhile: else the one could put back what the other has withdrawn."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(os.open(self.folder / ".lock", os.O_WRONLY | os.O_CREAT, 0o600), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _save(self, approvals: list[Approval]) -> None:
        _write(self._list, json.dumps([asdict(a) for a in approvals], indent=1).encode())


def sha256(data: bytes) -> str:
    """As Flower names a bundle, and `sha256sum` prints it."""
    return hashlib.sha256(data).hexdigest()


def files(data: bytes) -> dict[str, bytes]:
    """Path -> content of a bundle. Raises BundleError when it is none: no zip, or not just the files that it lists."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            entries = [e for e in packed.infolist() if not e.is_dir()]
            if sum(e.file_size for e in entries) > _LARGEST:
                raise BundleError(f"this bundle is larger than {_LARGEST >> 20} MB unpacked: ask the coordinator")
            found = {e.filename: packed.read(e) for e in entries}
        listed = dict(line.split(",")[:2] for line in found.pop(_LIST).decode().splitlines())
    except BundleError:
        raise
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, OSError, RuntimeError, EOFError):
        raise BundleError("this is no app bundle: give the .fab file that `flwr build` wrote") from None
    outside = any(PurePosixPath(p).is_absolute() or ".." in PurePosixPath(p).parts for p in found)
    if len(entries) != len(found) + 1 or outside or listed != {p: sha256(d) for p, d in found.items()}:
        raise BundleError("this bundle does not hold just the files that it lists: ask the coordinator for it again")
    if odd := [p for p in found if not p.isprintable() or not (p.endswith(_KINDS) or p == "LICENSE")]:
        raise BundleError(f"this bundle holds {odd[0]!a}, which `flwr build` does not pack: do not approve it")
    return found


def name(content: Mapping[str, bytes]) -> str:
    """publisher/name and version, from the bundle's pyproject.toml. Raises BundleError."""
    try:
        said = tomllib.loads(content["pyproject.toml"].decode())
        whole = f"{said['tool']['flwr']['app']['publisher']}/{said['project']['name']} {said['project']['version']}"
        if not whole.isprintable():  # it stands above the SHA-256 that a person compares
            raise ValueError
        return whole
    except (KeyError, ValueError, TypeError):
        raise BundleError("this bundle's pyproject.toml names no app: ask the coordinator for it again") from None


def changes(old: Mapping[str, bytes], new: Mapping[str, bytes]) -> list[Change]:
    """What differs, by path."""
    found = []
    for path in sorted(old.keys() | new.keys()):
        before, after = old.get(path), new.get(path)
        if before == after:
            continue
        kind = "added" if before is None else "removed" if after is None else "changed"
        # By "\n" alone, and bytes that are no text written out: what differs in anything else shows as well.
        was, now = ((d or b"").decode(errors="backslashreplace").split("\n") for d in (before, after))
        diff = list(difflib.unified_diff(was, now, f"approved/{path}", f"new/{path}", lineterm=""))
        came, went = (sum(d.startswith(s) for d in diff[2:]) for s in "+-")
        found.append(Change(path, kind, came, went, "\n".join(diff)))
    return found


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return f"uid {os.getuid()}"


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, for its owner alone, as the folders that it makes."""
    for folder in (path.parent.parent, path.parent):  # parents=True would make the upper one for others too
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_name(f".{path.name}.part")
    try:
        part.touch(mode=0o600)
        part.write_bytes(data)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)  # a full disk is not to be filled further by halves
        raise
