"""DICOM to NIfTI: the same voxels at the same places as a second reader (SimpleITK) finds, and no word of the header."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from client.dicom.convert import ConversionError, bare, convert, sidecar
from client.dicom.index import index
from client.dicom.parts import Part, split
from client.dicom.rules import facts_of, read_rules
from client.grids import Grid
from tests.client.dicom import scanner as s

SECRETS = ("Doe", "Jane", "MRN-0042", "ACC777", "Elsewhere", "19550321", "20240312", "t2_tse")


def parts_of(folder: Path) -> list[Part]:
    return [part for series in index(folder).series for part in split(series)[0]]


def second_reader(folder: Path, image: nib.Nifti1Image) -> None:
    """Every voxel of SimpleITK's volume must be in ours, at the same millimetres."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    other = reader.Execute()
    theirs = sitk.GetArrayFromImage(other).transpose(2, 1, 0)  # (x, y, z)
    index_ = np.stack(np.meshgrid(*map(np.arange, theirs.shape), indexing="ij"), -1).reshape(-1, 3)
    index_ = index_[:: len(index_) // 20_000 + 1]  # of a large one a sample
    axes = np.array(other.GetDirection()).reshape(3, 3) * np.array(other.GetSpacing())
    places = (index_ @ axes.T + np.array(other.GetOrigin())) * np.array([-1, -1, 1])  # LPS to RAS
    ours = places @ np.linalg.inv(image.affine[:3, :3]).T - np.linalg.inv(image.affine[:3, :3]) @ image.affine[:3, 3]
    assert np.abs(ours - ours.round()).max() < 1e-3
    voxels = np.asarray(image.dataobj)[tuple(ours.round().astype(int).T)]
    np.testing.assert_array_equal(voxels, theirs[tuple(index_.T)])


@pytest.mark.parametrize(
    "orientation",
    [s.AXIAL, s.CORONAL, s.OBLIQUE, (0.0, 1, 0, 0, 0, -1), s.DOUBLE],
    ids=["axial", "coronal", "oblique", "sagittal", "double oblique"],
)
@pytest.mark.parametrize("downwards", [False, True], ids=["up", "down"])
def test_voxels_and_places_are_those_of_a_second_reader(tmp_path, orientation, downwards):
    at = s.positions(6, orientation)
    s.write_series(tmp_path, s.T2, orientation=orientation, at=at[::-1] if downwards else at)
    (part,) = parts_of(tmp_path)
    second_reader(tmp_path, nib.Nifti1Image.from_bytes(gzip.decompress(bare(convert(part)))))


def test_the_second_reader_would_notice_a_flip(tmp_path):
    s.write_series(tmp_path, s.T2)
    (part,) = parts_of(tmp_path)
    image = convert(part)
    with pytest.raises(AssertionError):
        second_reader(tmp_path, nib.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine))


def test_files_in_any_order_and_slices_numbered_against_their_places(tmp_path):
    paths = s.write_series(tmp_path, s.T2)
    for k, path in enumerate(paths):
        s.edit(path, lambda ds, k=k: setattr(ds, "InstanceNumber", (7 * k) % 6))
        path.rename(path.with_name(f"{(5 * k) % 6}.dcm"))
    (part,) = parts_of(tmp_path)
    second_reader(tmp_path, convert(part))


def test_the_nifti_file_holds_no_word_of_the_header(tmp_path):
    s.write_series(tmp_path, s.T2, ProtocolName="Doe special", ImageComments="Jane", SliceThickness=4)
    (part,) = parts_of(tmp_path)
    packed = bare(convert(part))
    raw = gzip.decompress(packed)
    for content in (packed, raw, sidecar(part, facts_of(part, read_rules())).encode()):
        assert not [secret for secret in SECRETS if secret.encode() in content]
    header = nib.Nifti1Image.from_bytes(raw).header
    for name in ("descrip", "aux_file", "db_name", "intent_name", "data_type"):
        assert not bytes(header[name]).strip(b"\0"), name
    assert not header.extensions and not packed[4:8].strip(b"\0")  # gzip's time
    assert bytes(convert(part).header["descrip"]).strip(b"\0")  # dcm2niix does write there: the check can fail


def test_the_same_series_gives_the_same_bytes(tmp_path):
    s.write_series(tmp_path, s.T2)
    (part,) = parts_of(tmp_path)
    assert bare(convert(part)) == bare(convert(part))


def test_scaling_is_kept(tmp_path):
    s.write_series(tmp_path, s.T2, RescaleSlope=2.5, RescaleIntercept=-10)
    (part,) = parts_of(tmp_path)
    image = nib.Nifti1Image.from_bytes(gzip.decompress(bare(convert(part))))
    second_reader(tmp_path, image)
    assert np.asarray(image.dataobj).min() == s.voxels().min() * 2.5 - 10


def test_each_volume_of_a_multi_frame_file_is_its_own(tmp_path):
    volumes = {2.3: s.voxels(seed=1), 4.6: s.voxels(seed=2)}
    frames = [
        (plane, place, {"EchoTime": te})
        for te, v in volumes.items()
        for plane, place in zip(v, s.positions(6), strict=True)
    ]
    frames = frames[::2] + frames[1::2]  # as they may come
    s.write_enhanced(tmp_path / "enhanced.dcm", frames, s.DIXON)
    parts = parts_of(tmp_path)
    assert [p.label for p in parts] == ["TE 2.3", "TE 4.6"]
    for part in parts:
        s.write_series(tmp_path / str(part.te_ms), s.DIXON, pixels=volumes[part.te_ms])
        second_reader(tmp_path / str(part.te_ms), convert(part))


def test_b_values_and_time_points_of_an_enhanced_file(tmp_path):
    frames = [(p, at, {"BValue": b}) for b in (0.0, 800.0) for p, at in zip(s.voxels(), s.positions(6), strict=True)]
    s.write_enhanced(tmp_path / "dwi.dcm", frames, s.DWI)
    frames = [
        (p, at, {"AcquisitionTime": t})
        for t in ("100000", "100030")
        for p, at in zip(s.voxels(), s.positions(6), strict=True)
    ]
    s.write_enhanced(tmp_path / "dynamic.dcm", frames, s.VIBE)
    labels = sorted(p.label.rpartition(" ")[0] for p in parts_of(tmp_path))
    assert labels == ["b", "b", "time", "time"]
    for part in parts_of(tmp_path):
        assert convert(part).shape == (24, 20, 6)


@pytest.mark.parametrize("kind", ["_jp2klossless", "_jpeg_ls_lossless", "_RLE", "_implicit", "_bigendian", "_padded"])
def test_transfer_syntaxes_that_the_package_decodes(tmp_path, kind):
    """A real slice that pydicom ships in each of them, as four slices of a series: the values of the plain one."""
    plain, ds = (dcmread(get_testdata_file(f"MR_small{k}.dcm", download=False)) for k in ("", kind))
    assert kind in ("_padded",) or ds.file_meta.TransferSyntaxUID != plain.file_meta.TransferSyntaxUID
    for k in range(4):
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.InstanceNumber, ds.ImagePositionPatient = k + 1, [0, 0, 4.0 * k]
        ds.save_as(tmp_path / f"{k}.dcm")
    (part,) = parts_of(tmp_path)
    np.testing.assert_array_equal(np.asarray(convert(part).dataobj)[:, ::-1, 2].T, plain.pixel_array)


def test_a_file_that_does_not_lie_where_its_headers_say_is_refused(tmp_path):
    s.write_series(tmp_path, s.T2)
    (part,) = parts_of(tmp_path)
    moved = part.grid.affine.copy()
    moved[0, 3] += 1
    wrong = Part(part.series, part.images, Grid(part.grid.shape, moved), part.label)
    with pytest.raises(ConversionError, match=r"lie 0\.8 voxels apart"):
        convert(wrong)


def test_the_sidecar_says_numbers(tmp_path):
    s.write_series(tmp_path, s.FLAIR, MagneticFieldStrength=3, Manufacturer="SIEMENS Healthcare for Jane Doe")
    (part,) = parts_of(tmp_path)
    said = json.loads(sidecar(part, facts_of(part, read_rules())))
    assert said == {
        "Manufacturer": "SIEMENS", "MagneticFieldStrength_T": 3.0, "RepetitionTime_ms": 9000.0, "EchoTime_ms": 100.0,
        "InversionTime_ms": 2500.0, "SliceThickness_mm": 4.0, "Orientation": "LPS",
    }  # fmt: skip
