"""Lesion boxes (voxel indices of a grid) in, a mask as NIfTI out: the boxes filled, on that grid."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from client.grids import Grid
from client.sources.found import SourceError
from client.sources.write import write_whole

Box = tuple[tuple[int, int, int], tuple[int, int, int]]  # first index along each axis, and the one after the last


def write_mask(path: Path, grid: Grid, boxes: Sequence[Box], *, force: bool = False) -> Path:
    """1 inside any box, 0 elsewhere, uint8; the same boxes give the same bytes; whole or not at all.

    Raises SourceError: it cannot be written, or another file is there and not to be replaced (`force`).
    """
    mask = np.zeros(grid.shape, np.uint8)
    for low, high in boxes:
        mask[tuple(slice(max(a, 0), max(b, 0)) for a, b in zip(low, high, strict=True))] = 1
    image = nib.Nifti1Image(mask, grid.affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(grid.affine, code=1)
    content = gzip.compress(image.to_bytes(), 6, mtime=0)
    try:
        if path.exists() and not force and path.read_bytes() != content:
            raise SourceError(
                f"{path} is another file already: choose another folder for masks, or --force to replace it"
            )
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror}): choose another folder for masks") from None
    write_whole(path, content)
    return path
