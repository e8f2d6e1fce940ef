"""Checks of the data: manifest and volumes, splits that leak, images that are there twice, modalities and what they train."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.progress import track

from client.cache import workers_for
from client.check import counted
from client.gate.names import Names
from client.grids import VolumeError, read_grid
from client.manifest import SPLITS, ManifestError, Study
from client.preflight.rows import Row, Subject, shown
from client.problems import Problem
from client.volumes import load

if TYPE_CHECKING:
    from rich.console import Console

UNREADABLE = Row("skipped", "the manifest cannot be understood")


def manifest(subject: Subject) -> Row:
    """The manifest and its volumes, as `medmap-client check MANIFEST.csv` finds them."""
    command = f"medmap-client check {subject.site.manifest}"
    try:
        found = subject.checked
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


def _trained(studies: Sequence[Study]) -> dict[tuple[str, str], str]:
    """(patient, organ) -> organ, of the training patients."""
    return {(s.patient_id, s.organ): s.organ for s in studies if s.split == "train"}


def cohort(subject: Subject) -> Row:
    """No number on the site's card has fewer patients behind it than site.yaml demands (client.gate.said, client.policy), bad
    volumes left out as training does."""
    least = subject.site.egress.minimum_cohort
    if subject.site.privacy.cohort == "hidden":
        return Row("ok", "Told with noise alone (privacy.cohort: hidden)")
    try:
        studies = subject.checked.usable
    except ManifestError:
        return UNREADABLE
    names = Names.of(subject.site).vocabulary
    if odd := sorted({m for s in studies for m in s.images} - set(names.modalities)):
        remedy = "Name the federation's vocabulary in site.yaml, as egress.vocabulary: no other name leaves this site"
        return Row("failed", f"{', '.join(odd)}: in the run's vocabulary, and not in that of site.yaml", remedy)
    told = Counter({s.patient_id: s.split for s in studies}.values()) + Counter(_trained(studies).values())
    told += Counter(m for m, _ in {(m, s.patient_id) for s in studies if s.split == "train" for m in s.images})
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
    """SHA-256 of a volume's values in RAS order; None for a file that is none (`manifest` names it).

    Header, packing, number format and the order of the axes do not count, so that another export of an image is found. The
    same image resampled, cropped or normalised is not.
    """
    try:
        raw = path.read_bytes()
        _, data = load(raw, read_grid(raw))
    except (OSError, VolumeError):
        return None
    return hashlib.sha256(repr(data.shape).encode() + (data + np.float32(0)).tobytes()).hexdigest()  # + 0: no -0


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
