"""The preflight's checks of data and budget find what they are there for, and are content where nothing is wrong."""

from __future__ import annotations

import csv
import gzip
import os
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from client.manifest import ManifestError
from client.preflight.budget import budget
from client.preflight.data import cohort, duplicates, manifest, modalities, splits, voxel_hash
from client.preflight.rows import Subject
from client.privacy.ledger import Key, Ledger
from configs import ROOT
from medmap_model.accounting import Cost
from tests.client.preflight_parts import subject, told, write_site
from tests.conftest import write_hospital


@pytest.fixture
def hospital(tmp_path) -> Path:
    """A hospital to spoil: its manifest."""
    return write_hospital(tmp_path / "data", ["T1", "FLAIR"], patients=4)


def of(path: Path) -> Subject:
    """A site with this manifest, checked afresh."""
    return subject(write_site(path.parent, path))


def edit(path: Path, change: Callable[[list[dict[str, str]]], None]) -> None:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    change(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def file_of(path: Path, patient: str, modality: str) -> Path:
    return path.parent / f"data-{patient}-{modality}.nii.gz"


def test_good_data_pass_every_check(hospitals, tmp_path):
    checked = subject(write_site(tmp_path, hospitals["east"]))
    for check in (manifest, splits, cohort, modalities, duplicates):
        assert check(checked).result == "ok", told(check(checked))
    assert manifest(checked).found == "28 patients, 56 volumes"
    assert splits(checked).found == "Patients: train 12, val 4, test 6, common 6"
    assert "T1 12, FLAIR 12; trains 7 module groups" in modalities(checked).found
    assert "encoder/T1" in modalities(checked).details[0] and "T2" not in modalities(checked).details[0]
    quick = subject(write_site(tmp_path, hospitals["east"]), headers_only=True)
    assert manifest(quick).result == "ok" and duplicates(quick).result == "skipped"


def test_problems_are_counted_for_anyone_and_named_on_the_screen(hospital):
    file_of(hospital, "train-0", "T1").write_bytes(b"junk")
    row = manifest(of(hospital))
    assert row.result == "warning" and "0 problems in rows, 1 file that cannot be used" in row.found
    assert "data-train-0-T1" in row.details[0] and "data-train" not in told(row)
    edit(hospital, lambda rows: rows[0].update(abnormality="tumor"))
    row = manifest(of(hospital))
    assert row.result == "failed" and "training does not start" in row.remedy
    hospital.write_text("name,age\n")
    assert manifest(of(hospital)).result == "failed" and splits(of(hospital)).result == "skipped"
    with pytest.raises(ManifestError):
        _ = of(hospital).scanned


def test_a_patient_in_two_splits_is_leakage(hospital):
    edit(hospital, lambda rows: rows[0].update(split="test"))  # T1 of train-0; FLAIR stays in train
    row = splits(of(hospital))
    assert row.result == "failed" and "1 row with a patient of another split" in row.found
    assert "data-train-0" in row.details[0] and "data-train" not in told(row)


def test_nobody_to_train_or_to_validate_on(hospital):
    edit(hospital, lambda rows: [r.update(split="train") for r in rows if r["split"] == "val"])
    assert splits(of(hospital)).result == "warning"
    edit(hospital, lambda rows: [r.update(split="test") for r in rows])
    assert splits(of(hospital)).result == "failed" and modalities(of(hospital)).result == "failed"


def test_too_small_a_number_is_named_unless_it_is_told_with_noise(hospital):
    assert cohort(of(hospital)).result == "ok"
    edit(hospital, lambda rows: rows.__delitem__(slice(0, 2)))  # three training patients are left, and 4 is the least
    row = cohort(of(hospital))
    assert row.result == "failed" and "T1 3" in row.found and "val" not in row.found
    hidden = write_site(hospital.parent, hospital, "privacy: {cohort: hidden}\n")
    assert cohort(subject(hidden)).result == "ok"


def test_the_cohort_is_counted_in_patients_and_without_what_cannot_be_read(hospital):
    file_of(hospital, "train-1", "T1").write_bytes(b"junk")
    row = cohort(of(hospital))
    assert row.result == "failed" and "T1 3" in row.found and "FLAIR" not in row.found
    copy_voxels(file_of(hospital, "train-0", "T1"), hospital.parent / "again.nii.gz", change=1)
    edit(hospital, lambda rows: rows.append(rows[0] | {"study_id": "again", "image": "again.nii.gz"}))
    assert [s.study_id for s in of(hospital).checked.usable].count("again") == 1, "four volumes, of three patients"
    row = cohort(of(hospital))
    assert row.result == "failed" and "T1 3" in row.found
    assert cohort(subject(write_site(hospital.parent, hospital), headers_only=True)).result == "failed"


def test_names_that_the_gate_would_not_let_out_are_named_before(hospital, tmp_path):
    text = (ROOT / "vocabulary" / "medmom.yaml").read_text()
    (tmp_path / "ours.yaml").write_text(re.sub(r"\bT1\b", "T1w", text))
    edit(hospital, lambda rows: [r.update(modality="T1w") for r in rows if r["modality"] == "T1"])
    site = write_site(hospital.parent, hospital)
    run = f"data.vocabulary={tmp_path / 'ours.yaml'}"
    row = cohort(subject(site, run))
    assert (
        row.result == "failed"
        and row.found.startswith("T1w: in the run's vocabulary")
        and "egress.vocabulary" in row.remedy
    )
    site.write_text(
        site.read_text().replace("minimum_cohort: 4", f"minimum_cohort: 4, vocabulary: {tmp_path / 'ours.yaml'}")
    )
    assert cohort(subject(site, run)).result == "ok"


def copy_voxels(source: Path, target: Path, *, change: int = 0) -> None:
    """The same voxels (the last one changed by so much) under another description, packed otherwise."""
    image = nib.load(source)
    voxels = np.asarray(image.dataobj).copy()
    voxels[-1, -1, -1] += change
    header = image.header.copy()
    header["descrip"] = b"exported again"
    target.write_bytes(gzip.compress(nib.Nifti1Image(voxels, image.affine, header).to_bytes(), 1))


def test_the_same_image_under_two_patients_is_found_whatever_its_header(hospital):
    source, target = file_of(hospital, "train-0", "T1"), file_of(hospital, "test-1", "T1")
    copy_voxels(source, target, change=1)
    assert duplicates(of(hospital)).result == "ok", "one voxel makes another image"
    copy_voxels(source, target)
    assert source.read_bytes() != target.read_bytes()
    row = duplicates(of(hospital))
    assert row.result == "failed" and "1 image under two patients, 1 of them in two splits" in row.found
    assert "data-train-0" in row.details[0] and "data-test-1" in row.details[0] and "data-t" not in told(row)
    copy_voxels(source, file_of(hospital, "train-2", "T1"))
    copy_voxels(file_of(hospital, "test-1", "FLAIR"), target)
    assert "1 image under two patients, 0 of them in two splits" in duplicates(of(hospital)).found


def test_another_export_of_an_image_is_the_same_and_its_mirror_image_is_not(tmp_path):
    rng = np.random.default_rng(0)
    image = nib.Nifti1Image(rng.integers(0, 900, (6, 7, 8)).astype(np.int16), np.diag([2.0, 3, 4, 1]))
    exports = {
        "plain": image,
        "float": nib.Nifti1Image(np.asarray(image.dataobj, np.float64), image.affine),
        "turned": image.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]])),
        "mirrored": nib.Nifti1Image(np.asarray(image.dataobj)[::-1].copy(), image.affine),
    }
    for name, export in exports.items():
        nib.save(export, tmp_path / f"{name}.nii.gz")
    plain, as_float, turned, mirrored = (voxel_hash(tmp_path / f"{name}.nii.gz") for name in exports)
    assert plain == as_float == turned != mirrored


def test_the_same_image_twice_with_one_patient_is_a_warning(hospital):
    copy_voxels(file_of(hospital, "train-0", "T1"), file_of(hospital, "train-0", "FLAIR"))
    assert duplicates(of(hospital)).result == "warning"


def test_voxels_are_hashed_packed_or_not_and_broken_files_left_to_the_manifest(tmp_path, hospital):
    source = file_of(hospital, "train-0", "T1")
    plain = tmp_path / "plain.nii"
    plain.write_bytes(gzip.decompress(source.read_bytes()))
    assert voxel_hash(plain) == voxel_hash(source) is not None
    for broken in (b"", b"junk" * 2000, plain.read_bytes()[:-1], source.read_bytes()[:-900]):
        (tmp_path / "broken.nii").write_bytes(broken)
        assert voxel_hash(tmp_path / "broken.nii") is None
    assert voxel_hash(tmp_path / "nowhere.nii") is None


def test_an_unknown_modality_is_named_on_the_screen_alone(hospital):
    edit(hospital, lambda rows: rows[0].update(modality="data-train-0"))  # two columns mixed up: it may be anything
    row = modalities(of(hospital))
    assert row.result == "failed" and "1 row with a modality" in row.found
    assert "'data-train-0' is not a modality" in row.details[0] and "data-train-0" not in told(row)


# the budget


def ledger(path: Path, epsilon: float, spent: float) -> None:
    made = Ledger(path, epsilon=epsilon, delta=1e-5)
    made.reserve(Key("run", "validation", 0, "m"), "validation", Cost(1, epsilon=spent))


def test_the_budget_is_told_and_a_low_one_is_a_warning(hospitals, tmp_path):
    site = write_site(tmp_path, hospitals["east"], "privacy: {ledger: north.db, epsilon: 2}\n")
    assert budget(subject(site)).result == "ok" and not (tmp_path / "north.db").exists()
    ledger(tmp_path / "north.db", 2.0, 1.0)
    before = (tmp_path / "north.db").read_bytes()
    row = budget(subject(site))
    assert row.result == "ok" and "Epsilon 1.00 of 2 left, chain of 1 entries intact" in row.found
    assert (tmp_path / "north.db").read_bytes() == before, "asking writes nothing"
    ledger(tmp_path / "north.db", 2.0, 0.9)
    assert budget(subject(site)).result == "warning"
    write_site(tmp_path, hospitals["east"], "privacy: {ledger: north.db, epsilon: 3}\n")
    row = budget(subject(site))
    assert row.result == "failed" and "set site.yaml back" in row.remedy


def test_a_ledger_that_was_changed_or_is_none_is_a_failed_row(hospitals, tmp_path):
    site = write_site(tmp_path, hospitals["east"], "privacy: {ledger: north.db, epsilon: 2}\n")
    ledger(tmp_path / "north.db", 2.0, 1.0)
    db = sqlite3.connect(tmp_path / "north.db")
    db.execute("DROP TRIGGER entries_stay")
    db.execute("UPDATE entries SET body = replace(body, '1.0', '0.1')")
    db.commit()
    db.close()
    assert told(budget(subject(site))).startswith("failed: The ledger cannot be used")
    (tmp_path / "north.db").write_bytes(b"junk" * 1000)
    assert budget(subject(site)).result == "failed"


def test_a_delta_that_every_release_would_be_refused_for(hospitals, tmp_path):
    site = write_site(tmp_path, hospitals["east"], "privacy: {delta: 0.05}\n")  # 28 patients
    assert "1 / patients" in budget(subject(site)).found and budget(subject(site)).result == "failed"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(hospitals, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    site = write_site(tmp_path, hospitals["east"], "privacy: {ledger: closed/north.db}\n")
    assert budget(subject(site)).result == "failed"
