"""Every bad thing that an export holds: one clear row each, and nothing else is lost."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import HTJ2KLossless, generate_uid
from rich.console import Console

from client.dicom.ingest import Request, ingest
from tests.client.dicom import scanner as s
from tests.client.dicom import test_conversion, test_identity
from tests.client.dicom.command import MEDMOM, ingested, only_row

DOCS = Path(__file__).resolve().parents[3] / "docs" / "dicom.md"


def test_with_nothing_bad_there_is_no_row(tmp_path, bad):
    s.write_series(bad, s.T2)
    found = ingested(tmp_path, convert=True)
    assert not found.problems and {row.modality for row in found.rows} == {"FLAIR", "T2"}


def test_a_file_called_dcm_that_is_none(tmp_path, bad):
    (bad / "junk.dcm").write_bytes(b"not DICOM at all" * 20)
    assert "junk.dcm: it is not DICOM, or damaged" in only_row(ingested(tmp_path))


def test_a_header_cut_short(tmp_path, bad):
    (path,) = s.write_series(bad, s.T2, pixels=s.voxels(1))
    path.write_bytes(path.read_bytes()[:300])
    assert "s1_0000.dcm" in only_row(ingested(tmp_path))


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("keyword", ["SeriesNumber", "AcquisitionTime", "Columns", "PixelSpacing"])
@pytest.mark.parametrize("value", [b"1e999", b"\xff\xfe\x1b$B;3ED", b"1\\2\\3"], ids=["infinite", "no text", "several"])
def test_a_value_that_makes_no_sense_counts_as_absent(tmp_path, bad, keyword, value):
    """In images and in a report: what needs it is a row, what does not is used."""
    paths = [
        *s.write_series(bad, s.T2, StudyInstanceUID="1.2.3"),
        s.write_report(bad / "sr.dcm", [("Findings", "Mass.")]),
    ]
    for path in paths:
        ds, tag = s.dcmread(path), Tag(keyword)
        ds[tag] = RawDataElement(tag, dictionary_VR(tag), len(value), value, 0, False, True)
        ds.save_as(path)
    found = ingested(tmp_path)
    assert all(p.problem.isprintable() for p in found.problems)
    assert ("T2" in [row.modality for row in found.rows]) == (keyword in ("SeriesNumber", "AcquisitionTime"))


def test_files_that_are_no_dicom_are_no_problem(tmp_path, bad):
    (bad / "README.txt").write_text("hello")
    (bad / "empty").touch()
    found = ingested(tmp_path)
    assert not found.problems and any("2 files hold no MR image" in note for note in found.notes)


def test_a_series_of_two_orientations(tmp_path, bad):
    uid = generate_uid()
    s.write_series(bad, s.T2, uid=uid)
    s.write_series(bad, s.T2, uid=uid, first=6, orientation=s.CORONAL)
    assert "it mixes images of 2 orientations or sizes (6, 6 images)" in only_row(ingested(tmp_path))


def test_a_series_of_two_matrix_sizes(tmp_path, bad):
    uid = generate_uid()
    s.write_series(bad, s.T2, uid=uid)
    s.write_series(bad, s.T2, uid=uid, first=6, pixels=s.voxels(rows=40))
    assert "it mixes images of 2 orientations or sizes" in only_row(ingested(tmp_path))


def test_missing_slices_are_counted(tmp_path, bad):
    at = s.positions(9)
    s.write_series(bad, s.T2, at=[at[i] for i in (0, 1, 2, 5, 6, 8)])
    assert "slices are missing: 3 of 9" in only_row(ingested(tmp_path))


def test_slices_at_uneven_distances(tmp_path, bad):
    at = [np.array([0.0, 0, z]) for z in (0, 4, 8, 10.5, 14.5, 18.5)]
    s.write_series(bad, s.T2, at=at)
    assert "its slices lie 2.5 to 4 mm apart" in only_row(ingested(tmp_path))


def test_gantry_tilt(tmp_path, bad):
    at = [p + np.array([0, 4 * i * np.tan(np.radians(12)), 0]) for i, p in enumerate(s.positions(6))]
    s.write_series(bad, s.T2, at=at)
    assert "sheared by 12.0 degrees (gantry tilt)" in only_row(ingested(tmp_path))


def test_positions_that_are_not_quite_regular_are_no_problem(tmp_path, bad):
    """Half a degree off over 6 slices, and steps that differ by 5 %: well within a voxel."""
    at = [p + np.array([0, 4 * i * np.tan(np.radians(0.5)), 0.1 * (i % 2)]) for i, p in enumerate(s.positions(6))]
    s.write_series(bad, s.T2, at=at)
    found = ingested(tmp_path, convert=True)
    assert not found.problems and {row.modality for row in found.rows} == {"FLAIR", "T2"}


def test_another_modality_than_mr(tmp_path, bad):
    s.write_series(bad, s.T2, modality="CT")
    assert "its modality is CT, not MR" in only_row(ingested(tmp_path))


def test_directions_of_one_b_value_are_4d_and_other_b_values_are_not_lost(tmp_path, bad):
    uid = generate_uid()
    for k, b in enumerate((0, 800, 800, 800)):
        s.write_series(bad, s.DWI, uid=uid, first=6 * k, DiffusionBValue=b)
    found = ingested(tmp_path)
    assert "it is 4-D: 18 images at 6 positions, and no echo, b-value or time tells them apart (b 800)" in only_row(
        found
    )


def test_time_points_that_nothing_tells_apart(tmp_path, bad):
    uid = generate_uid()
    for k in range(3):
        s.write_series(bad, s.VIBE, uid=uid, first=6 * k)
    assert "it is 4-D: 18 images at 6 positions" in only_row(ingested(tmp_path))


@pytest.mark.parametrize(("token", "name"), [("P", "phase"), ("R", "real"), ("I", "imaginary"), ("PHASE", "phase")])
def test_complex_images_are_left_out_and_their_magnitude_is_used(tmp_path, bad, token, name):
    uid = generate_uid()
    s.write_series(bad, s.T2, uid=uid)
    s.write_series(bad, s.T2, uid=uid, first=6, ImageType=["ORIGINAL", "PRIMARY", token, "ND"])
    found = ingested(tmp_path, convert=True)
    assert f"6 {name} images are not used" in only_row(found)
    assert "T2" in [row.modality for row in found.rows]


def test_frames_of_different_scaling_would_be_read_as_of_one(tmp_path, bad):
    frames = [(plane, at, {"EchoTime": 90}) for plane, at in zip(s.voxels(), s.positions(6), strict=True)]

    def scaled(ds) -> None:
        for k, frame in enumerate(ds.PerFrameFunctionalGroupsSequence):
            (scale := s.Dataset()).RescaleSlope, scale.RescaleIntercept = 1 + k // 3, 0
            frame.PixelValueTransformationSequence = [scale]

    s.edit(s.write_enhanced(bad / "t2.dcm", frames, s.T2), scaled)
    assert "its 6 frames are scaled in 2 ways" in only_row(ingested(tmp_path))


def test_names_and_paths_in_any_script(tmp_path, bad):
    folder = bad.parent / "患者 Müller'; rm -rf" / "série #1"
    s.write_series(folder, s.T2, PatientName="Müller^Jörg", PatientID="ÄÖ-1", StudyInstanceUID="1.2.4")
    s.write_series(
        bad,
        s.T1,
        PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう",
        SpecificCharacterSet=["", "ISO 2022 IR 87"],
        StudyInstanceUID="1.2.3",
    )
    found = ingested(tmp_path, convert=True)
    assert not found.problems
    assert {row.modality for row in found.rows} == {"T2", "T1", "FLAIR"}
    assert all(row.image.is_file() and row.image.as_posix().isascii() for row in found.rows)


def test_text_burned_into_the_pixels_reaches_no_volume(tmp_path, bad):
    s.write_series(bad, s.T2, BurnedInAnnotation="YES")
    assert "6 of its 6 images have text burned into them" in only_row(ingested(tmp_path, convert=True))
    assert len(list((tmp_path / "out").rglob("*.nii.gz"))) == 1


@pytest.mark.skipif(os.name == "nt", reason="names of files are texts there")
def test_names_that_are_not_utf8_or_would_steer_the_terminal(tmp_path, bad):
    """As CDs of old PACS have them; in a row and in the review they are escaped."""
    s.write_series(bad, s.T2)
    (bad / "junk.dcm").write_bytes(b"x" * 300)
    os.rename(os.fsencode(bad), os.fsencode(bad.parent) + b"/M\xfcller\x1b[2J")
    request = Request(tmp_path / "source", tmp_path / "key", review_to=tmp_path / "review.csv")
    problem = only_row(ingest(request, MEDMOM, Console(quiet=True)))
    assert "M\\xfcller\\x1b[2J/junk.dcm" in problem and problem.isprintable()
    assert "M\\xfcller\\x1b[2J/s1_0000.dcm" in (tmp_path / "review.csv").read_text(encoding="utf-8")
    assert {row.modality for row in ingested(tmp_path, convert=True).rows} == {"FLAIR", "T2"}


def test_images_without_pixels(tmp_path, bad):
    path = s.write_series(bad, s.T2)[2]
    s.edit(path, lambda ds: ds.pop("PixelData"))
    assert "1 of its 6 images have no pixel data" in only_row(ingested(tmp_path))


def test_pixels_cut_short(tmp_path, bad):
    path = s.write_series(bad, s.T2)[2]
    path.write_bytes(path.read_bytes()[:-100])
    assert "1 of its 6 images have truncated pixel data" in only_row(ingested(tmp_path))


def test_a_compression_that_nothing_here_decodes(tmp_path, bad):
    for path in s.write_series(bad, s.T2):
        s.encapsulated(path, HTJ2KLossless, b"\xff\x4f\xff\x51 not for this decoder")
    found = ingested(tmp_path, convert=True)
    assert "its pixels cannot be decoded (High-Throughput JPEG 2000" in only_row(found)
    assert "gdcmconv" in found.problems[0].remedy


def test_images_without_a_place_in_space(tmp_path, bad):
    for path in s.write_series(bad, s.T2):
        s.edit(path, lambda ds: ds.pop("ImagePositionPatient"))
    assert "its images say no position, orientation, voxel or matrix size" in only_row(ingested(tmp_path))


def test_links_are_not_followed(tmp_path, bad):
    s.write_series(tmp_path / "elsewhere", s.T2)
    (bad / "away").symlink_to(tmp_path / "elsewhere")
    (bad / "round").symlink_to(bad.parent)
    found = ingested(tmp_path)
    assert "links, which are not followed" in only_row(found)
    assert [row.modality for row in found.rows] == ["FLAIR"]


def test_all_of_it_at_once_loses_nothing(tmp_path, bad):
    (bad / "junk.dcm").write_bytes(b"x" * 500)
    s.write_series(bad / "ct", s.T2, modality="CT", number=2)
    s.write_series(bad / "gap", s.T2, at=[s.positions(9)[i] for i in (0, 1, 2, 5, 6, 7)], number=3)
    s.write_series(bad / "nobody", s.T2, PatientID="", number=4)
    s.write_series(bad / "fine", s.T1, number=5)
    found = ingested(tmp_path, convert=True)
    assert len(found.problems) == 4
    assert {row.modality for row in found.rows} == {"FLAIR", "T1"}


TESTS = {
    "damaged, cut short, or not DICOM though called .dcm": (test_a_file_called_dcm_that_is_none, test_a_header_cut_short),
    "values that make no sense": (test_a_value_that_makes_no_sense_counts_as_absent,),
    "other files, DICOMDIR, presentation states, segmentations": (test_files_that_are_no_dicom_are_no_problem,),
    "a modality other than MR": (test_another_modality_than_mr,),
    "orientations or matrix sizes mixed in one series": (test_a_series_of_two_orientations, test_a_series_of_two_matrix_sizes),
    "missing slices": (test_missing_slices_are_counted,),
    "slices at uneven distances (more than 10 % of the step off)": (test_slices_at_uneven_distances,),
    "gantry tilt: the last slice shifted by more than half a voxel": (test_gantry_tilt,),
    "4-D that no echo, b-value or time takes apart (diffusion directions)": (
        test_directions_of_one_b_value_are_4d_and_other_b_values_are_not_lost, test_time_points_that_nothing_tells_apart,
    ),
    "frames of one file that are scaled differently": (test_frames_of_different_scaling_would_be_read_as_of_one,),
    "phase, real or imaginary images": (test_complex_images_are_left_out_and_their_magnitude_is_used,),
    "one image twice": (test_identity.test_a_file_that_is_there_twice,),
    "different images of one SOP instance UID": (test_identity.test_different_images_of_one_uid_are_no_copies,),
    "images that another series has already": (
        test_identity.test_images_that_another_series_has_already_are_said_and_not_counted_twice,
    ),
    "no pixel data, or fewer bytes than the header says": (test_images_without_pixels, test_pixels_cut_short),
    "text burned into the pixels, by the header": (test_text_burned_into_the_pixels_reaches_no_volume,),
    "compressed so that nothing here decodes it": (test_a_compression_that_nothing_here_decodes,),
    "images of two patients in one series": (
        test_identity.test_a_series_of_two_patients_is_never_used, test_identity.test_a_copy_of_a_series_under_another_patient_is_a_series_of_two_patients,
    ),
    "series of two patients in one study": (test_identity.test_a_study_of_two_patients_is_never_used,),
    "no PatientID": (test_identity.test_a_series_without_a_patient,),
    "no study or series UID": (test_identity.test_a_series_without_a_uid,),
    "no position, orientation, voxel or matrix size (screenshots)": (test_images_without_a_place_in_space,),
    "links": (test_links_are_not_followed,),
    "paths and names in any script": (test_names_and_paths_in_any_script,),
    "paths that are not UTF-8, control characters": (test_names_that_are_not_utf8_or_would_steer_the_terminal,),
    "the grid that dcm2niix makes differs from the headers'": (test_conversion.test_a_file_that_does_not_lie_where_its_headers_say_is_refused,),
}  # fmt: skip


def test_every_row_of_the_docs_has_its_test():
    part = DOCS.read_text(encoding="utf-8").partition("## Bad input")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+?) \| ", part, re.MULTILINE)[1:]
    assert rows == list(TESTS)
