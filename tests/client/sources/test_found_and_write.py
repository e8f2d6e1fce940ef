"""The rules of every source: what a manifest may not hold is left out by name; the file is reproducible and whole."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from client.exams import read_exams
from client.manifest import read_manifest, split_of
from client.sources.files import volumes
from client.sources.found import Found, Row, SourceError, settle
from client.sources.write import manifest_text, write_manifest
from configs import load_vocabulary
from tests.client.sources.trees import nifti

MEDMOM = load_vocabulary("medmom")


def row(patient: str = "P1", study: str = "A", modality: str = "T1", **changes: object) -> Row:
    return replace(Row(patient, study, modality, Path(f"/data/{patient}-{study}-{modality}.nii.gz")), **changes)


def test_a_second_volume_of_a_slot_is_named_and_the_first_is_kept():
    twice = row(image=Path("/data/again.nii.gz"))
    found = settle(Found([row(), twice, row(modality="T2")]), MEDMOM)
    assert [r.image.name for r in found.rows] == ["P1-A-T1.nii.gz", "P1-A-T2.nii.gz"]
    assert len(found.problems) == 1 and "again.nii.gz" in found.problems[0].problem


def test_labels_that_contradict_one_another_cost_the_label_alone():
    rows = [row(abnormality="tumour"), row(modality="T2", abnormality="no_tumour"), row("P2", abnormality="tumour")]
    found = settle(Found(rows), MEDMOM)
    assert [r.abnormality for r in found.rows] == ["", "", "tumour"]
    assert ["called tumour and no_tumour" in p.problem for p in found.problems] == [True]


def test_a_label_that_one_row_gives_is_the_studys():
    found = settle(Found([row(abnormality="tumour"), row(modality="T2")]), MEDMOM)
    assert [r.abnormality for r in found.rows] == ["tumour", "tumour"] and not found.problems


def test_a_patient_of_two_splits_goes_to_the_most_held_out_and_others_get_the_hash():
    rows = [row(split="train"), row(study="B", split="test"), row("P2", split="val"), row("P3")]
    found = settle(Found(rows), MEDMOM)
    assert [r.split for r in found.rows] == ["test", "test", "val", split_of("P3")]
    assert len(found.problems) == 1 and "by a hash of their id: 1." in " ".join(found.notes)
    assert [r.split for r in settle(Found([row(), row("P2")]), MEDMOM).rows] == [
        "",
        "",
    ]  # without any split: left to the hash


def test_a_patient_of_two_sites_stays_in_the_first():
    found = settle(Found([row(site="north"), row(study="B", site="south")]), MEDMOM)
    assert {r.site for r in found.rows} == {"north"} and len(found.problems) == 1


def test_what_the_vocabulary_lacks_is_left_out_with_a_note_and_unknown_labels_with_a_problem():
    found = settle(
        Found([row(modality="PD"), row(abnormality="tumor"), row("P2", modality="C+A", organ="brain")]), MEDMOM
    )
    assert [(r.modality, r.abnormality) for r in found.rows] == [("T1", "")]
    assert "no such modality: C+A 1, PD 1." in " ".join(found.notes)
    assert "Did you mean tumour" in found.problems[0].remedy


def test_an_organ_that_the_vocabulary_lacks_is_a_problem_not_a_missing_modality():
    found = settle(Found([row(organ="Brain"), row(modality="T2", organ="Brain"), row("P2", organ="brain")]), MEDMOM)
    assert [r.patient_id for r in found.rows] == ["P2"] and not found.notes
    assert "'Brain' (2 volumes) is not an organ" in found.problems[0].problem
    assert "Did you mean brain" in found.problems[0].remedy


def test_the_same_rows_give_the_same_bytes_in_any_order():
    rows = [
        row(),
        row(modality="T2", spacing_mm=(0.7, 0.8, 5.5)),
        row("P2", report='Says "large",\nleft.', extra={"grade": "HGG"}),
    ]
    text = manifest_text(rows, Path("/data"))
    assert text == manifest_text(rows[::-1], Path("/data"))
    assert text.splitlines()[0] == "patient_id,study_id,modality,image,report,spacing_mm,grade"
    assert "P1,A,T2,P1-A-T2.nii.gz,,0.7 0.8 5.5," in text
    assert "../data/P1-A-T1.nii.gz" in manifest_text(rows, Path("/elsewhere"))


def test_a_manifest_is_read_back_as_it_was_found(tmp_path):
    mask = nifti(tmp_path / "a mask+.nii.gz")
    images = [nifti(tmp_path / "In Phase" / f"{name} +ü.nii.gz") for name in "ab"]
    rows = [
        row(
            modality="InPhase",
            image=images[0],
            mask=mask,
            abnormality="hcc",
            report="Läsion, rechts.",
            split="train",
            site="x",
        ),
        row(modality="C+A", image=images[1], mask=mask, spacing_mm=(0.7, 0.8, 5.5), split="train", site="x"),
    ]
    path = tmp_path / "out" / "m.csv"
    write_manifest(rows, path)
    study = read_manifest(path, MEDMOM).studies[0]
    assert {m: p.resolve() for m, p in study.images.items()} == {"InPhase": images[0], "C+A": images[1]}
    assert study.mask.resolve() == mask and study.spacings == {"C+A": (0.7, 0.8, 5.5)}
    [exam] = read_exams([str(path)], MEDMOM)  # what `predict` opens
    assert exam.spacings == study.spacings
    assert (study.abnormality, study.report, study.split, study.site) == ("hcc", "Läsion, rechts.", "train", "x")


def test_a_manifest_is_not_replaced_unasked_and_nothing_half_written_stays(tmp_path):
    path = tmp_path / "m.csv"
    write_manifest([row()], path)
    before = path.read_bytes()
    with pytest.raises(SourceError, match="--force"):
        write_manifest([row("P2")], path)
    assert path.read_bytes() == before
    write_manifest([row("P2")], path, force=True)
    assert b"P2" in path.read_bytes() and os.listdir(tmp_path) == ["m.csv"]
    with pytest.raises(SourceError, match="cannot be written"):
        write_manifest([row()], path / "below" / "m.csv")
    assert os.listdir(tmp_path) == ["m.csv"]


def test_the_folder_of_a_manifest_may_be_a_link(tmp_path):
    image = nifti(tmp_path / "data" / "a.nii.gz")
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    path = tmp_path / "link" / "m.csv"
    write_manifest([row(image=image)], path)
    assert len(read_manifest(path, MEDMOM).studies) == 1


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="whoever may read everything cannot be refused")
def test_a_folder_that_cannot_be_opened_is_named(tmp_path):
    nifti(tmp_path / "a.nii.gz")
    (tmp_path / "shut").mkdir(mode=0o000)
    found = Found()
    assert [name for name, _ in volumes(tmp_path, found)] == ["a.nii.gz"]
    assert ["shut cannot be opened" in p.problem for p in found.problems] == [True]


def test_hidden_files_are_not_volumes_links_to_files_are(tmp_path):
    nifti(tmp_path / "blobs" / "a.nii.gz")
    nifti(tmp_path / "data" / ".hidden.nii.gz")
    nifti(tmp_path / "data" / ".git" / "b.nii.gz")
    (tmp_path / "data" / "a.nii.gz").symlink_to(tmp_path / "blobs" / "a.nii.gz")
    (tmp_path / "data" / "up").symlink_to(tmp_path)
    found = Found()
    assert [name for name, _ in volumes(tmp_path / "data", found)] == ["a.nii.gz"] and not found.problems
    with pytest.raises(SourceError, match="is not a folder"):
        list(volumes(tmp_path / "nowhere", found))
