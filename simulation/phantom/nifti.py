"""Volumes (X, Y, Z) into the bytes of a .nii.gz: the same array gives the same bytes, in about a millisecond.

nibabel makes the header; the rest is done here because its writer costs more than simulating a small volume does.
"""

from __future__ import annotations

import struct
import zlib

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from simulation.phantom.grid import Array, Grid

STEPS = 500  # stored integers per unit of reference tissue
_SLOPE_AT = 112  # byte of scl_slope and scl_inter in a NIfTI-1 header


def header(grid: Grid, dtype: str) -> bytes:
    """A single-file NIfTI-1 header with the grid's spacing and affine (RAS, scanner coordinates), 352 bytes."""
    head = nib.Nifti1Header()
    head.set_data_dtype(dtype)
    head.set_data_shape(grid.shape)
    head.set_sform(grid.affine, code=1)
    head.set_qform(grid.affine, code=1)
    head.set_xyzt_units("mm")
    head["magic"], head["vox_offset"] = b"n+1", 352
    return bytes(head.binaryblock) + bytes(4)


def encode_volume(volume: Array, gain: float, head: bytes) -> bytes:
    """int16 with a slope from the gain (raw units per unit) alone, never from what is in the image."""
    stored = np.clip(np.rint(volume * np.float32(STEPS)), 0, 32767).astype("<i2")
    scaled = bytearray(head)
    struct.pack_into("<ff", scaled, _SLOPE_AT, gain / STEPS, 0.0)
    return _gzip(bytes(scaled) + stored.tobytes(order="F"))


def encode_mask(mask: NDArray[np.uint8], head: bytes) -> bytes:
    """uint8 as it is."""
    return _gzip(head + mask.tobytes(order="F"))


def _gzip(data: bytes) -> bytes:
    """gzip without a name and with time 0. Noise fills a scan, so only runs are looked for: half of level 1's time."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31, 9, zlib.Z_RLE)
    return packer.compress(data) + packer.flush()
