"""A PACS export, and a folder for what is bad in one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.client.dicom import scanner as s


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A PACS export: a brain and a liver study of two patients, a report, a localizer, files that mean nothing."""
    root = tmp_path / "export"
    for number, tags in enumerate((s.T1, s.T1CE, s.T2, s.FLAIR), 1):
        s.write_series(root / "a", tags, number=number, AcquisitionTime=f"09{number:02d}00")
    s.write_series(root / "a", {**s.T1, "SeriesDescription": "localizer"}, number=9)
    s.write_series(root / "a", {**s.T2, "SeriesDescription": "ax 3"}, number=10)
    s.write_report(root / "a" / "sr.dcm", [("Findings", "Jane Doe has a mass.")])
    liver = {
        "PatientID": "MRN-0043",
        "PatientName": "Roe^Richard",
        "StudyInstanceUID": "1.2.3.9",
        "AccessionNumber": "ACC778",
    }
    for number, (time, agent) in enumerate(
        zip(("0955", "1000", "1001", "1003"), ("", "Gd", "Gd", "Gd"), strict=True), 1
    ):
        s.write_series(
            root / "b", {**s.VIBE, **liver}, number=number, AcquisitionTime=f"{time}30", ContrastBolusAgent=agent
        )
    (root / "README").write_text("by the PACS")
    return root


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    (folder := tmp_path / "source" / "bad").mkdir(parents=True)
    return folder
