"""Prepared studies on disk: a study's files in, its cubes (modality -> (size, size, size) float16) out.

    FOLDER/cubes/ab/abcd...   one safetensors file per study, named by the SHA-256 of the bytes of the study's
                              files, of the manifest's spacings, of the settings that change cubes, of the tools
                              that they need (preprocess/steps.py), and of `volumes.VERSION`
    FOLDER/index/12/1234...   the name of a cube file; itself named by path, size and mtime_ns of the study's files, and
                              by its spacings

The same content is prepared once, wherever it lies; and a warm start neither reads nor hashes a NIfTI file: it trusts
size and modification time. A file changed behind both is not noticed: delete FOLDER then. Files appear whole or not
at all (written aside, then renamed): a build may be killed and resumed, and builds may share a folder without a
lock, since whoever comes second writes the same bytes. With `cache_gb` cubes used longest ago are deleted (room.py), and
prepared again when they are asked for. Names in FOLDER say nothing, but it holds images: it needs
the same protection as the scans.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from client.grids import Finding
from client.manifest import Study
from client.preprocess.nyul import Landmarks
from client.preprocess.steps import strips, tools
from client.problems import DataError, Problem
from client.room import Room, touch
from client.volumes import VERSION, prepare
from configs.schema import VolumesConfig

_STALE_S = 86400.0  # what killed builds leave behind is removed after a day
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A study in the cache: its file, the modalities in it, and what is wrong with the others.

    landmarks: of `standardise=nyul` alone, as in `volumes.Prepared`; the cubes are z-scores nevertheless.
    """

    path: Path
    modalities: tuple[str, ...]
    problems: tuple[Problem, ...]
    landmarks: Mapping[str, Landmarks] = field(default_factory=dict)

    def read(self) -> NDArray[np.float16]:
        """The cubes, (modalities, size, size, size). Raises DataError when the file has gone meanwhile."""
        try:
            with safe_open(self.path, "np") as file:
                return np.stack([file.get_tensor(modality) for modality in self.modalities])
        except (OSError, SafetensorError):
            problem = Problem(None, None, f"{self.path} is gone or damaged", "Start again: it is then made anew")
            raise DataError("A prepared study was lost from the cache during the run", [problem]) from None


class CubeCache:
    """Cubes of studies under one set of settings. Threads and processes may share the folder."""

    def __init__(self, folder: Path, config: VolumesConfig) -> None:
        """Raises DataError for a tool that the settings need and this machine has not got, or a FOLDER that is not writable."""
        self.folder, self.config, self.built = Path(folder), config, 0
        self._room = Room(self.folder / "cubes", int(config.cache_gb * 1e9)) if config.cache_gb else None
        unrelated = (
            "cache_dir",
            "cache_gb",
            "memory_mb",
            "on_bad_volume",
            "landmarks",
        )  # cubes are the same whatever these say
        settings = {name: value for name, value in asdict(config).items() if name not in unrelated}
        self._transform = json.dumps([VERSION, settings, tools(config)], sort_keys=True)
        try:
            (self.folder / "tmp").mkdir(parents=True, exist_ok=True)
            for left in os.scandir(self.folder / "tmp"):
                if time.time() - left.stat().st_mtime > _STALE_S:
                    os.unlink(left)
        except FileNotFoundError:
            pass  # another process was tidying up as well
        except OSError as error:
            raise self._unwritable(error) from None
        if self._room is not None:
            self._room.tidy()

    def entries(self, studies: Sequence[Study]) -> list[Entry]:
        """One entry per study; what is not in the cache is prepared. Raises DataError if FOLDER is not writable."""
        start, before = time.perf_counter(), self.built
        with workers_for(studies, slow="SimpleITK" in tools(self.config)) as pool:
            entries = list(pool.map(self.entry, studies))
        spent = time.perf_counter() - start
        _log.info("%d studies, %d of them prepared now, in %.1f s", len(entries), self.built - before, spent)
        return entries

    def entry(self, study: Study) -> Entry:
        """One study, from the cache, or prepared and put there."""
        files, also = self._sources(study)
        stamps = [(slot, _stamp(path)) for slot, path in files.items()]
        index = self._file("index", [self._transform, stamps, *also])
        try:
            return self._open(self.folder / "cubes" / index.read_text(), study)
        except (OSError, ValueError, SafetensorError):
            pass  # not there, or damaged
        contents, missing = read_files(files)
        cubes = self._cubes_of(contents, missing, also)
        try:
            entry = self._open(cubes, study)
        except (OSError, ValueError, SafetensorError):
            entry, _ = self._make(cubes, contents, missing, study)
        # a file that could not be read may be readable next time, with the same stamp
        if not missing and entry.path == cubes:
            self._write(index, str(cubes.relative_to(self.folder / "cubes")).encode())
        return entry

    def read(self, entry: Entry, study: Study) -> NDArray[np.float16]:
        """An entry's cubes; prepared again where others needed the room. Raises DataError when that cannot be."""
        try:
            if self._room is not None:
                touch(entry.path)
            return entry.read()
        except (OSError, DataError):  # deleted, by this process or by another
            files, also = self._sources(study)
            contents, missing = read_files(files)
            again, made = self._make(self._cubes_of(contents, missing, also), contents, missing, study)
        if (again.path, again.modalities) != (entry.path, entry.modalities):
            problem = Problem(None, "image", "Files of a study changed while they were in use", "Start again")
            raise DataError("A prepared study cannot be made again", [*again.problems, problem])
        return np.stack([made[modality] for modality in again.modalities])  # the file may be gone again

    def _sources(self, study: Study) -> tuple[dict[str, Path], list[Any]]:
        """Slot -> file, and what else decides what becomes of them."""
        files: dict[str, Path] = dict(study.images)
        if study.mask and self.config.crop in ("lesion", "organ"):
            files["mask"] = study.mask
        also: list[Any] = [dict(study.spacings)] if study.spacings else []
        return files, also + ([study.organ] if strips(self.config, study.organ) else [])

    def _cubes_of(self, contents: Mapping[str, bytes], missing: Sequence[Finding], also: Sequence[Any]) -> Path:
        hashes = [(slot, hashlib.sha256(raw).hexdigest()) for slot, raw in contents.items()]
        return self._file("cubes", [self._transform, hashes, [asdict(finding) for finding in missing], *also])

    def _make(
        self, path: Path, contents: Mapping[str, bytes], missing: Sequence[Finding], study: Study
    ) -> tuple[Entry, Mapping[str, NDArray[np.float16]]]:
        """Prepare a study and write it; the cubes as well, since others may delete the file at once.

        Where a tool failed, under a name that is not found again: the next start tries anew.
        """
        images = {slot: raw for slot, raw in contents.items() if slot != "mask"}
        done = prepare(images, contents.get("mask"), self.config, study.spacings, organ=study.organ)
        if not done.lasting:
            path = self._file("cubes", [path.name, secrets.token_hex(8)])
        findings = [asdict(finding) for finding in (*missing, *done.findings)]
        # one entry: safetensors keeps no order of several, and the same study must give the same bytes
        about = json.dumps({"findings": findings, "landmarks": done.landmarks})
        self._write(path, save(dict(done.cubes), {"about": about}))
        self.built += 1
        if self._room is not None:
            self._room.took(path)
        return _entry(path, done.cubes, json.loads(about), study), done.cubes

    def _open(self, path: Path, study: Study) -> Entry:
        with safe_open(path, "np") as file:
            about = json.loads(file.metadata()["about"])
            present = set(file.keys())
        if self._room is not None:
            touch(path)
        return _entry(path, present, about, study)

    def _file(self, kind: str, key: Any) -> Path:
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        return self.folder / kind / name[:2] / name

    def _write(self, path: Path, content: bytes) -> None:
        aside = self.folder / "tmp" / f"{os.getpid()}-{secrets.token_hex(8)}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(content)
            os.replace(aside, path)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> DataError:
        remedy = "Free some space there, or choose another folder with data.volumes.cache_dir"
        problem = Problem(None, None, f"{self.folder}: {error.strerror}", remedy)
        return DataError("The cache of prepared volumes cannot be written", [problem])


def _entry(path: Path, present: Collection[str], about: Mapping[str, Any], study: Study) -> Entry:
    modalities = tuple(modality for modality in study.images if modality in present)
    problems = tuple(Finding(**finding).at(study) for finding in about["findings"])
    return Entry(path, modalities, problems, about["landmarks"])


def workers_for(studies: Sequence[Study], *, slow: bool = False) -> ThreadPoolExecutor:
    """Up to 4 threads for large files: unpacking and hashing release the interpreter lock. Small ones gain nothing.

    slow: more is done to each than reading it, by tools that release the lock as well.
    """
    large = slow or any(_stamp(path)[1] > 1_000_000 for study in studies[:1] for path in study.images.values())
    return ThreadPoolExecutor(min(4, os.cpu_count() or 1) if large else 1)


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return os.path.abspath(path), -1, -1
    return os.path.abspath(path), status.st_size, status.st_mtime_ns


def read_files(files: Mapping[str, Path], size: int = -1) -> tuple[dict[str, bytes], list[Finding]]:
    """Slot -> content (its first `size` bytes), and which files cannot be read."""
    contents, missing = {}, []
    for slot, path in files.items():
        try:
            with path.open("rb", buffering=0) as file:  # a buffer would cost as much as reading a header
                contents[slot] = file.read(size)
        except FileNotFoundError:
            missing.append(Finding(slot, "The file is missing", "Correct the path, or remove the row"))
        except OSError as error:
            remedy = "Check its permissions and the disk"
            missing.append(Finding(slot, f"The file cannot be read: {error.strerror}", remedy))
    return contents, missing
