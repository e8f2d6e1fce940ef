"""The review: written for a person, edited, and obeyed."""

from __future__ import annotations

import stat

from client.manifest import read_manifest
from tests.client.dicom import scanner as s
from tests.client.dicom.command import MEDMOM, edited, rows, run


def test_a_review_that_is_there_is_not_replaced_unasked(tmp_path, export):
    path = edited(tmp_path, export, lambda table: table[:1])
    before = path.read_bytes()
    code, shown = run(export, "--key", tmp_path / "key", "--review-to", path)
    assert code == 2 and "--force" in shown and path.read_bytes() == before
    assert run(export, "--key", tmp_path / "key", "--review-to", path, "--force")[0] == 0 and len(rows(path)) == 9


def test_the_review_is_for_its_owner_alone_and_says_why(tmp_path, export):
    path = tmp_path / "review.csv"
    assert run(export, "--key", tmp_path / "key", "--review-to", path)[0] == 0
    assert len(rows(path)) == 9 and all(row["reason"] for row in rows(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_edited_review_is_obeyed(tmp_path, export):
    def change(table):
        for row in table:
            if row["series"].startswith("10 "):
                row["use"], row["modality"] = "yes", "T2"
            elif row["modality"] in ("T2", "C+A"):
                row["use"] = "no"

    path = edited(tmp_path, export, change)
    code, _ = run(export, "--key", tmp_path / "key", "--review", path, "-o", tmp_path / "out" / "manifest.csv")
    assert code == 0
    studies = read_manifest(tmp_path / "out" / "manifest.csv", MEDMOM).studies
    assert {s.organ: set(s.images) for s in studies} == {
        "brain": {"T1", "T1ce", "T2", "FLAIR"},
        "liver": {"C-pre", "C+V", "C+Delay"},
    }


def test_a_review_may_say_the_organ_that_no_header_names(tmp_path):
    s.write_series(tmp_path / "in", s.DWI, DiffusionBValue=800)
    s.write_series(tmp_path / "in", s.T2, number=2, BodyPartExamined="")

    def change(table):
        (row,) = (row for row in table if row["series"].startswith("2 "))
        assert row["use"] == "no" and "no body part named" in row["reason"]
        row |= {"use": "yes", "modality": "T2WI", "organ": "liver"}

    path = edited(tmp_path, tmp_path / "in", change)
    code, _ = run(tmp_path / "in", "--key", tmp_path / "key", "--review", path, "-o", tmp_path / "out" / "manifest.csv")
    (study,) = read_manifest(tmp_path / "out" / "manifest.csv", MEDMOM).studies
    assert code == 0 and set(study.images) == {"DWI", "T2WI"}


def test_a_review_without_the_key_it_was_written_with_is_refused(tmp_path, export):
    path = edited(tmp_path, export, lambda table: None)
    code, shown = run(export, "--key", tmp_path / "another", "--review", path)
    assert code == 2 and "is not there: a review holds for the key" in shown


def test_what_a_review_says_that_cannot_be_done_is_a_row_each(tmp_path, export):
    def change(table):
        by_modality = {row["modality"]: row for row in table if row["use"] == "yes"}
        by_modality["T1"]["use"] = "perhaps"
        by_modality["FLAIR"] |= {"modality": "T9", "organ": ""}
        by_modality["C+V"]["modality"] = "C+A"
        by_modality["T1ce"]["volume"] = "f" * 20
        table.append({**by_modality["T2"], "use": "no"})

    path = edited(tmp_path, export, change)
    code, shown = run(export, "--key", tmp_path / "key", "--review", path)
    assert code == 1
    for said in (
        "neither yes nor no",
        "'T9' is not a modality",
        "is a second C+A of study",
        "There is no volume",
        "The volume has a row already",
        "1 volumes are not in review.csv",
    ):
        assert said in " ".join(shown.split()), said
