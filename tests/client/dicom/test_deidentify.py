"""De-identified DICOM copies: no seeded identifier survives, wherever it stood; geometry, pixels and links among files do."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.datadict import dictionary_VR, keyword_dict
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from client.dicom.deidentify import RefusedError, deidentified
from client.dicom.pseudonyms import Pseudonyms
from tests.client.dicom import scanner as s

PSEUDONYMS = Pseudonyms(b"0" * 32)
SEED = "ZZSECRET"
_SAMPLES = {
    "PN": f"{SEED}^Name", "LO": SEED, "SH": SEED, "LT": SEED, "ST": SEED, "UT": SEED, "UC": SEED, "UR": SEED, "AE": SEED, "CS": SEED,
    "AS": "033Y", "DA": "19770707", "TM": "070707", "DT": "19770707070707", "UI": "1.2.777.7", "OB": SEED.encode(), "UN": SEED.encode(),
}  # fmt: skip
_PROTECTED = {"SOPClassUID", "TransferSyntaxUID"}


def seeded(path: Path) -> Dataset:
    """A slice with a secret in every attribute that the standard knows and a text, a date or a UID can stand in."""
    ds = dcmread(path)
    structural = {"SpecificCharacterSet", "ImageType", "Modality", "BurnedInAnnotation", "PhotometricInterpretation"}
    for keyword in keyword_dict:
        vr = dictionary_VR(keyword)
        if vr not in _SAMPLES or keyword in structural | _PROTECTED or keyword.startswith("FileSet"):
            continue
        if keyword_dict[keyword] >> 16 in (0x0000, 0x0002, 0x0004, 0x7FE0):
            continue
        ds.add_new(keyword_dict[keyword], vr, _SAMPLES[vr])
    nested = Dataset()
    nested.PatientName, nested.ReferencedSOPInstanceUID, nested.TextValue = f"{SEED}^Inner", "1.2.777.8", SEED
    ds.ReferencedImageSequence = ds.RequestAttributesSequence = ds.VOILUTSequence = [nested]
    ds.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", SEED.encode())
    ds.add_new((0x6000, 0x0022), "LO", SEED)
    return ds


def written(ds: Dataset) -> bytes:
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def copied(path: Path, pseudonyms: Pseudonyms = PSEUDONYMS) -> Dataset:
    return dcmread(io.BytesIO(deidentified(path, pseudonyms, "P1")))


def test_no_seeded_identifier_survives(tmp_path):
    (path,) = s.write_series(tmp_path, s.T2, pixels=s.voxels(1))
    ds = seeded(path)
    codes = {
        "ScanningSequence",
        "SequenceVariant",
        "ScanOptions",
        "MRAcquisitionType",
        "BodyPartExamined",
        "Manufacturer",
    }
    for keyword in codes:  # code strings and the maker's name stay: nobody's name can be told from a coded word
        setattr(ds, keyword, "SE")
    kept_codes = {"AcquisitionContrast", "ComplexImageComponent", "PixelPresentation", "VolumetricProperties", "FrameType",
                  "VolumeBasedCalculationTechnique", "PatientPosition", "ImagedNucleus", "RescaleType", "LossyImageCompression",
                  "DiffusionDirectionality", "StackID"}  # fmt: skip
    for keyword in kept_codes:
        setattr(ds, keyword, "OK")
    ds.save_as(path)
    assert written(dcmread(path)).count(SEED.encode()) > 500  # the check can fail
    raw = deidentified(path, PSEUDONYMS, "P1")
    for secret in (SEED, "19770707", "070707", "1.2.777", "033Y", "CSA HEADER"):
        assert secret.encode() not in raw, secret


def test_the_kept_codes_are_codes():
    """What the list keeps has a coded or numeric value, but for the maker and a frame's stack."""
    from client.dicom.deidentify import _lists

    free = {k for name in ("image", "magnetic_resonance", "frames") for k in _lists()[name] if dictionary_VR(k) not in
            ("CS", "US", "SS", "IS", "DS", "FD", "UL", "UI", "SL", "AT", "US or SS")}  # fmt: skip
    assert free == {"Manufacturer", "ImagedNucleus", "RescaleType", "StackID"}


def test_pixels_and_geometry_are_the_same_and_the_copies_belong_together(tmp_path):
    first, second = (dcmread(p) for p in s.write_series(tmp_path, s.T2)[:2])
    copies = [copied(Path(ds.filename)) for ds in (first, second)]
    for ds, copy in zip((first, second), copies, strict=True):
        np.testing.assert_array_equal(copy.pixel_array, ds.pixel_array)
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "EchoTime", "Rows"):
            assert copy[keyword].value == ds[keyword].value
        assert copy.PatientID == str(copy.PatientName) == "P1" and copy.PatientIdentityRemoved == "YES"
        assert copy.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
        assert copy.file_meta.MediaStorageSOPInstanceUID == copy.SOPInstanceUID != ds.SOPInstanceUID
    assert copies[0].SeriesInstanceUID == copies[1].SeriesInstanceUID != first.SeriesInstanceUID
    assert copies[0].SOPInstanceUID != copies[1].SOPInstanceUID
    other = copied(Path(first.filename), Pseudonyms(b"1" * 32))
    assert other.StudyInstanceUID != copies[0].StudyInstanceUID  # nobody makes them without the key


def test_the_source_is_not_changed(tmp_path):
    (path,) = s.write_series(tmp_path, s.T2, pixels=s.voxels(1))
    before = path.read_bytes()
    deidentified(path, PSEUDONYMS, "P1")
    assert path.read_bytes() == before


def test_an_enhanced_file_loses_the_times_of_its_frames_and_keeps_their_places(tmp_path):
    frames = [
        (p, at, {"EchoTime": 2.3, "AcquisitionTime": "101112"})
        for p, at in zip(s.voxels(), s.positions(6), strict=True)
    ]
    path = s.write_enhanced(tmp_path / "e.dcm", frames, s.DIXON)
    assert b"20240312101112" in path.read_bytes()
    copy = copied(path)
    assert b"20240312" not in deidentified(path, PSEUDONYMS, "P1")
    places = [f.PlanePositionSequence[0].ImagePositionPatient for f in copy.PerFrameFunctionalGroupsSequence]
    np.testing.assert_allclose(places, s.positions(6))


def test_a_real_siemens_slice(tmp_path):
    path = Path(get_testdata_file("examples_overlay.dcm", download=False))
    raw, copy = deidentified(path, PSEUDONYMS, "P1"), copied(path)
    for secret in (
        b"AKH",
        b"Waehringer",
        b"021234567",
        b"2005",
        b"Sssssss",
        b"meduser",
        b"Omniscan",
        b"SIEMENS MEDCOM",
        b"marked",
    ):
        assert secret not in raw, secret
    assert not [e for e in copy.iterall() if e.tag.is_private or e.tag.group == 0x6000]
    assert copy.pixel_array.shape == (300, 484)


@pytest.mark.parametrize("change", [{"BurnedInAnnotation": "YES"}, {"SOPClassUID": SecondaryCaptureImageStorage}])
def test_pixels_that_may_hold_words_are_refused(tmp_path, change):
    (path,) = s.write_series(tmp_path, s.T2, pixels=s.voxels(1))
    s.edit(path, lambda ds: ds.update(change) or [setattr(ds, k, v) for k, v in change.items()])
    with pytest.raises(RefusedError):
        deidentified(path, PSEUDONYMS, "P1")
