"""The first bytes of a NIfTI file in, unpacked; what its header says of the voxels out: shape, affine (4, 4), dtype, scaling.

Plain headers (NIfTI-1, little-endian, three dimensions, with a sform) are taken apart here, since nibabel takes many times
as long; it reads all others. A test holds both to the same answers.
"""

from __future__ import annotations

import math
import struct
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

HEAD_BYTES = 540  # the longest header, NIfTI-2's
# sizeof_hdr, dim, datatype, vox_offset, scl_slope, scl_inter, xyzt_units, sform_code, srow_x to srow_z, magic: nifti1.h
_PLAIN = struct.Struct("<i36x8h14xh36x3f3xB130xh24x12f16x4s")
_NAMES = {2: "u1", 4: "<i2", 8: "<i4", 16: "<f4", 64: "<f8", 256: "i1", 512: "<u2", 768: "<u4"}
_DTYPES = {code: np.dtype(name) for code, name in _NAMES.items()}


class Coding(NamedTuple):
    """How a file stores its voxels: from byte `start` of its unpacked content on, as value * slope + intercept."""

    dtype: np.dtype[Any]
    start: int
    slope: float | None
    intercept: float | None


class Header(NamedTuple):
    """`affine` maps indices to RAS+, in the unit of length that has NIfTI's code `unit`."""

    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    unit: int
    coding: Coding


def read_header(head: bytes) -> Header | None:
    """The header of content that starts with these (up to HEAD_BYTES) bytes; None where it is not NIfTI in one file.

    Raises what nibabel raises for impossible values: HeaderDataError, ValueError, KeyError, OverflowError.
    """
    return _plain(head) or _by_nibabel(head)


def _plain(head: bytes) -> Header | None:
    """None for all that is not quite usual."""
    if len(head) < _PLAIN.size:
        return None
    size, n, x, y, z, _, _, _, _, code, start, slope, intercept, unit, sform, *rows, magic = _PLAIN.unpack_from(head)
    if size != _PLAIN.size or magic[:3] != b"n+1" or n != 3 or min(x, y, z) < 2 or not sform or code not in _DTYPES:
        return None
    if not (size <= start < 1e9 and math.isfinite(intercept)):
        return None
    scaled = math.isfinite(slope) and slope != 0
    coding = Coding(_DTYPES[code], int(start), slope if scaled else None, intercept if scaled else None)
    return Header((x, y, z), np.array([*rows, 0.0, 0.0, 0.0, 1.0]).reshape(4, 4), unit & 7, coding)


def _by_nibabel(head: bytes) -> Header | None:
    for kind, magic in ((nib.Nifti1Header, head[344:347]), (nib.Nifti2Header, head[4:7])):
        size = kind.sizeof_hdr
        either = (size.to_bytes(4, "little"), size.to_bytes(4, "big"))
        if len(head) >= size and magic in (b"n+1", b"n+2") and head[:4] in either:
            header = kind(head[:size], check=False)
            coding = Coding(header.get_data_dtype(), int(header.get_data_offset()), *header.get_slope_inter())
            if coding.start < size:
                raise nib.spatialimages.HeaderDataError("voxels inside the header")
            affine = np.asarray(header.get_best_affine(), np.float64)
            shape = tuple(int(edge) for edge in header.get_data_shape())
            return Header(shape, affine, int(header["xyzt_units"]) & 7, coding)
    return None
