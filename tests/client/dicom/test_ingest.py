"""`medmap-client ingest dicom` end to end: a dry run, a review that is edited and obeyed, defacing, pseudonyms, a manifest."""

from __future__ import annotations

import csv
import hashlib
import json
import shlex
import stat
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from client.cli import app
from client.manifest import read_manifest
from configs import load_vocabulary
from tests.client.dicom import scanner as s

MEDMOM = load_vocabulary("medmom")


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["ingest", "dicom", *map(str, arguments)], env={"COLUMNS": "160"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


@pytest.fixture
def export(tmp_path):
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


def snapshot(root: Path) -> dict[str, tuple[str, int]]:
    return {
        str(p): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns)
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_dry_run_shows_all_and_writes_nothing(tmp_path, export):
    before = snapshot(tmp_path)
    code, shown = run(export, "--key", tmp_path / "key")
    assert code == 0 and snapshot(tmp_path) == before
    assert "8 of 9 volumes are used; 1 are too unsure" in shown
    assert "1 series or volumes are none to train on: a localizer 1" in shown
    assert "A dry run: nothing was written" in shown and "keep their faces" in shown
    assert "no key yet" in shown


def test_volumes_manifest_and_reports_are_written_and_the_source_is_not_touched(tmp_path, export):
    before = snapshot(export)
    code, _ = run(export, "--key", tmp_path / "key", "-o", tmp_path / "out" / "manifest.csv")
    assert code == 0 and snapshot(export) == before
    manifest = read_manifest(tmp_path / "out" / "manifest.csv", MEDMOM)
    assert {s.organ: set(s.images) for s in manifest.studies} == {
        "brain": {"T1", "T1ce", "T2", "FLAIR"}, "liver": {"C-pre", "C+A", "C+V", "C+Delay"},
    }  # fmt: skip
    (brain,) = (s for s in manifest.studies if s.organ == "brain")
    assert brain.report == "Findings: ___ has a mass."
    for study in manifest.studies:
        for path in study.images.values():
            assert nib.load(path).shape == (24, 20, 6)
            assert (
                json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())["RepetitionTime_ms"] > 0
            )


def test_nothing_that_is_written_names_anybody(tmp_path, export):
    run(export, "--key", tmp_path / "key", "-o", tmp_path / "out" / "manifest.csv", "--dicom-copies")
    uids = {str(d.StudyInstanceUID) for d in map(s.dcmread, export.rglob("*.dcm"))}
    files = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert sum(p.suffix == ".dcm" for p in files) == 8 * 6
    for path in files:
        for secret in ("Doe", "Roe", "MRN-00", "ACC77", "Elsewhere", "20240312", *uids):
            assert secret.encode() not in path.read_bytes() and secret not in str(path.relative_to(tmp_path)), (
                path,
                secret,
            )


def test_the_same_key_gives_the_same_names_and_bytes_and_another_key_others(tmp_path, export):
    def ingest(out: str, key: str) -> tuple[bytes, dict[str, bytes]]:
        run(export, "--key", tmp_path / key, "-o", tmp_path / out / "manifest.csv")
        folder = tmp_path / out
        return (folder / "manifest.csv").read_bytes(), {
            str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.nii.gz")
        }

    first, again, other = ingest("a", "key"), ingest("b", "key"), ingest("c", "key2")
    assert first == again and len(first[1]) == 8
    assert first[1].keys().isdisjoint(other[1])


def test_the_key_is_for_its_owner_alone(tmp_path, export):
    key = tmp_path / "key"
    run(export, "--key", key, "-o", tmp_path / "out" / "manifest.csv")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and len(bytes.fromhex(key.read_text())) == 32
    key.chmod(0o644)
    code, shown = run(export, "--key", key)
    assert code == 2 and "chmod 600" in shown
    key.chmod(0o600)
    key.write_text("not a key")
    assert run(export, "--key", key)[0] == 2


def test_without_a_path_the_key_is_in_the_users_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    s.write_series(tmp_path / "in", s.T2)
    run(tmp_path / "in")
    assert not list((tmp_path / "home").rglob("*.key"))  # a dry run makes none
    run(tmp_path / "in", "-o", tmp_path / "out" / "manifest.csv")
    assert [p.name for p in (tmp_path / "home").rglob("*.key")] == ["pseudonyms.key"]
    assert not list((tmp_path / "out").rglob("*.key"))  # not beside what it hides


def edited(tmp_path: Path, export: Path, change) -> Path:
    path = tmp_path / "review.csv"
    assert run(export, "--key", tmp_path / "key", "--review-to", path)[0] == 0
    table = rows(path)
    table = change(table) or table
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return path


def test_the_review_is_for_its_owner_alone_and_says_why(tmp_path, export):
    path = edited(tmp_path, export, lambda table: None)
    assert len(rows(path)) == 9 and all(row["reason"] for row in rows(path))
    run(export, "--key", tmp_path / "key", "--review-to", path)
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

    path = edited(tmp_path, export, change)
    code, shown = run(export, "--key", tmp_path / "key", "--review", path)
    assert code == 1
    for said in (
        "neither yes nor no",
        "'T9' is not a modality",
        "is a second C+A of study",
        "There is no volume",
        "1 volumes are not in review.csv",
    ):
        assert said in " ".join(shown.split()), said


@pytest.fixture
def two(tmp_path):
    """A head and a liver."""
    s.write_series(tmp_path / "two", s.T2)
    s.write_series(tmp_path / "two", s.VIBE, SeriesDescription="vibe art", StudyInstanceUID="1.2.3", number=2)
    return tmp_path / "two"


def tool(path: Path, body: str) -> str:
    """A command that runs a script of its own."""
    path.write_text(f"import sys, nibabel as nib, numpy as np\nimage = nib.load(sys.argv[1])\n{body}\n")
    return f"{shlex.quote(sys.executable)} {shlex.quote(str(path))} {{input}} {{output}}"


def test_heads_are_defaced_by_the_tool_and_livers_are_left_alone(tmp_path, two):
    body = """voxels = np.asarray(image.dataobj).copy()
voxels[:, :5] = 0
image.header["descrip"] = b"Jane Doe"
nib.save(nib.Nifti1Image(voxels, image.affine, image.header), sys.argv[2])"""
    command = tool(tmp_path / "tool.py", body)
    code, shown = run(two, "--key", tmp_path / "key", "-o", tmp_path / "out" / "manifest.csv", "--deface", command)
    assert code == 0 and "keep their faces" not in shown
    for study in read_manifest(tmp_path / "out" / "manifest.csv", MEDMOM).studies:
        (path,) = study.images.values()
        image = nib.load(path)
        assert (np.asarray(image.dataobj)[:, :5] == 0).all() == (study.organ == "brain")
        assert not bytes(image.header["descrip"]).strip(b"\0")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("false {input} {output}", "ended with 1"),
        ("true {input} {output}", "left no NIfTI file"),
        ("cp {input} {output}", "changed nothing"),
        ("cp /dev/null {output}{input}", "ended with 1"),
        ("no-such-tool {input} {output}", "cannot be run"),
        ("TOOL", "changed its grid"),
    ],
)  # fmt: skip
def test_a_head_that_could_not_be_defaced_is_left_out(tmp_path, two, command, said):
    if command == "TOOL":
        command = tool(tmp_path / "tool.py", "nib.save(image.slicer[:, :, :3], sys.argv[2])")
    code, shown = run(two, "--key", tmp_path / "key", "-o", tmp_path / "out" / "manifest.csv", "--deface", command)
    assert code == 1 and said in " ".join(shown.split())
    assert [study.organ for study in read_manifest(tmp_path / "out" / "manifest.csv", MEDMOM).studies] == ["liver"]
    assert len(list((tmp_path / "out").rglob("*.nii.gz"))) == 1


@pytest.mark.parametrize(
    "wrong", [("nowhere",), ("EXPORT", "--deface", "pydeface {input}"), ("EXPORT", "--organ", "heart"), ("EXPORT", "-o", "EXPORT/manifest.csv"),
              ("EXPORT", "--rules", "README"), ("EXPORT", "--review", "README")],
)  # fmt: skip
def test_a_wrong_command_line_is_one_sentence(tmp_path, export, wrong):
    words = [w.replace("EXPORT", str(export)).replace("README", str(export / "README")) for w in wrong]
    code, shown = run(*words, "--key", tmp_path / "key")
    assert code == 2 and len([line for line in shown.splitlines() if line.startswith("medmap-client:")]) == 1
    assert "Traceback" not in shown


def test_rules_of_the_hospital(tmp_path, export):
    (tmp_path / "mine.yaml").write_text(
        "review_below: 0.5\ncontrast: {words: post, not_words: pre}\norgans: [{organ: brain, place: brain}]\nphases: []\n"
        "rules:\n  - {modality: FLAIR, organ: brain, when: {words: 'ax 3'}, confidence: 0.6}\n"
    )
    code, _ = run(
        export, "--key", tmp_path / "key", "--rules", tmp_path / "mine.yaml", "-o", tmp_path / "out" / "manifest.csv"
    )
    assert code == 0 and [row["modality"] for row in rows(tmp_path / "out" / "manifest.csv")] == ["FLAIR"]


def test_two_volumes_of_a_modality_the_surer_and_later_is_used(tmp_path):
    for number, time in enumerate(("090000", "093000"), 1):
        s.write_series(tmp_path / "in", s.T2, number=number, AcquisitionTime=time, pixels=s.voxels(seed=number))
    code, shown = run(tmp_path / "in", "--key", tmp_path / "key", "-o", tmp_path / "out" / "manifest.csv")
    assert code == 0 and "is used instead" in " ".join(shown.split())
    (row,) = rows(tmp_path / "out" / "manifest.csv")
    assert (
        np.asarray(nib.load(tmp_path / "out" / row["image"]).dataobj) == s.voxels(seed=2)[:, ::-1].transpose(2, 1, 0)
    ).all()
