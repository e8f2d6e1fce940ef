"""Every bad thing that an export holds: one clear row each, and nothing else is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import HTJ2KLossless, generate_uid
from rich.console import Console

from client.dicom.ingest import Request, ingest
from client.sources.found import Found
from configs import load_vocabulary
from tests.client.dicom import scanner as s

MEDMOM = load_vocabulary("medmom")


def run(folder: Path, *, convert: bool = False) -> Found:
    """With a sound FLAIR series beside whatever the test wrote to `folder`/bad; it must never be lost."""
    s.write_series(folder / "source" / "good", s.FLAIR, number=90)
    output = folder / "out" / "manifest.csv" if convert else None
    found = ingest(Request(folder / "source", folder / "key", output), MEDMOM, Console(quiet=True))
    assert "FLAIR" in [row.modality for row in found.rows]
    return found


def only_row(found: Found) -> str:
    (problem,) = found.problems
    assert problem.remedy
    return problem.problem


@pytest.fixture
def bad(tmp_path):
    (folder := tmp_path / "source" / "bad").mkdir(parents=True)
    return folder


def test_with_nothing_bad_there_is_no_row(tmp_path, bad):
    s.write_series(bad, s.T2)
    found = run(tmp_path, convert=True)
    assert not found.problems and {row.modality for row in found.rows} == {"FLAIR", "T2"}


def test_a_file_called_dcm_that_is_none(tmp_path, bad):
    (bad / "junk.dcm").write_bytes(b"not DICOM at all" * 20)
    assert "junk.dcm: it is not DICOM, or damaged" in only_row(run(tmp_path))


def test_a_header_cut_short(tmp_path, bad):
    (path,) = s.write_series(bad, s.T2, pixels=s.voxels(1))
    path.write_bytes(path.read_bytes()[:300])
    assert "s1_0000.dcm" in only_row(run(tmp_path))


def test_files_that_are_no_dicom_are_no_problem(tmp_path, bad):
    (bad / "README.txt").write_text("hello")
    (bad / "empty").touch()
    found = run(tmp_path)
    assert not found.problems and any("2 files hold no MR image" in note for note in found.notes)


def test_a_series_of_two_orientations(tmp_path, bad):
    uid = generate_uid()
    s.write_series(bad, s.T2, uid=uid)
    s.write_series(bad, s.T2, uid=uid, first=6, orientation=s.CORONAL)
    assert "it mixes images of 2 orientations or sizes (6, 6 images)" in only_row(run(tmp_path))


def test_a_series_of_two_matrix_sizes(tmp_path, bad):
    uid = generate_uid()
    s.write_series(bad, s.T2, uid=uid)
    s.write_series(bad, s.T2, uid=uid, first=6, pixels=s.voxels(rows=40))
    assert "it mixes images of 2 orientations or sizes" in only_row(run(tmp_path))


def test_missing_slices_are_counted(tmp_path, bad):
    at = s.positions(9)
    s.write_series(bad, s.T2, at=[at[i] for i in (0, 1, 2, 5, 6, 8)])
    assert "slices are missing: 3 of 9" in only_row(run(tmp_path))


def test_slices_at_uneven_distances(tmp_path, bad):
    at = [np.array([0.0, 0, z]) for z in (0, 4, 8, 10.5, 14.5, 18.5)]
    s.write_series(bad, s.T2, at=at)
    assert "its slices lie 2.5 to 4 mm apart" in only_row(run(tmp_path))


def test_gantry_tilt(tmp_path, bad):
    at = [p + np.array([0, 4 * i * np.tan(np.radians(12)), 0]) for i, p in enumerate(s.positions(6))]
    s.write_series(bad, s.T2, at=at)
    assert "sheared by 12.0 degrees (gantry tilt)" in only_row(run(tmp_path))


def test_positions_that_are_not_quite_regular_are_no_problem(tmp_path, bad):
    """Half a degree off over 6 slices, and steps that differ by 5 %: well within a voxel."""
    at = [p + np.array([0, 4 * i * np.tan(np.radians(0.5)), 0.1 * (i % 2)]) for i, p in enumerate(s.positions(6))]
    s.write_series(bad, s.T2, at=at)
    found = run(tmp_path, convert=True)
    assert not found.problems and {row.modality for row in found.rows} == {"FLAIR", "T2"}


def test_another_modality_than_mr(tmp_path, bad):
    s.write_series(bad, s.T2, modality="CT")
    assert "its modality is CT, not MR" in only_row(run(tmp_path))


def test_directions_of_one_b_value_are_4d_and_other_b_values_are_not_lost(tmp_path, bad):
    uid = generate_uid()
    for k, b in enumerate((0, 800, 800, 800)):
        s.write_series(bad, s.DWI, uid=uid, first=6 * k, DiffusionBValue=b)
    found = run(tmp_path)
    assert "it is 4-D: 18 images at 6 positions, and no echo, b-value or time tells them apart (b 800)" in only_row(
        found
    )


def test_time_points_that_nothing_tells_apart(tmp_path, bad):
    uid = generate_uid()
    for k in range(3):
        s.write_series(bad, s.VIBE, uid=uid, first=6 * k)
    assert "it is 4-D: 18 images at 6 positions" in only_row(run(tmp_path))


@pytest.mark.parametrize(("token", "name"), [("P", "phase"), ("R", "real"), ("I", "imaginary"), ("PHASE", "phase")])
def test_complex_images_are_left_out_and_their_magnitude_is_used(tmp_path, bad, token, name):
    uid = generate_uid()
    s.write_series(bad, s.T2, uid=uid)
    s.write_series(bad, s.T2, uid=uid, first=6, ImageType=["ORIGINAL", "PRIMARY", token, "ND"])
    found = run(tmp_path, convert=True)
    assert f"6 {name} images are not used" in only_row(found)
    assert "T2" in [row.modality for row in found.rows]


def test_names_and_paths_in_any_script(tmp_path, bad):
    folder = bad.parent / "患者 Müller'; rm -rf" / "série #1"
    s.write_series(folder, s.T2, PatientName="Müller^Jörg", PatientID="ÄÖ-1")
    s.write_series(
        bad,
        s.T1,
        PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう",
        SpecificCharacterSet=["", "ISO 2022 IR 87"],
        StudyInstanceUID="1.2.3",
    )
    found = run(tmp_path, convert=True)
    assert not found.problems
    assert {row.modality for row in found.rows} == {"T2", "T1", "FLAIR"}
    assert all(row.image.is_file() and row.image.as_posix().isascii() for row in found.rows)


def test_a_file_that_is_there_twice(tmp_path, bad):
    path = s.write_series(bad, s.T2)[0]
    shutil.copy(path, bad / "copy.dcm")
    found = run(tmp_path, convert=True)
    assert "1 of its files are there twice (same SOP instance UID)" in only_row(found)
    assert "T2" in [row.modality for row in found.rows]


def test_images_without_pixels(tmp_path, bad):
    path = s.write_series(bad, s.T2)[2]
    s.edit(path, lambda ds: ds.pop("PixelData"))
    assert "1 of its 6 images have no pixel data" in only_row(run(tmp_path))


def test_pixels_cut_short(tmp_path, bad):
    path = s.write_series(bad, s.T2)[2]
    path.write_bytes(path.read_bytes()[:-100])
    assert "1 of its 6 images have truncated pixel data" in only_row(run(tmp_path))


def test_a_compression_that_nothing_here_decodes(tmp_path, bad):
    for path in s.write_series(bad, s.T2):
        s.encapsulated(path, HTJ2KLossless, b"\xff\x4f\xff\x51 not for this decoder")
    found = run(tmp_path, convert=True)
    assert "its pixels cannot be decoded (High-Throughput JPEG 2000" in only_row(found)
    assert "gdcmconv" in found.problems[0].remedy


def test_a_series_of_two_patients_is_never_used(tmp_path, bad):
    uid = generate_uid()
    s.write_series(bad, s.T2, uid=uid)
    s.write_series(bad, s.T2, uid=uid, first=6, at=s.positions(12)[6:], PatientID="another")
    found = run(tmp_path)
    assert "it holds images of 2 patients" in only_row(found)
    assert "MRN-0042" not in found.problems[0].problem


def test_a_series_without_a_patient(tmp_path, bad):
    s.write_series(bad, s.T2, PatientID="")
    assert "it names no patient" in only_row(run(tmp_path))


def test_images_without_a_place_in_space(tmp_path, bad):
    for path in s.write_series(bad, s.T2):
        s.edit(path, lambda ds: ds.pop("ImagePositionPatient"))
    assert "its images say no position, orientation or voxel size" in only_row(run(tmp_path))


def test_links_are_not_followed(tmp_path, bad):
    s.write_series(tmp_path / "elsewhere", s.T2)
    (bad / "away").symlink_to(tmp_path / "elsewhere")
    (bad / "round").symlink_to(bad.parent)
    found = run(tmp_path)
    assert "links, which are not followed" in only_row(found)
    assert [row.modality for row in found.rows] == ["FLAIR"]


def test_all_of_it_at_once_loses_nothing(tmp_path, bad):
    (bad / "junk.dcm").write_bytes(b"x" * 500)
    s.write_series(bad / "ct", s.T2, modality="CT", number=2)
    s.write_series(bad / "gap", s.T2, at=[s.positions(9)[i] for i in (0, 1, 2, 5, 6, 7)], number=3)
    s.write_series(bad / "nobody", s.T2, PatientID="", number=4)
    s.write_series(bad / "fine", s.T1, number=5)
    found = run(tmp_path, convert=True)
    assert len(found.problems) == 4
    assert {row.modality for row in found.rows} == {"FLAIR", "T1"}
