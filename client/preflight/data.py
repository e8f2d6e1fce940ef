"""Checks of the data: manifest and volumes, splits that leak, images that are there twice, modalities and what they train."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from rich.progress import track

from client.cache import workers_for
from client.check import check_site, counted
from client.grids import HEADER_BYTES, VolumeError, read_grid
from client.manifest import SPLITS, ManifestError, Study
from client.preflight.rows import Row, Subject, shown
from client.problems import Problem

if TYPE_CHECKING:
    from rich.console import Console

_BLOCK = 1 << 20  # bytes
UNREADABLE = Row("skipped", "the manifest cannot be understood")


def manifest(subject: Subject) -> Row:
    """The manifest and its volumes, as `medmap-client check MANIFEST.csv` finds them."""
    path = subject.site.manifest
    command = f"medmap-client check {path}"
    try:
        found = check_site(
            path, subject.vocabulary, subject.config.data.volumes, headers_only=subject.headers_only, progress=subject.progress
        )  # fmt: skip
    except ManifestError as error:
        remedy = "Mend the file: a row per volume, with the columns patient_id, study_id, modality, image"
        return Row("failed", "No row can be understood", remedy, shown(error.problems, command))
    details = shown([*found.rows, *found.files], command)
    studies = found.manifest.studies
    patients = len({study.patient_id for study in studies})
    told = f"{counted(patients, 'patient')}, {counted(subject.volumes, 'volume')}"
    if subject.headers_only:
        told += ", of which only headers were read"
    bad = f"{counted(len(found.rows), 'problem')} in rows, {counted(len(found.files), 'file')} that cannot be used"
    if found.rows:
        return Row("failed", f"{bad}; {told}", "Mend the rows: training does not start before", details)
    if found.files:
        return Row("warning", f"{bad}; {told}", "Mend the files, or training leaves them out", details)
    return Row("ok", told)


def splits(subject: Subject) -> Row:
    """No patient in two splits; somebody to train on."""
    try:
        found, problems = subject.scanned
    except ManifestError:
        return UNREADABLE
    leaks = leaking_rows(problems)
    patients = Counter({study.patient_id: study.split for study in found.studies}.values())
    told = ", ".join(f"{split} {patients[split]:,}" for split in SPLITS if patients[split])
    if leaks:
        more = f"medmap-client check {subject.site.manifest}"
        remedy = "Give each patient one split: what a model was trained on cannot test it"
        return Row(
            "failed", f"{counted(len(leaks), 'row')} with a patient of another split", remedy, shown(leaks, more)
        )
    if max(Counter(_trained(found.studies).values()).values(), default=0) < 2:
        return Row("failed", f"Of no organ two patients to train on ({told})", "Put patients into the split `train`")
    if not patients["val"]:
        return Row(
            "warning", f"No validation patients ({told})", "Put some into the split `val`: no figure without them"
        )
    return Row("ok", f"Patients: {told}")


def leaking_rows(problems: Sequence[Problem]) -> list[Problem]:
    """Of a manifest's problems: rows of a patient who is in another split as well."""
    return [p for p in problems if p.column == "split" and "leakage" in p.problem]


def _trained(studies: tuple[Study, ...]) -> dict[tuple[str, str], str]:
    """(patient, organ) -> organ, of the training patients."""
    return {(s.patient_id, s.organ): s.organ for s in studies if s.split == "train"}


def cohort(subject: Subject) -> Row:
    """No number on the site's card is smaller than site.yaml lets the site tell (client.gate.egress)."""
    least = subject.site.egress.minimum_cohort
    if subject.site.privacy.cohort == "hidden":
        return Row("ok", "Told with noise alone (privacy.cohort: hidden)")
    try:
        studies = subject.scanned[0].studies
    except ManifestError:
        return UNREADABLE
    told = Counter({s.patient_id: s.split for s in studies}.values()) + Counter(_trained(studies).values())
    told += Counter(modality for s in studies if s.split == "train" for modality in s.images)
    small = [f"{name} {n}" for name, n in told.items() if n < least]
    if small:
        found = f"Too few to be told: {', '.join(small)}, where {least} is the least"
        remedy = "Leave these rows out of the manifest, have more, or lower egress.minimum_cohort in site.yaml"
        return Row("failed", found, remedy)
    return Row("ok", f"No split, organ or modality with fewer than {least}")


def duplicates(subject: Subject) -> Row:
    """Volumes with the same voxels, by SHA-256: under two patients (worse: in two splits), or twice with one."""
    if subject.headers_only:
        return Row("skipped", "only headers are to be read")
    try:
        studies = subject.scanned[0].studies
    except ManifestError:
        return UNREADABLE
    twice = same_voxels(studies, subject.progress)
    across = [group for group in twice if spread(group)[1] > 1]
    details = shown(map(told_same, twice))
    if across:
        leaking = sum(spread(group)[0] > 1 for group in across)
        found = f"{counted(len(across), 'image')} under two patients, {leaking} of them in two splits"
        remedy = "One person needs one patient_id; if it is not the same person, export the series again"
        return Row("failed", found, remedy, details)
    if twice:
        found = f"{counted(len(twice), 'image')} twice with the same patient"
        return Row("warning", found, "Correct the path or the modality of one of the two rows", details)
    return Row("ok", "No two volumes have the same voxels")


def same_voxels(studies: Sequence[Study], progress: Console) -> list[list[tuple[Study, str]]]:
    """Groups of (study, modality) with the same voxels, those over several splits first, then over several patients."""
    with workers_for(studies) as pool:
        hashes = track(
            pool.map(lambda study: {m: voxel_hash(path) for m, path in study.images.items()}, studies),
            "Comparing", len(studies), console=progress, transient=True,
        )  # fmt: skip
        same: dict[str, list[tuple[Study, str]]] = {}
        for study, of_study in zip(studies, hashes, strict=True):
            for modality, digest in of_study.items():
                if digest is not None:
                    same.setdefault(digest, []).append((study, modality))
    return sorted((group for group in same.values() if len(group) > 1), key=spread, reverse=True)


def spread(group: list[tuple[Study, str]]) -> tuple[int, int]:
    """Of a group of the same image: in how many splits, and with how many patients."""
    return len({study.split for study, _ in group}), len({study.patient_id for study, _ in group})


def told_same(group: list[tuple[Study, str]]) -> str:
    """Where the image is, with names of patients: for the site's own eyes."""
    return "the same image: " + ", ".join(
        f"row {study.rows[modality]} ({study.patient_id}, {study.split}, {modality})" for study, modality in group
    )


def voxel_hash(path: Path) -> str | None:
    """SHA-256 of a volume's voxels as they are stored, read in blocks; None for a file that is none (`manifest` names it).

    Header and packing do not count, so that a copy with another description is found. The same image with other scaling or
    resampled is not.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            header = read_grid(raw.read(HEADER_BYTES)).header
            assert header is not None
            raw.seek(0)
            with cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if packed else raw as voxels:
                return _hash(
                    voxels,
                    header.get_data_offset(),
                    math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize,
                )
    except (OSError, EOFError, VolumeError, zlib.error):
        return None


def _hash(stream: BinaryIO, start: int, length: int) -> str | None:
    """Of `length` bytes from `start` on; None when there are fewer."""
    stream.seek(int(start))
    digest, left = hashlib.sha256(), length
    while left and (block := stream.read(min(left, _BLOCK))):
        digest.update(block)
        left -= len(block)
    return None if left else digest.hexdigest()


def modalities(subject: Subject) -> Row:
    """Training volumes of each modality, and the module groups that this site would train by them."""
    from medmap_model.groups import owned, trunks

    try:
        found, problems = subject.scanned
    except ManifestError:
        return UNREADABLE
    vocabulary, train = subject.vocabulary, [s for s in found.studies if s.split == "train"]
    volumes = Counter(modality for study in train for modality in study.images)
    organs = Counter(_trained(found.studies).values())
    groups = owned(vocabulary, volumes, organs, "finetune", trunks(subject.config.model, vocabulary))
    told = ", ".join(f"{m} {volumes[m]:,}" for m in vocabulary.modalities if volumes[m])
    unknown = [p for p in problems if p.column == "modality" and "is not a modality" in p.problem]
    if unknown:
        remedy = "Correct the names, or ask the coordinator to add them to the federation's vocabulary"
        names = tuple(dict.fromkeys(f"{p.problem}. {p.remedy}" for p in unknown))
        return Row("failed", f"{counted(len(unknown), 'row')} with a modality that the vocabulary lacks", remedy, names)
    if not groups:
        return Row(
            "failed", "No training volume of a modality that the model knows", "Put patients into the split `train`"
        )
    return Row(
        "ok", f"Training volumes: {told}; trains {len(groups)} module groups", details=(f"trains {', '.join(groups)}",)
    )
