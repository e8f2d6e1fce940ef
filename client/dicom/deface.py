"""A head's NIfTI file in, the same without its face out, by a tool of the hospital's choice; none comes with MedMAP-FL."""

from __future__ import annotations

import nibabel as nib

from client.dicom.convert import ConversionError
from client.grids import VolumeError
from client.preprocess.hook import run_hook, takes_files
from client.sources.found import SourceError

_REMEDY = "The volume is left out, with its face; run the command by hand to see why"


def check_template(command: str) -> None:
    """Raises SourceError for a command that does not say where its input and its output go."""
    if not takes_files(command):
        raise SourceError(f"--deface {command!r}: write {{input}} and {{output}} where the tool takes its two files")


def defaced(image: nib.Nifti1Image, command: str) -> nib.Nifti1Image:
    """What the command made of the volume: on the same grid, and not the same voxels. Raises ConversionError."""
    try:
        return run_hook(image, command, doing="defacing", remedy=_REMEDY)
    except VolumeError as error:
        raise ConversionError(error.problem, error.remedy) from None
