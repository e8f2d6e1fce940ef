"""`medmap-client check site.yaml` as a whole: rows for all checks, nothing charged or sent on, and what may be sent on holds no patient."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from client.cli import app
from client.preflight import one_batch, run
from client.preflight.dry_run import _row, _write, dry_run, few_patients
from client.preflight.run import CHECKS, Check, as_dict, run_checks, show
from client.privacy.ledger import Key, Ledger
from configs import to_json
from medmap_model.accounting import Cost
from tests.client.preflight_parts import subject, told, write_site
from tests.conftest import SMALL, write_hospital

HEAVY = {"GPU", "memory", "dry-run"}


def check(*arguments: object, exits: int) -> str:
    done = CliRunner().invoke(app, ["check", *map(str, arguments)])
    assert done.exit_code == exits, done.output
    assert "Traceback" not in done.output
    return done.output


@pytest.fixture
def spoilt(tmp_path) -> Path:
    """The site.yaml of a hospital with something wrong in every respect."""
    manifest = write_hospital(tmp_path / "data", ["T1", "FLAIR"], patients=4)
    (manifest.parent / "data-train-0-T1.nii.gz").write_bytes(b"junk")
    same = (manifest.parent / "data-train-1-T1.nii.gz").read_bytes()
    (manifest.parent / "data-test-1-T1.nii.gz").write_bytes(same)
    lines = manifest.read_text().splitlines()
    lines[5] = lines[5].replace(",train", ",test")
    lines[7] = lines[7].replace("FLAIR,", "FLAR,").replace("T1,", "T7,")
    manifest.write_text("\n".join(lines) + "\n")
    return write_site(tmp_path, manifest)


def test_what_may_be_sent_on_names_no_patient_no_file_and_no_folder(spoilt):
    checked = subject(spoilt)
    rows = list(run_checks(checked, HEAVY))
    assert {r.check for r in rows if r.result == "failed"} >= {"splits", "modalities", "manifest", "duplicates"}
    sent = json.dumps(as_dict(rows, checked.site))
    for secret in ("data-t", ".nii", str(spoilt.parent), "manifest.csv", "T7", "FLAR"):
        assert secret not in sent
    console = Console(record=True, width=100, file=open("/dev/null", "w"))  # noqa: SIM115
    show(rows, console)
    screen = console.export_text()
    assert "data-train-0-T1.nii.gz" in screen and "data-test-1" in screen, "the hospital itself is told"
    assert f"{sum(r.result == 'failed' for r in rows)} failed: mend them" in screen


def test_of_a_hidden_cohort_nothing_depends_on_how_many_there_are(tmp_path):
    sent = []
    for patients in (5, 9):
        folder = tmp_path / str(patients)
        folder.mkdir()
        manifest = write_hospital(folder / "data", ["T1"], patients=patients)
        checked = subject(write_site(folder, manifest, "privacy: {cohort: hidden}\n"))
        rows = list(run_checks(checked, HEAVY))
        sent.append(json.dumps(as_dict(rows, checked.site)))
    assert sent[0] == sent[1]
    row = run.Row("warning", "No validation patients (train 9)", "Put some into the split `val`", (), "splits")
    assert "val" not in json.dumps(as_dict([row], checked.site)["rows"]), "what to do tells the number, too"
    checked = subject(write_site(folder, manifest))
    assert "train 9" in json.dumps(as_dict(list(run_checks(checked, HEAVY)), checked.site)), (
        "of a public one it is told"
    )


def test_a_check_that_raises_is_a_failed_row_and_the_others_go_on(hospitals, tmp_path, monkeypatch):
    def broken(_: object) -> run.Row:
        raise KeyError("patient-17")

    monkeypatch.setattr(run, "CHECKS", (CHECKS[0], Check("broken", broken), Check("splits", run.splits)))
    checked = subject(write_site(tmp_path, hospitals["east"]))
    rows = list(run_checks(checked))
    assert [(r.check, r.result) for r in rows] == [("versions", "ok"), ("broken", "failed"), ("splits", "ok")]
    assert "KeyError" in rows[1].found and "patient-17" not in json.dumps(as_dict(rows, checked.site))


def test_the_table_fits_a_hundred_columns(spoilt):
    rows = list(run_checks(subject(spoilt), HEAVY))
    console = Console(record=True, width=100, file=open("/dev/null", "w"))  # noqa: SIM115
    show([run.Row(r.result, r.found, r.remedy, (), r.check) for r in rows], console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 100
    for name in (c.name for c in CHECKS):
        assert any(re.match(rf" {re.escape(name)} ", line) for line in lines), f"{name} is on a line of its own"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("SITE", "--skip", "tea"), "there is no such check; there are versions"),
        (("SITE", "--kit", "."), "is no kit"),
        (("SITE", "--size", "16"), "--size is of a CSV"),
        (("CSV", "--json"), "--json is of a site.yaml"),
        (("SITE", "--set", "model.nam=x"), "there is no setting"),
        (("BAD",), "line 2: `manifets` is not a setting"),
        (("nowhere.yaml",), "does not exist"),
    ],
)
def test_wrong_usage_exits_2_in_one_sentence(hospitals, tmp_path, arguments, words):
    (tmp_path / "bad.yaml").write_text("name: north\nmanifets: x.csv\n")
    paths = {
        "SITE": write_site(tmp_path, hospitals["east"]), "CSV": hospitals["east"], "BAD": tmp_path / "bad.yaml",
        ".": tmp_path, "nowhere.yaml": tmp_path / "nowhere.yaml",
    }  # fmt: skip
    shown = check(*(paths.get(a, a) for a in arguments), exits=2)
    assert words in " ".join(shown.split()).replace("│ ", "")


def test_the_exit_code_and_the_verdict(spoilt, hospitals, tmp_path):
    quick = [a for name in ("GPU", "memory") for a in ("--skip", name)] + ["--no-dry-run"]
    assert "failed: mend them" in check(spoilt, *quick, exits=1)
    well = check(write_site(tmp_path / "well", hospitals["east"]), *quick, exits=0)
    assert "This site can start" in well and "as you asked" in well
    said = json.loads(check(tmp_path / "well" / "site.yaml", *quick, "--json", exits=0))
    assert [row["check"] for row in said["rows"]] == [c.name for c in CHECKS] and said["site"] == "north"


def test_few_patients_are_a_batch_of_each_organ_that_has_two(hospitals, tmp_path):
    studies = subject(write_site(tmp_path, hospitals["east"])).scanned[0].studies
    few = few_patients(studies, 5)
    assert len(few) == 5 == len({s.patient_id for s in few}) and {s.split for s in few} == {"train"}
    assert few_patients(studies[:1], 5) == []


def test_the_settings_are_private_where_the_site_demands_it_unless_they_say_otherwise(hospitals, tmp_path):
    plain = subject(write_site(tmp_path, hospitals["east"]))
    assert plain.config.privacy.kind == "none" and plain.config.output_dir == "outputs/flower"
    site = write_site(tmp_path, hospitals["east"], "privacy: {required: true}\n")
    assert subject(site).config.privacy.kind == "patient_dp"
    assert subject(site).config.stage.pretrain.objective == "bank"
    assert subject(site, "stage.pretrain.objective=siglip").config.stage.pretrain.objective == "siglip"
    assert subject(site, "privacy=none", "experiment=real").config.privacy.kind == "none"


@pytest.mark.slow
def test_the_dry_run_trains_privately_charges_nothing_and_leaves_prepared_volumes_alone(tmp_path):
    """The whole command, of a site that requires privacy and has a ledger."""
    manifest = write_hospital(tmp_path / "data", ["T1"], patients=4)
    site = write_site(tmp_path, manifest, "privacy: {ledger: north.db, epsilon: 3}\n")
    Ledger(tmp_path / "north.db", epsilon=3.0, delta=1e-5).reserve(
        Key("run", "validation", 0, "m"), "validation", Cost(1, epsilon=1.0)
    )
    before, listed = (tmp_path / "north.db").read_bytes(), sorted(manifest.parent.iterdir())
    settings = [part for s in SMALL for part in ("--set", s)]
    said = json.loads(check(site, *settings, "--json", exits=0))
    assert {row["result"] for row in said["rows"]} <= {"ok", "warning", "skipped"}
    row = next(row for row in said["rows"] if row["check"] == "dry-run")
    assert row["result"] == "ok" and "A batch of 4 patients on " in row["found"]
    for part in (" pretrain", " finetune", "private pretrain", "private finetune", "MB at its peak"):
        assert part in row["found"]
    assert (tmp_path / "north.db").read_bytes() == before and sorted(manifest.parent.iterdir()) == listed
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == ["cubes", "index", "text", "tmp"]


def test_what_the_site_does_not_allow_is_a_failed_row_with_its_words(hospitals, tmp_path, monkeypatch):
    """As the dry run's own process does it, in this one, which has PyTorch already."""
    site = write_site(tmp_path, hospitals["east"], "privacy: {required: true}\n")
    _write(tmp_path / "manifest.csv", hospitals["east"], subject(site).scanned[0].studies[:2])
    (tmp_path / "task.json").write_text(
        json.dumps({"config": to_json(subject(site, "privacy=none").config), "site_yaml": str(site)})
    )
    monkeypatch.setattr("sys.argv", ["one_batch", str(tmp_path)])
    assert one_batch.main() == 1
    row = _row(json.loads((tmp_path / "result.json").read_text()), 1, ())
    assert row.result == "failed" and "SiteError" in row.found and "requires privacy" in row.details[0]


def test_a_dry_run_that_takes_too_long_is_ended_and_leaves_no_names(hospitals, tmp_path):
    row = dry_run(subject(write_site(tmp_path, hospitals["east"])), timeout_s=0.2)
    assert row.result == "failed" and "more than" in row.found
    assert not list((tmp_path / "cache").glob("check-*")), "the few patients' manifest is gone"


def test_a_process_that_dies_is_a_row(hospitals, tmp_path):
    assert "signal 9" in _row({}, -9, ()).found and "memory" in _row({}, -9, ()).found
    assert "said nothing" in _row({}, 3, ("Segmentation",)).found
    assert "GPU's memory" in _row({"error": "OutOfMemoryError", "text": "", "expected": False}, 1, ()).found
    private = _row({"error": "DataError", "text": "data-train-0.nii.gz", "expected": True}, 1, ())
    assert "data-train" not in told(private) and "data-train" in private.details[0]
