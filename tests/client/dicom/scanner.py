"""Writes DICOM as scanners and PACS do, for tests: classic series, one file a slice, and enhanced multi-frame MR."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    BasicTextSRStorage,
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
OBLIQUE = (0.96, 0.28, 0.0, -0.28, 0.96, 0.0)
DOUBLE = (0.8012516, 0.4788639, 0.3587272, -0.5610424, 0.8096468, 0.1723467)  # no digit of it may be dropped
SPACING_MM = (1.5, 1.25)  # between rows, between columns
PATIENT: dict[str, Any] = {
    "PatientName": "Doe^Jane",
    "PatientID": "MRN-0042",
    "PatientBirthDate": "19550321",
    "StudyInstanceUID": generate_uid(entropy_srcs=["study"]),
    "StudyDate": "20240312",
    "StudyTime": "090000",
    "AccessionNumber": "ACC777",
    "InstitutionName": "Saint Elsewhere Hospital",
    "BodyPartExamined": "BRAIN",
}
T1 = {"SeriesDescription": "t1_se_tra", "ScanningSequence": "SE", "RepetitionTime": 500, "EchoTime": 10}
T1CE = {**T1, "SeriesDescription": "t1_se_tra +Gd", "ContrastBolusAgent": "Gadovist"}
T2 = {"SeriesDescription": "t2_tse_tra", "ScanningSequence": "SE", "RepetitionTime": 4500, "EchoTime": 100}
FLAIR = {**T2, "SeriesDescription": "t2_tirm_tra_dark-fluid", "ScanningSequence": ["SE", "IR"],
         "RepetitionTime": 9000, "InversionTime": 2500}  # fmt: skip
VIBE = {"SeriesDescription": "t1_vibe_fs_tra_dyn", "ScanningSequence": "GR", "RepetitionTime": 4, "EchoTime": 1.9,
        "FlipAngle": 10, "BodyPartExamined": "LIVER"}  # fmt: skip
DWI = {"SeriesDescription": "ep2d_diff_tra", "ScanningSequence": "EP", "RepetitionTime": 6000, "EchoTime": 70,
       "BodyPartExamined": "LIVER"}  # fmt: skip
DIXON = {"SeriesDescription": "t1_fl2d_tra_in_opp", "ScanningSequence": "GR", "RepetitionTime": 150, "FlipAngle": 70,
         "MagneticFieldStrength": 1.5, "BodyPartExamined": "LIVER"}  # fmt: skip


def voxels(slices: int = 6, rows: int = 20, columns: int = 24, seed: int = 0) -> np.ndarray:
    """(slices, rows, columns): a ramp along each axis and noise, so that no flip of it is like it."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(np.arange(slices), np.arange(rows), np.arange(columns), indexing="ij")
    return (100 + 40 * z + 3 * y + 5 * x + rng.integers(0, 3, z.shape)).astype(np.uint16)


def positions(n: int, orientation: Sequence[float] = AXIAL, gap_mm: float = 4.0) -> list[np.ndarray]:
    """Where slices lie, a step along their normal apart."""
    normal = np.cross(orientation[:3], orientation[3:])
    return [np.array([-12.0, -15.0, 30.0]) + normal * gap_mm * i for i in range(n)]


def write_series(
    folder: Path,
    tags: dict[str, Any],
    *,
    pixels: np.ndarray | None = None,
    orientation: Sequence[float] = AXIAL,
    at: Sequence[np.ndarray] | None = None,
    number: int = 1,
    uid: str | None = None,
    first: int = 0,
    modality: str = "MR",
    **more: Any,
) -> list[Path]:
    """One file a slice. `tags` and `more` go on top of PATIENT's; `first`: number of the first instance."""
    pixels = voxels() if pixels is None else pixels
    at = positions(len(pixels), orientation) if at is None else at
    folder.mkdir(parents=True, exist_ok=True)
    uid, paths = uid or generate_uid(), []
    for i, plane in enumerate(pixels):
        ds = _image(plane, {**PATIENT, **tags, **more}, modality)
        ds.SeriesInstanceUID, ds.SeriesNumber, ds.InstanceNumber = uid, number, first + i + 1
        ds.ImagePositionPatient = [round(float(v), 6) for v in at[i]]
        ds.ImageOrientationPatient = list(orientation)
        paths.append(save(ds, folder / f"s{number}_{first + i:04d}.dcm"))
    return paths


def write_enhanced(
    path: Path, frames: Sequence[tuple[np.ndarray, np.ndarray, dict[str, Any]]], tags: dict[str, Any]
) -> Path:
    """An enhanced multi-frame MR object; each frame: its plane, its position, and EchoTime, BValue, AcquisitionTime."""
    ds = _image(frames[0][0], {**PATIENT, **tags}, "MR", EnhancedMRImageStorage)
    ds.SeriesInstanceUID, ds.SeriesNumber, ds.InstanceNumber = generate_uid(), 1, 1
    for name in ("PixelSpacing", "SliceThickness", "EchoTime", "RepetitionTime"):
        ds.pop(name, None)
    ds.NumberOfFrames, ds.PixelData = len(frames), b"".join(plane.tobytes() for plane, _, _ in frames)
    ds.AcquisitionContrast, ds.ComplexImageComponent = "T1", "MAGNITUDE"
    measures = _item(PixelSpacing=list(SPACING_MM), SliceThickness=4)
    shared = _item(PixelMeasuresSequence=[measures])
    shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=list(AXIAL))]
    if "RepetitionTime" in tags:
        shared.MRTimingAndRelatedParametersSequence = [_item(RepetitionTime=tags["RepetitionTime"], FlipAngle=10)]
    ds.SharedFunctionalGroupsSequence, per_frame = [shared], []
    for i, (_, position, values) in enumerate(frames):
        frame = _item(PlanePositionSequence=[_item(ImagePositionPatient=[float(v) for v in position])])
        frame.FrameContentSequence = [_item(DimensionIndexValues=[1, i + 1])]
        if "AcquisitionTime" in values:
            frame.FrameContentSequence[0].FrameAcquisitionDateTime = f"20240312{values['AcquisitionTime']}"
        if "EchoTime" in values:
            frame.MREchoSequence = [_item(EffectiveEchoTime=values["EchoTime"])]
        if "BValue" in values:
            frame.MRDiffusionSequence = [_item(DiffusionBValue=values["BValue"], DiffusionDirectionality="ISOTROPIC")]
        per_frame.append(frame)
    ds.PerFrameFunctionalGroupsSequence = per_frame
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(ds, path)


def save(ds: Dataset, path: Path) -> Path:
    """Write with what the file's head needs."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta = meta
    ds.save_as(path, enforce_file_format=True)
    return path


def _item(**values: Any) -> Dataset:
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return item


def _image(plane: np.ndarray, tags: dict[str, Any], modality: str, kind: str = "") -> Dataset:
    ds = _item(SpecificCharacterSet="ISO_IR 192", Modality=modality, ImageType=["ORIGINAL", "PRIMARY", "M", "ND"])
    ds.SOPClassUID = kind or (CTImageStorage if modality == "CT" else MRImageStorage)
    ds.SOPInstanceUID, ds.Manufacturer = generate_uid(), "SIEMENS"
    ds.FrameOfReferenceUID, ds.PatientPosition, ds.MRAcquisitionType = generate_uid(), "HFS", "2D"
    ds.Rows, ds.Columns = plane.shape
    ds.PixelSpacing, ds.SliceThickness = list(SPACING_MM), 4
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation, ds.SamplesPerPixel, ds.PhotometricInterpretation = 15, 0, 1, "MONOCHROME2"
    ds.PixelData = plane.astype(np.uint16).tobytes()
    for name, value in tags.items():
        setattr(ds, name, value)
    return ds


def edit(path: Path, change: Callable[[Dataset], None]) -> None:
    """Change a file's header in place."""
    ds = dcmread(path)
    change(ds)
    ds.save_as(path, implicit_vr=ds.file_meta.TransferSyntaxUID.is_implicit_VR, little_endian=True)


def encapsulated(path: Path, syntax: str, frame: bytes) -> None:
    """Give a file a compressed transfer syntax and one fragment."""

    def change(ds: Dataset) -> None:
        ds.file_meta.TransferSyntaxUID = syntax
        ds.PixelData = encapsulate([frame])
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True

    edit(path, change)


def write_report(path: Path, lines: Sequence[tuple[str, str]], *, observer: str = "", **more: Any) -> Path:
    """A Basic Text SR of PATIENT's study: (heading, text) of each item."""
    ds = _item(
        SpecificCharacterSet="ISO_IR 192", Modality="SR", SOPClassUID=BasicTextSRStorage, SOPInstanceUID=generate_uid()
    )
    for name, value in {**PATIENT, "SeriesInstanceUID": generate_uid(), **more}.items():
        setattr(ds, name, value)
    ds.ContentSequence = [
        _item(
            RelationshipType="CONTAINS",
            ValueType="TEXT",
            TextValue=text,
            ConceptNameCodeSequence=[_item(CodeMeaning=heading)],
        )
        for heading, text in lines
    ]
    if observer:
        who = _item(RelationshipType="HAS OBS CONTEXT", ValueType="PNAME", PersonName=observer)
        ds.ContentSequence = [who, *ds.ContentSequence]
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(ds, path)
