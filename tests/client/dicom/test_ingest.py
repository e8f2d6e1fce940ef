"""`medmap-client ingest dicom` end to end: a dry run, pseudonyms, a manifest, a wrong command line, a kill."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path
from time import sleep

import nibabel as nib
import numpy as np
import pytest

from client.manifest import read_manifest
from tests.client.dicom import scanner as s
from tests.client.dicom.command import MEDMOM, edited, rows, run, snapshot


def test_a_dry_run_shows_all_and_writes_nothing(tmp_path, export):
    before = snapshot(tmp_path)
    code, shown = run(export, "--key", tmp_path / "key")
    assert code == 0 and snapshot(tmp_path) == before
    assert "8 of 9 volumes are used; 1 are too unsure" in shown
    assert "1 series or volumes are none to train on: a localizer 1" in shown
    assert "A dry run: no manifest was written" in shown and "keep their faces" in shown
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


def test_what_is_written_names_nobody_and_is_for_its_owner_alone(tmp_path, export):
    umask = os.umask(0o022)
    try:
        key = ("--key", tmp_path / "out" / "key" / "key")
        run(export, *key, "-o", tmp_path / "out" / "data" / "manifest.csv", "--dicom-copies")
        run(export, *key, "--review-to", tmp_path / "out" / "review" / "review.csv")
    finally:
        os.umask(umask)
    written = list((tmp_path / "out").rglob("*"))
    assert [p for p in written if stat.S_IMODE(p.stat().st_mode) != (0o700 if p.is_dir() else 0o600)] == []
    uids = {str(d.StudyInstanceUID) for d in map(s.dcmread, export.rglob("*.dcm"))}
    files = [p for p in written if p.is_file() and p.name != "review.csv"]
    assert sum(p.suffix == ".dcm" for p in files) == 8 * 6 and len(files) == 8 * 6 + 8 * 2 + 2
    for path in files:
        for secret in ("Doe", "Roe", "MRN-00", "ACC77", "Elsewhere", "20240312", *uids):
            assert secret.encode() not in path.read_bytes() and secret not in str(path.relative_to(tmp_path)), (
                path,
                secret,
            )


def test_copies_have_the_same_names_whichever_volumes_are_used(tmp_path):
    uid = s.generate_uid()
    for k, b in enumerate((0, 500, 800)):
        s.write_series(tmp_path / "in", s.DWI, uid=uid, first=6 * k, DiffusionBValue=b)

    def copied(*more: object) -> dict[str, str]:
        code, _ = run(
            tmp_path / "in", "--key", tmp_path / "key", "-o", tmp_path / "out" / "m.csv", "--dicom-copies", *more
        )
        assert code == 0
        return {p.name: s.dcmread(p).SOPInstanceUID for p in (tmp_path / "out" / "dicom").rglob("*.dcm")}

    first = copied()

    def change(table):
        for row in table:
            row |= {"use": "yes", "modality": "DWI"} if "b 500" in row["series"] else {"use": "no"}

    both = copied("--review", edited(tmp_path, tmp_path / "in", change), "--force")
    assert len(first) == 6 and len(both) == 12 and len(set(both.values())) == 12 and first.items() <= both.items()


def test_two_ids_of_one_person_and_two_people_of_one_id_are_told_by_their_pseudonyms(tmp_path):
    s.write_series(tmp_path / "in", s.T2)
    s.write_series(tmp_path / "in", s.T2, number=2, PatientID="OLD", PatientName="DOE^JANE", StudyInstanceUID="1.2.1")
    other = {"PatientName": "Roe^R", "PatientID": "X-1", "StudyInstanceUID": "1.2.2"}
    s.write_series(tmp_path / "in", s.T2, number=3, **other)
    s.write_series(
        tmp_path / "in", s.T2, number=4, **{**other, "PatientBirthDate": "20010101", "StudyInstanceUID": "1.2.3"}
    )
    code, shown = run(tmp_path / "in", "--key", tmp_path / "key", "-o", tmp_path / "out" / "m.csv")
    said = " ".join(shown.split())
    written = {row["patient_id"] for row in rows(tmp_path / "out" / "m.csv")}
    several, one = re.findall(r"Patients? ([\w ]+?) ha(?:s|ve) (?:several|one name)", said)[::-1]
    assert code == 0 and len(written) == 3 and one in {p[:8] for p in written}
    assert set(several.split(" and ")) == {p[:8] for p in written} - {one}
    assert "MRN-0042" not in said and "Doe" not in said and "1955" not in said


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


@pytest.mark.parametrize(
    "wrong", [("nowhere",), ("EXPORT", "--deface", "pydeface {input}"), ("EXPORT", "--organ", "heart"), ("EXPORT", "-o", "EXPORT/manifest.csv"),
              ("EXPORT", "--rules", "README"), ("EXPORT", "--review", "README"), ("EXPORT", "-o", "OUT/m.csv", "--key", "EXPORT/key"),
              ("EXPORT", "--review-to", "EXPORT/r.csv"), ("EXPORT", "-o", "OUT")],
)  # fmt: skip
def test_a_wrong_command_line_is_one_sentence(tmp_path, export, wrong):
    (tmp_path / "out").mkdir()
    names = {"EXPORT": export, "README": export / "README", "OUT": tmp_path / "out"}
    words = [re.sub("|".join(names), lambda m: str(names[m[0]]), w) for w in wrong]
    before = snapshot(tmp_path)
    code, shown = run(*words, *(() if "--key" in wrong else ("--key", tmp_path / "key")))
    assert snapshot(tmp_path) == before
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


@pytest.mark.parametrize(("tags", "used"), [(s.T2, 2), (s.T1, 1)], ids=["T2: the later", "T1: the earlier"])
def test_of_two_volumes_of_a_modality_one_is_used(tmp_path, tags, used):
    """A T2 is repeated because the first was bad; a later T1 may be after contrast that nobody wrote down."""
    for number, time in enumerate(("090000", "093000"), 1):
        s.write_series(tmp_path / "in", tags, number=number, AcquisitionTime=time, pixels=s.voxels(seed=number))
    code, shown = run(tmp_path / "in", "--key", tmp_path / "key", "-o", tmp_path / "out" / "manifest.csv")
    assert code == 0 and "is used instead" in " ".join(shown.split())
    (row,) = rows(tmp_path / "out" / "manifest.csv")
    assert (
        np.asarray(nib.load(tmp_path / "out" / row["image"]).dataobj) == s.voxels(seed=used)[:, ::-1].transpose(2, 1, 0)
    ).all()


@pytest.mark.slow
def test_a_run_that_is_killed_leaves_no_half_file_and_the_next_one_ends_as_if_it_had_not_been(tmp_path):
    for k in range(8):
        s.write_series(
            tmp_path / "in" / str(k),
            s.T2,
            PatientID=f"P{k}",
            StudyInstanceUID=f"1.2.{k}",
            pixels=s.voxels(12, 128, 128),
        )
    before = snapshot(tmp_path / "in")
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "client.cli",
        "ingest",
        "dicom",
        tmp_path / "in",
        "--key",
        tmp_path / "key",
        "-o",
        out / "m.csv",
    ]
    run_ = subprocess.Popen(
        list(map(str, command)), cwd=Path(__file__).resolve().parents[3], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    while not list(out.rglob("*.nii.gz")) and run_.poll() is None:
        sleep(0.01)
    run_.send_signal(signal.SIGKILL)
    run_.wait()
    for path in out.rglob("*.nii.gz"):
        assert np.asarray(nib.load(path).dataobj).shape == (128, 128, 12)
    assert run(tmp_path / "in", "--key", tmp_path / "key", "-o", out / "m.csv", "--force")[0] == 0
    assert run(tmp_path / "in", "--key", tmp_path / "key", "-o", tmp_path / "clean" / "m.csv")[0] == 0
    whole, clean = (
        {p.relative_to(top): p.read_bytes() for p in top.rglob("[!.]*") if p.is_file()}
        for top in (out, tmp_path / "clean")
    )
    assert whole == clean and len(clean) == 17 and snapshot(tmp_path / "in") == before
