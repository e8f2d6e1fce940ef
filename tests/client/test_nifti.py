"""The short way through a plain header says what nibabel says, and leaves to nibabel what is not plain."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from client.nifti import HEAD_BYTES, Header, _by_nibabel, _plain, read_header

PACKAGED = Path(nib.__file__).parent / "tests" / "data"
OBLIQUE = np.array([[1.9, -0.3, 0.1, -80], [0.3, 1.9, 0.2, 12.5], [-0.1, -0.2, 5.0, 1e-3], [0, 0, 0, 1]])


def head(kind: type = nib.Nifti1Image, order: str = "<", dtype: str = "int16", **fields: object) -> bytes:
    """The first bytes of an image as nibabel writes it, with some fields of its header set afterwards."""
    made = kind(np.zeros((5, 6, 7), dtype), OBLIQUE, kind.header_class(endianness=order))
    made.header.set_data_dtype(dtype)
    raw = made.to_bytes()
    header = kind.header_class(raw[: kind.header_class.sizeof_hdr], check=False)
    for name, value in fields.items():
        header[name] = value
    return (header.binaryblock + raw[kind.header_class.sizeof_hdr :])[:HEAD_BYTES]


def same(a: Header | None, b: Header | None) -> bool:
    assert a is not None and b is not None
    np.testing.assert_array_equal(a.affine, b.affine)
    assert a.affine.dtype == b.affine.dtype == np.float64
    return (a.shape, a.unit, a.coding) == (b.shape, b.unit, b.coding)


PLAIN = {
    **{dtype: {"dtype": dtype} for dtype in ("uint8", "int16", "int32", "float32", "float64", "int8", "uint16", "uint32")},
    "scaled": {"scl_slope": 0.25, "scl_inter": -3},
    "slope of 0": {"scl_slope": 0, "scl_inter": 7},
    "no slope": {"scl_slope": np.nan, "scl_inter": 0},
    "no units": {"xyzt_units": 0},
    "microns and seconds": {"xyzt_units": 3 + 8},
    "another sform code": {"sform_code": 4},
    "sform only": {"qform_code": 0},
    "an extension before the voxels": {"vox_offset": 1000},
    "an affine that is none": {"srow_x": [np.nan, np.inf, 0, 0]},
}  # fmt: skip
ODD = {
    "big-endian": {"order": ">"},
    "NIfTI-2": {"kind": nib.Nifti2Image},
    "NIfTI-2, big-endian": {"kind": nib.Nifti2Image, "order": ">"},
    "qform only": {"sform_code": 0},
    "neither": {"sform_code": 0, "qform_code": 0},
    "four dimensions": {"dim": [4, 5, 6, 7, 1, 1, 1, 1]},
    "two dimensions": {"dim": [2, 5, 6, 1, 1, 1, 1, 1]},
    "a FreeSurfer surface": {"dim": [3, 27307, 1, 6, 1, 1, 1, 1]},
    "complex": {"dtype": "complex64"},
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_header_is_read_as_nibabel_reads_it(name):
    raw = head(**PLAIN[name])
    assert same(_plain(raw), _by_nibabel(raw))
    assert read_header(raw).coding == _plain(raw).coding


@pytest.mark.parametrize("name", ODD)
def test_an_odd_header_is_left_to_nibabel(name):
    raw = head(**ODD[name])
    assert _plain(raw) is None
    assert same(read_header(raw), _by_nibabel(raw))


def test_odd_headers_differ_from_plain_ones_in_nothing_but_what_is_odd():
    for order, kind in ((">", nib.Nifti1Image), ("<", nib.Nifti2Image)):
        odd, plain = read_header(head(kind, order)), read_header(head())
        np.testing.assert_allclose(odd.affine, plain.affine, atol=1e-5)
        assert (odd.shape, odd.unit, odd.coding.slope) == (plain.shape, plain.unit, plain.coding.slope)
    assert not np.allclose(read_header(head(sform_code=0, qform_code=0)).affine, read_header(head()).affine)


@pytest.mark.parametrize("name", ["anatomical.nii", "example4d.nii.gz", "example_nifti2.nii.gz", "functional.nii"])
def test_real_files_are_read_as_nibabel_loads_them(name):
    raw = (PACKAGED / name).read_bytes()
    raw = gzip.decompress(raw) if name.endswith(".gz") else raw
    header, image = read_header(raw[:HEAD_BYTES]), nib.load(PACKAGED / name)
    np.testing.assert_array_equal(header.affine, image.affine)
    assert header.shape == image.shape and header.coding.dtype == image.get_data_dtype()
    assert header.coding.start == image.dataobj.offset
    assert (header.coding.slope or 1, header.coding.intercept or 0) == (image.dataobj.slope, image.dataobj.inter)


@pytest.mark.parametrize("damage", [{"scl_slope": 1, "scl_inter": np.inf}, {"datatype": 77}, {"vox_offset": 8}])
def test_impossible_values_are_nibabels_to_refuse(damage):
    raw = head(**damage)
    assert _plain(raw) is None
    with pytest.raises((nib.spatialimages.HeaderDataError, KeyError)):
        read_header(raw)


def test_what_is_no_header_is_none():
    for raw in (b"", b"\0" * HEAD_BYTES, head()[:347], head(magic=b"ni1"), b"P" + head()[1:]):
        assert read_header(raw) is None


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_whatever_stands_in_a_header_the_short_way_says_nothing_else_than_nibabel():
    rng, good = np.random.default_rng(0), head(scl_slope=2, scl_inter=1)
    short = 0
    for _ in range(3000):
        raw = bytearray(good)
        for place in rng.integers(40, 344, rng.integers(1, 6)):
            raw[place] = rng.integers(0, 256)
        header = _plain(bytes(raw))
        short += header is not None
        assert header is None or same(header, _by_nibabel(bytes(raw)))
    assert 1000 < short < 3000  # both ways were taken
