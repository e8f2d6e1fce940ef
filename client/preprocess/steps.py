"""The optional steps between a volume as it was read and its cube, in their order: skull stripping, N4, registration."""

from __future__ import annotations

import os
import threading

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from client.grids import Grid
from client.preprocess.hook import run_hook, takes_files
from client.preprocess.itk import sitk
from client.preprocess.n4 import bias_corrected
from client.preprocess.registration import registered
from client.problems import DataError
from configs.schema import VolumesConfig

HOOK = "MEDMAP_SKULL_STRIP"  # the environment's, never the run's: a coordinator must not name a program of a hospital
_HEADS = ("brain",)  # organs that have a skull
_ALONE = threading.Lock()  # of the hospital's tool one at a time: it may want a whole GPU, or all memory

Array = NDArray[np.float32]


def tools(config: VolumesConfig) -> dict[str, str]:
    """What the settings need of this machine, with its version or its words; a part of the cache's key.

    Raises DataError, one sentence, for a tool that is not here.
    """
    needed = {}
    if config.bias_correction == "n4" or config.register == "rigid":
        needed["SimpleITK"] = sitk().Version.VersionString()
    if config.skull_strip == "hook":
        needed["skull_strip"] = _command()
    return needed


def _command() -> str:
    command = os.environ.get(HOOK, "")
    if not takes_files(command):
        wanted = "a command with {input} and {output} where the tool takes its two files"
        raise DataError(f"data.volumes.skull_strip=hook, but {HOOK} holds no such command: set it to {wanted}", [])
    return command


def strips(config: VolumesConfig, organ: str | None) -> bool:
    """Whether volumes of this organ lose their skull."""
    return config.skull_strip == "hook" and organ in _HEADS


class Steps:
    """What the settings ask for, one volume after the other of a study; the first one done is what the next are registered to."""

    def __init__(self, config: VolumesConfig, organ: str | None) -> None:
        """Raises DataError for a tool that is not on this machine."""
        tools(config)
        self.config, self.strip = config, strips(config, organ)
        self._reference: tuple[Grid, Array] | None = None

    def __call__(self, grid: Grid, data: Array) -> tuple[Grid, Array]:
        """Grid and voxels (X, Y, Z) in RAS order, as they are after all steps. Raises VolumeError."""
        if self.strip:
            with _ALONE:
                done = run_hook(nib.Nifti1Image(data, grid.affine), _command(), doing="skull stripping")
            data = np.asarray(done.dataobj, np.float32)
        if self.config.bias_correction == "n4":
            data = bias_corrected(grid, data)
        if self.config.register == "rigid":
            if self._reference is not None:
                return registered(grid, data, self._reference)
            self._reference = grid, data
        return grid, data
