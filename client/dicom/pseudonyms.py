"""Patient ids and UIDs in, names that mean nothing outside out: a keyed hash, the same whenever the same key is used.

The key is a file of the hospital's. Who has it can tell whether a known id is behind a pseudonym; without it nobody can.
Lose it, and the same patients get new names.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from client.sources.found import SourceError
from client.sources.write import make_folder

_BYTES = 32
_DIGITS = 20  # of 16: 80 bits, no two of a hospital's patients share them by chance


@dataclass(frozen=True)
class Pseudonyms:
    """HMAC-SHA256 under the hospital's key."""

    key: bytes

    def of(self, kind: str, *values: str) -> str:
        """20 hex digits for a value; another `kind` gives others."""
        return self._hash(kind, values).hex()[:_DIGITS]

    def uid(self, value: str) -> str:
        """A DICOM UID (root 2.25) in place of another."""
        return f"2.25.{int.from_bytes(self._hash('uid', (value,))[:16])}"

    def _hash(self, kind: str, values: tuple[str, ...]) -> bytes:
        return hmac.digest(self.key, "\0".join((kind, *values)).encode(), hashlib.sha256)


def open_key(path: Path, *, make: bool) -> Pseudonyms:
    """The key of a file. `make`: writes a new one (0600) where there is none; otherwise one for this run alone.

    Raises SourceError: the file is no key, is open to other users, or cannot be read or written.
    """
    try:
        if not path.exists():
            key = secrets.token_bytes(_BYTES)
            if make:
                make_folder(path.parent, private=True)
                with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                    file.write(key.hex() + "\n")
            return Pseudonyms(key)
        mode, said = path.stat().st_mode, path.read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        raise SourceError(f"{path} cannot be used ({error.strerror}): choose another file with --key") from None
    if mode & 0o077:
        raise SourceError(f"{path} can be read by other users: chmod 600 it, it turns pseudonyms back into patients")
    if not re.fullmatch(rf"[0-9a-f]{{{2 * _BYTES}}}", said):
        raise SourceError(f"{path} is not a key of {_BYTES} bytes in hex: choose another file with --key")
    return Pseudonyms(bytes.fromhex(said))
