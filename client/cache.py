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
from collections.abc import Mapping, Sequence
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

_TRIES = 3  # to read what others may delete at the same time
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

    def entries(self, studies: Sequence[Study]) -> list[Entry]:
        """One entry per study; what is not in the cache is prepared. Raises DataError if FOLDER is not writable."""
        start, before = time.perf_counter(), self.built
        with workers_for(studies) as pool:
            entries = list(pool.map(self.entry, studies))
        spent = time.perf_counter() - start
        _log.info("%d studies, %d of them prepared now, in %.1f s", len(entries), self.built - before, spent)
        return entries

    def entry(self, study: Study) -> Entry:
        """One study, from the cache, or prepared and put there."""
        files: dict[str, Path] = dict(study.images)
        if study.mask and self.config.crop in ("lesion", "organ"):
            files["mask"] = study.mask
        also: list[Any] = [dict(study.spacings)] if study.spacings else []
        also += [study.organ] if strips(self.config, study.organ) else []
        stamps = [(slot, _stamp(path)) for slot, path in files.items()]
        index = self._file("index", [self._transform, stamps, *also])
        try:
            return self._open(self.folder / "cubes" / index.read_text(), study)
        except (OSError, ValueError, SafetensorError):
            pass  # not there, or damaged
        contents, missing = read_files(files)
        hashes = [(slot, hashlib.sha256(raw).hexdigest()) for slot, raw in contents.items()]
        cubes = self._file("cubes", [self._transform, hashes, [asdict(finding) for finding in missing], *also])
        try:
            entry = self._open(cubes, study)
        except (OSError, ValueError, SafetensorError):
            mask = contents.pop("mask", None)
            done = prepare(contents, mask, self.config, study.spacings, organ=study.organ)
            findings = [asdict(finding) for finding in missing + done.findings]
            # one entry: safetensors keeps no order of several, and the same study must give the same bytes
            about = json.dumps({"findings": findings, "landmarks": done.landmarks})
            self._write(cubes, save(dict(done.cubes), {"about": about}))
            self.built += 1
            entry = self._open(cubes, study)
            if self._room is not None:
                self._room.took(entry.path)
        if not missing:  # a file that could not be read may be readable next time, with the same stamp
            self._write(index, str(cubes.relative_to(self.folder / "cubes")).encode())
        return entry

    def read(self, entry: Entry, study: Study) -> NDArray[np.float16]:
        """An entry's cubes; prepared again where others needed the room. Raises DataError when that cannot be."""
        if self._room is None:
            return entry.read()
        for _ in range(_TRIES):
            try:
                touch(entry.path)
                return entry.read()
            except (OSError, DataError):
                again = self.entry(study)
            if (again.path, again.modalities) != (entry.path, entry.modalities):
                problem = Problem(None, "image", "Files of a study changed while they were in use", "Start again")
                raise DataError("A prepared study cannot be made again", [*again.problems, problem])
        return entry.read()

    def _open(self, path: Path, study: Study) -> Entry:
        with safe_open(path, "np") as file:
            about = json.loads(file.metadata()["about"])
            present = set(file.keys())
        if self._room is not None:
            touch(path)
        modalities = tuple(modality for modality in study.images if modality in present)
        problems = tuple(Finding(**finding).at(study) for finding in about["findings"])
        return Entry(path, modalities, problems, about["landmarks"])

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


def workers_for(studies: Sequence[Study]) -> ThreadPoolExecutor:
    """Up to 4 threads for large files: unpacking and hashing release the interpreter lock. Small ones gain nothing."""
    large = any(_stamp(path)[1] > 1_000_000 for study in studies[:1] for path in study.images.values())
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
            with path.open("rb") as file:
                contents[slot] = file.read(size)
        except FileNotFoundError:
            missing.append(Finding(slot, "The file is missing", "Correct the path, or remove the row"))
        except OSError as error:
            remedy = "Check its permissions and the disk"
            missing.append(Finding(slot, f"The file cannot be read: {error.strerror}", remedy))
    return contents, missing
