"""A site's compressed updates, and what their rounding lost: kept on disk, added to the next change (error feedback).

In: a trained update and the model as received, group -> (n,) float32. Out: group -> (n,) float16 or int8, and its scales. A round
starts from what the newest earlier round of its stage left, so that one asked again, or a run resumed, sends the same bits. What
is left over is made of updates alone: under patient-level privacy of noisy ones, so that it costs nothing more.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from client.problems import SiteError
from medmap_model.compression import compress, restore
from medmap_model.contract import Task

_FORGOTTEN_AFTER_DAYS = 30.0

Vectors = dict[str, np.ndarray]
log = logging.getLogger("medmap.client")


@dataclass(frozen=True)
class Residuals:
    """Of one site in one run. folder: a file per round."""

    folder: Path

    @classmethod
    def of(cls, cache_dir: Path, site: str, run: str) -> Residuals:
        """The place for them. A run's id is the server's text: hashed, it cannot lead to another folder."""
        name = hashlib.sha256(json.dumps([site, run]).encode()).hexdigest()[:32]
        return cls(cache_dir / "residuals" / name)

    def compressed(
        self, update: Mapping[str, np.ndarray], received: Mapping[str, np.ndarray], task: Task, dtype: str
    ) -> tuple[Vectors, Vectors]:
        """(group -> numbers, group -> scales) of the change and what was left over; what this leaves is kept.

        Raises SiteError: "diverged" when the update is not finite, "data" when the disk cannot be written.
        """
        before = self._before(task)
        numbers, scales, left = Vectors(), Vectors(), Vectors()
        for group, vector in update.items():
            change = vector - received[group]
            if group in before and before[group].shape == change.shape:
                change += before[group]
            try:
                numbers[group], scales[group] = compress(change, dtype)
            except ValueError as error:
                raise SiteError("diverged", f"{group}: {error}") from None
            left[group] = change - restore(numbers[group], scales[group])
        self._keep(task, left)
        return numbers, scales

    def _before(self, task: Task) -> Vectors:
        """What the newest earlier round of the stage left; nothing at a stage's start."""
        path = self._newest_before(task)
        if path is None:
            return {}
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            log.warning("%s cannot be read (%s): its rounding is lost", path, type(error).__name__)
            return {}

    def _keep(self, task: Task, left: Vectors) -> None:
        """Write what this round left; drop all but it and the one before."""
        before = self._newest_before(task)
        path = self.folder / f"{task.stage}-{task.round:06d}.safetensors"
        try:
            if not self.folder.is_dir():
                _forget(self.folder.parent)
                self.folder.mkdir(parents=True, exist_ok=True)
            temporary = self.folder / f".{path.name}.tmp"
            save_file(left, temporary)
            os.replace(temporary, path)
            for other in set(self.folder.iterdir()) - {path, before}:
                other.unlink()
        except (OSError, SafetensorError) as error:
            raise SiteError(
                "data", f"{path} cannot be written ({error}): free some space there, or choose another cache_dir"
            ) from None

    def _newest_before(self, task: Task) -> Path | None:
        """The file of the newest earlier round of the stage."""
        found = {int(p.stem.rpartition("-")[2]): p for p in self.folder.glob(f"{task.stage}-*.safetensors")}
        return max((item for item in found.items() if item[0] < task.round), default=(0, None))[1]


def _forget(folder: Path) -> None:
    """Remove what runs left that have not been heard of for a month."""
    for run in folder.glob("*/"):
        if time.time() - run.stat().st_mtime > _FORGOTTEN_AFTER_DAYS * 86400:
            shutil.rmtree(run, ignore_errors=True)
