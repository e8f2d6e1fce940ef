"""A volume in, what a command of the hospital's own made of it out, on the same grid; by way of two NIfTI files."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from client.grids import VolumeError, inflate

_TIMEOUT_S = 1800
_REMEDY = "The volume is left out; run the command by hand to see why"


class ToolFailed(VolumeError):
    """The hospital's tool did not do its work: perhaps for want of memory, or since somebody ended it. Next time it may."""


def takes_files(command: str) -> bool:
    """Whether a command can be split into words, as a shell would, and says where its input and its output go."""
    try:
        words = shlex.split(command)
    except ValueError:  # a quotation mark that is never closed
        return False
    return all(any(place in word for word in words) for place in ("{input}", "{output}"))


def run_hook(image: nib.Nifti1Image, command: str, *, doing: str, remedy: str = _REMEDY) -> nib.Nifti1Image:
    """What the command made of the volume: on the same grid, and not the same voxels.

    command: with {input} and {output}; no shell reads it. doing: the work, such as `defacing`, for the message. Raises
    VolumeError: ToolFailed, or where what it made cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="medmap-hook-") as scratch:
        source, target = Path(scratch, "in.nii.gz"), Path(scratch, "out.nii.gz")
        nib.save(image, source)
        words = [w.replace("{input}", str(source)).replace("{output}", str(target)) for w in shlex.split(command)]
        try:
            done = subprocess.run(words, capture_output=True, timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise ToolFailed(f"{doing} took more than {_TIMEOUT_S} s", remedy) from None
        except OSError as error:
            raise ToolFailed(f"{words[0]} cannot be run ({error.strerror})", remedy) from None
        if done.returncode != 0:
            raise ToolFailed(f"{doing} failed ({words[0]} ended with {done.returncode})", remedy)
        try:
            made = nib.Nifti1Image.from_bytes(inflate(target.read_bytes()))
        except Exception:  # whatever a strange file leads nibabel into
            raise ToolFailed(f"{doing} left no NIfTI file ({words[0]})", remedy) from None
    if made.shape != image.shape or not np.allclose(made.affine, image.affine, atol=1e-3):
        raise VolumeError(f"{doing} changed its grid", remedy)
    if np.array_equal(made.dataobj, image.dataobj):
        raise VolumeError(f"{doing} changed nothing", remedy)
    return made
