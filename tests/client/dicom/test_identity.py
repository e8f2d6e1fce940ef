"""Ids that are twice, missing, or of two people: one clear row each, and nothing else is lost."""

from __future__ import annotations

import shutil

import pytest
from pydicom.uid import generate_uid

from tests.client.dicom import scanner as s
from tests.client.dicom.command import ingested, only_row


def test_a_file_that_is_there_twice(tmp_path, bad):
    path = s.write_series(bad, s.T2)[0]
    shutil.copy(path, bad / "copy.dcm")
    found = ingested(tmp_path, convert=True)
    assert "1 of its files are there twice (same SOP instance UID)" in only_row(found)
    assert "T2" in [row.modality for row in found.rows]


def test_different_images_of_one_uid_are_no_copies(tmp_path, bad):
    """As an anonymiser leaves them that gives one UID to a whole series."""
    for path in s.write_series(bad, s.T2):
        s.edit(path, lambda ds: setattr(ds, "SOPInstanceUID", "1.2.3.4"))
    assert "5 of its 6 images have the SOP instance UID of another of its images" in only_row(ingested(tmp_path))


def test_images_that_another_series_has_already_are_said_and_not_counted_twice(tmp_path, bad):
    """One person's images again under another PatientID, study and series, with the UIDs they had."""
    s.write_series(bad / "a", s.T2)
    shutil.copytree(bad / "a", bad / "b")
    for path in (bad / "b").iterdir():
        changed = {"PatientID": "OLD", "StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4"}
        s.edit(path, lambda ds, new=changed: [setattr(ds, k, v) for k, v in new.items()])
    found = ingested(tmp_path)
    said = only_row(found)
    assert "b, series 1" in said and "6 of its 6 images have the SOP instance UIDs of those of" in said
    assert sorted(row.modality for row in found.rows) == ["FLAIR", "T2"]


def test_a_copy_of_a_series_under_another_patient_is_a_series_of_two_patients(tmp_path, bad):
    s.write_series(bad / "a", s.T2)
    shutil.copytree(bad / "a", bad / "b")
    for path in (bad / "b").iterdir():
        s.edit(path, lambda ds: setattr(ds, "PatientID", "OTHER"))
    assert "it holds images of 2 patients" in only_row(ingested(tmp_path))


def test_a_study_of_two_patients_is_never_used(tmp_path, bad):
    """Else the report of one would be the other's."""
    s.write_series(bad, s.T2, StudyInstanceUID="1.2.3")
    s.write_series(bad, s.T1, StudyInstanceUID="1.2.3", PatientID="OTHER", number=2)
    s.write_report(bad / "sr.dcm", [("Findings", "Mass.")], StudyInstanceUID="1.2.3")
    found = ingested(tmp_path)
    assert "its study has 2 series of 2 patients" in only_row(found)
    assert "OTHER" not in found.problems[0].problem and [row.modality for row in found.rows] == ["FLAIR"]


@pytest.mark.parametrize(("keyword", "said"), [("StudyInstanceUID", "no study"), ("SeriesInstanceUID", "no series")])
def test_a_series_without_a_uid(tmp_path, bad, keyword, said):
    for path in s.write_series(bad, s.T2):
        s.edit(path, lambda ds: ds.pop(keyword))
    assert f"it has {said} instance UID" in only_row(ingested(tmp_path))


def test_a_series_of_two_patients_is_never_used(tmp_path, bad):
    uid = generate_uid()
    s.write_series(bad, s.T2, uid=uid)
    s.write_series(bad, s.T2, uid=uid, first=6, at=s.positions(12)[6:], PatientID="another")
    found = ingested(tmp_path)
    assert "it holds images of 2 patients" in only_row(found)
    assert "MRN-0042" not in found.problems[0].problem


def test_a_series_without_a_patient(tmp_path, bad):
    s.write_series(bad, s.T2, PatientID="")
    assert "it names no patient" in only_row(ingested(tmp_path))
