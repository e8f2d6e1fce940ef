"""One DICOM file in, its images out, from the header alone: where each lies (mm, LPS) and what tells it from its neighbours.

A classic file is one image; a multi-frame or enhanced MR file is one per frame. Pixels are never read.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import yaml
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from configs import ROOT

# Real files break rules: pydicom would warn, with their values.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

Vector = NDArray[np.float64]

READ: dict[str, list[str]] = yaml.safe_load((ROOT / "dicom" / "read.yaml").read_text(encoding="utf-8"))
_B_VALUES = {"SIEMENS": 0x0019100C, "PHILIPS": 0x20011003, "GE": 0x00431039}  # by maker: another's may mean anything
_GE_COMPONENT = 0x0043102F
_TAGS: list[BaseTag | int] = [Tag(name) for names in READ.values() for name in names]
_TAGS += [Tag(tag) for tag in (*_B_VALUES.values(), _GE_COMPONENT)]
# Whose they are, by which pydicom knows their type in implicit files.
_TAGS += [Tag(tag & 0xFFFF0000 | 0x10) for tag in _B_VALUES.values()]
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
BURNED = "text burned into them"
_DIRECTORY = "1.2.840.10008.1.3.10"  # what a DICOMDIR is: it says again what the files say
DAY_S = 86_400
_SUFFIXES = (".dcm", ".dicom", ".ima")
_COMPONENTS = {"P": "phase", "PHASE": "phase", "PHASE MAP": "phase", "R": "real", "REAL": "real", "I": "imaginary",
               "IMAGINARY": "imaginary", "MIXED": "mixed"}  # fmt: skip


class HeaderError(ValueError):
    """A file that should be DICOM and cannot be read: what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Image:
    """One 2-D image. `frame`: its index in a multi-frame file. Position and orientation are of DICOM's patient axes."""

    path: Path
    frame: int | None
    sop_uid: str
    syntax: str
    pixels: str  # "", or what is wrong with them
    instance: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None  # along a row, along a column
    spacing_mm: tuple[float, ...] | None  # between rows, between columns
    shape: tuple[int, int]  # rows, columns
    image_type: str  # small letters, blanks between
    component: str
    te_ms: float | None
    b_value: float | None
    temporal: int | None
    acquisition: int | None
    time_s: float | None
    scaling: tuple[float | None, float | None]  # rescale slope and intercept of a frame


def read_header(path: Path) -> tuple[Dataset, list[Image]] | None:
    """The header and the images of a file; None where it is not DICOM, or a DICOMDIR. Raises HeaderError."""
    stopped: list[int] = []

    def at_pixels(tag: Any, vr: str | None, length: int) -> bool:
        if tag in _PIXELS:
            stopped.append(length)
        return bool(stopped)

    try:
        with path.open("rb") as file:
            magic = file.read(132)[128:]
            if magic != b"DICM":
                if path.suffix.lower() in _SUFFIXES:
                    raise HeaderError("it is not DICOM, or damaged (no DICM after 128 bytes)")
                return None
            file.seek(0)
            ds = read_partial(file, stop_when=at_pixels, specific_tags=_TAGS)
            deflated = ds.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
            left = sys.maxsize if deflated else path.stat().st_size - file.tell()
        if ds.file_meta.get("MediaStorageSOPClassUID") == _DIRECTORY:
            return None
        decode(ds)
        if "Modality" not in ds:
            raise HeaderError("its header names no modality; it may be cut short")
        images = _images(path, ds, _pixels(ds, stopped, left))
    except HeaderError:
        raise
    except OSError as error:
        raise HeaderError(f"it cannot be opened ({error.strerror})") from None
    except Exception as error:  # pydicom raises whatever a damaged file leads it into
        raise HeaderError(f"its header is damaged ({type(error).__name__})") from None
    return ds, images


def decode(ds: Dataset) -> None:
    """Parse every attribute now, where whatever goes wrong is this file's; one that makes no sense counts as absent."""
    for tag in list(ds.keys()):
        try:
            ds[tag]
        except Exception:  # pydicom raises whatever a damaged value leads it into
            del ds[tag]


def number(value: Any) -> float | None:
    """The number of a DICOM value, its first where there are several; None where there is none."""
    if isinstance(value, (list, tuple, pydicom.multival.MultiValue)):
        value = value[0] if len(value) else None
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if np.isfinite(found) else None


def text(ds: Dataset, *keywords: str) -> str:
    """The values of some attributes as one text, `\\` between several, a blank between attributes."""
    parts = []
    for keyword in keywords:
        value = ds.get(keyword)
        several = isinstance(value, (list, pydicom.multival.MultiValue))
        parts.append("\\".join(map(str, value)) if several else str(value if value is not None else ""))
    return " ".join(part.strip() for part in parts if part.strip())


def seconds(date: str, time: str) -> float | None:
    """Seconds since 1970 of a DICOM date and time (HHMMSS.FFFFFF); None where they are not that."""
    match = re.fullmatch(r"(\d\d)(\d\d)(\d\d)(\.\d+)?", time.strip().replace(":", ""))
    if not match:
        return None
    hours, minutes, whole, fraction = match.groups()
    day = 0.0
    if re.fullmatch(r"\d{8}", date.strip()):
        try:
            day = (datetime.strptime(date.strip(), "%Y%m%d") - datetime(1970, 1, 1)).total_seconds()
        except ValueError:
            return None
    return day + 3600 * int(hours) + 60 * int(minutes) + int(whole) + float(fraction or 0)


def _pixels(ds: Dataset, stopped: list[int], left: int) -> str:
    if text(ds, "BurnedInAnnotation").upper() == "YES":
        return BURNED
    if not stopped or stopped[0] == 0:
        return "no pixel data"
    if stopped[0] != 0xFFFFFFFF and left < stopped[0]:
        return "truncated pixel data"
    return ""


def _images(path: Path, ds: Dataset, pixels: str) -> list[Image]:
    syntax = str(getattr(ds.file_meta, "TransferSyntaxUID", ""))
    frames = ds.get("PerFrameFunctionalGroupsSequence") or []
    shared = (ds.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    count = int(number(ds.get("NumberOfFrames")) or 1)
    several = bool(frames) or count > 1
    made = []
    for index in range(len(frames) or 1):  # frames without functional groups say no position: one image stands for them
        scopes = [frames[index], shared, ds] if frames else [ds]
        made.append(_image(path, index if several else None, scopes, ds, syntax, pixels))
    return made


def _image(path: Path, frame: int | None, scopes: list[Dataset], ds: Dataset, syntax: str, pixels: str) -> Image:
    def value(keyword: str, *sequences: str) -> Any:
        """The attribute of the frame, of all frames, or of the file; in a functional group, or plain."""
        for scope in scopes:
            for sequence in sequences:
                items = scope.get(sequence)
                if items and items[0].get(keyword) is not None:
                    return items[0].get(keyword)
            if scope.get(keyword) is not None:
                return scope.get(keyword)
        return None

    def vector(keyword: str, sequence: str, length: int) -> tuple[float, ...] | None:
        found = value(keyword, sequence)
        numbers = [number(v) for v in found] if found is not None and len(found) == length else []
        return tuple(v for v in numbers if v is not None) if numbers and None not in numbers else None

    whole = (number(ds.get(name)) for name in ("TemporalPositionIdentifier", "AcquisitionNumber", "InstanceNumber"))
    temporal, acquisition, instance = (None if n is None else int(n) for n in whole)
    content = value("TemporalPositionIndex", "FrameContentSequence", "TemporalPositionSequence")
    return Image(
        path=path,
        frame=frame,
        sop_uid=str(ds.get("SOPInstanceUID", "")),
        syntax=syntax,
        pixels=pixels,
        instance=(instance or 0) + (frame or 0),
        position=vector("ImagePositionPatient", "PlanePositionSequence", 3),
        orientation=vector("ImageOrientationPatient", "PlaneOrientationSequence", 6),
        spacing_mm=vector("PixelSpacing", "PixelMeasuresSequence", 2),
        shape=(int(number(ds.get("Rows")) or 0), int(number(ds.get("Columns")) or 0)),
        image_type=_tokens(value("FrameType", "MRImageFrameTypeSequence") or ds.get("ImageType")),
        component=_component(ds, value("ComplexImageComponent", "MRImageFrameTypeSequence")),
        te_ms=number(value("EffectiveEchoTime", "MREchoSequence")) or number(ds.get("EchoTime")),
        b_value=_b_value(ds, value("DiffusionBValue", "MRDiffusionSequence")),
        temporal=temporal if content is None else int(content),
        acquisition=acquisition,
        time_s=_time(ds, value("FrameAcquisitionDateTime", "FrameContentSequence")),
        scaling=(
            number(value("RescaleSlope", "PixelValueTransformationSequence")),
            number(value("RescaleIntercept", "PixelValueTransformationSequence")),
        ),
    )


def _tokens(image_type: Any) -> str:
    several = isinstance(image_type, (list, pydicom.multival.MultiValue))
    return " ".join(map(str, image_type)).lower() if several else str(image_type or "").lower()


def _component(ds: Dataset, named: Any) -> str:
    if named:
        return _COMPONENTS.get(str(named).upper(), "magnitude")
    tokens = text(ds, "ImageType").upper().split("\\")[2:]
    found = next((_COMPONENTS[t] for t in tokens if t in _COMPONENTS), "")
    private = ds.get(_GE_COMPONENT) if text(ds, "Manufacturer").upper().startswith("GE") else None
    ge = {1: "phase", 2: "real", 3: "imaginary"}.get(int(number(private.value) or 0)) if private else None
    return found or ge or "magnitude"


def _b_value(ds: Dataset, standard: Any) -> float | None:
    """The standard's attribute, or the makers' own, or what Siemens writes in the sequence's name (*ep_b800t)."""
    maker = text(ds, "Manufacturer").upper()
    private = next((ds.get(tag) for name, tag in _B_VALUES.items() if maker.startswith(name)), None)
    for value in (standard, private.value if private else None):
        if (found := number(value)) is not None:
            return found % 100_000  # GE adds 1e9 to some
    named = re.search(r"_b(\d+)", text(ds, "SequenceName"))
    return float(named[1]) if named else None


def _time(ds: Dataset, frame: Any) -> float | None:
    whole = str(frame or ds.get("AcquisitionDateTime") or "")
    if len(whole) >= 14 and (found := seconds(whole[:8], re.split(r"[+-]", whole[8:])[0])) is not None:
        return found
    times = (seconds("", text(ds, name)) for name in ("AcquisitionTime", "ContentTime", "SeriesTime"))
    of_day = next((time_s for time_s in times if time_s is not None), None)
    if of_day is None:
        return None
    if midnight := _midnight(ds, "AcquisitionDate"):
        return midnight + of_day
    for name in ("Series", "Study"):
        if midnight := _midnight(ds, f"{name}Date"):
            begun = seconds("", text(ds, f"{name}Time")) or 0.0
            # what seems to come half a day before its series or study began came after midnight
            return midnight + of_day + (DAY_S if of_day < begun - DAY_S / 2 else 0)
    return of_day


def _midnight(ds: Dataset, keyword: str) -> float:
    """Seconds since 1970 when the date began; 0 where there is none."""
    return seconds(text(ds, keyword), "000000") or 0.0
