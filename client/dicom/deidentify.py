"""A DICOM file in, a de-identified copy out: PS3.15's Basic Profile by an allow-list, through the package `deid`.

configs/dicom/kept.yaml says what stays. The source is read alone. Pixels are not looked at: a head still has its face, and
whoever wrote into the picture is not erased, so images that say so, and anything but MR images, are refused.
"""

from __future__ import annotations

import io
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pydicom
import yaml
from pydicom.dataset import Dataset, FileMetaDataset

from client.dicom.headers import text
from client.dicom.pseudonyms import Pseudonyms
from configs import ROOT

_MR = ("1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1")  # MR and Enhanced MR Image Storage
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


class RefusedError(ValueError):
    """An image that cannot be de-identified by its header."""


def deidentified(path: Path, pseudonyms: Pseudonyms, patient_id: str) -> bytes:
    """The copy, as a file holds it. patient_id: the pseudonym. Raises RefusedError."""
    made = io.BytesIO()
    try:
        _copy(pydicom.dcmread(path), pseudonyms, patient_id).save_as(made, enforce_file_format=True)
        return made.getvalue()
    except RefusedError:
        raise
    except Exception as error:  # whatever a strange header leads pydicom or deid into
        raise RefusedError(f"its header cannot be taken apart ({type(error).__name__})") from None


def _copy(ds: Dataset, pseudonyms: Pseudonyms, patient_id: str) -> Dataset:
    if text(ds, "SOPClassUID") not in _MR:
        raise RefusedError("it is no MR image, whose pixels may hold anything")
    if text(ds, "BurnedInAnnotation").upper() == "YES":
        raise RefusedError("it says that text is burned into its pixels")
    pixels = {name: ds.pop(name) for name in _PIXELS if name in ds}  # deid keeps what it has parsed in memory
    syntax = ds.file_meta.TransferSyntaxUID
    _parse(ds, pseudonyms, patient_id)
    for name in _lists()["emptied"]:
        setattr(ds, name, "")
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = (
        "113100",
        "DCM",
        "Basic Application Confidentiality Profile",
    )
    ds.DeidentificationMethodCodeSequence = [code]
    for element in pixels.values():
        ds[element.tag] = element
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.file_meta, ds.preamble = meta, b"\0" * 128
    return ds


def _parse(ds: Dataset, pseudonyms: Pseudonyms, patient_id: str) -> None:
    from deid.dicom.parser import DicomParser

    kept = _kept()
    parser = DicomParser(ds, recipe=_recipe(), disable_skip=True)  # deid would skip a few that may hold words
    parser.define("unlisted", lambda item, value, field, dicom: field.element.keyword not in kept)
    parser.define("renamed", lambda item, value, field, dicom: pseudonyms.uid(str(field.element.value)))
    parser.define("patient", patient_id)
    parser.parse()


@cache
def _recipe() -> Any:
    """What deid is to do, made of kept.yaml's lists."""
    os.environ.setdefault("MESSAGELEVEL", "QUIET")  # its warnings name values
    from deid.config import DeidRecipe

    lines = ["FORMAT dicom", "%header", "REMOVE ALL func:unlisted"]
    lines += [f"REPLACE {name} func:renamed" for name in _lists()["renamed"]]
    lines += [f"ADD {name} var:patient" for name in ("PatientID", "PatientName")]
    lines += ["ADD PatientIdentityRemoved YES", "ADD LongitudinalTemporalInformationModified REMOVED"]
    lines += ["ADD DeidentificationMethod PS3.15 Basic Profile, by an allow-list"]
    with tempfile.TemporaryDirectory() as scratch:
        (file := Path(scratch, "recipe.dicom")).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return DeidRecipe(str(file))


@cache
def _lists() -> dict[str, list[str]]:
    return dict(yaml.safe_load((ROOT / "dicom" / "kept.yaml").read_text(encoding="utf-8")))


@cache
def _kept() -> frozenset[str]:
    return frozenset(name for names in _lists().values() for name in names)
