"""What an engineer sees of `medmap-client ingest`: a dry run, a manifest, a refusal, each with its exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.sources.commands import ALL, ingest
from tests.client.sources.trees import brats_case, lesion_study, nifti


def run(*arguments: object, width: int = 400) -> tuple[int, str]:
    done = CliRunner(env={"COLUMNS": str(width)}).invoke(ingest, [str(a) for a in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


@pytest.fixture
def fets(tmp_path) -> Path:
    for n in range(3):
        brats_case(tmp_path / "data", f"FeTS2022_0000{n}", ("flair", "t1", "t1ce", "t2", "seg"))
    (tmp_path / "p.csv").write_text("Partition_ID,Subject_ID\n1,FeTS2022_00000\n1,FeTS2022_00001\n2,FeTS2022_00002\n")
    return tmp_path


def test_a_dry_run_shows_all_and_writes_nothing(fets):
    before = sorted(p for p in fets.rglob("*"))
    code, shown = run("brats", fets / "data", "--partition", fets / "p.csv")
    assert code == 0
    for text in ("3 patients, 3 studies, 12 volumes", "T1 3, T1ce 3, T2 3, FLAIR 3", "site-1 2, site-2 1", "tumour 3",
                 "A dry run", "Every BraTS patient has a tumour"):  # fmt: skip
        assert text in shown
    assert sorted(p for p in fets.rglob("*")) == before


def test_a_manifest_is_written_and_check_accepts_it(fets):
    path = fets / "out" / "m.csv"
    code, shown = run("brats", fets / "data", "--partition", fets / "p.csv", "-o", path)
    assert code == 0 and f"medmap-client check {path}" in shown.replace("\n", "")
    checked = subprocess.run(
        [sys.executable, "-m", "client.cli", "check", path, "--headers-only"],
        capture_output=True, text=True, timeout=60, cwd=Path(__file__).resolve().parents[3], env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "3 patients, 3 studies, 12 volumes" in checked.stdout
    first = path.read_bytes()
    code, shown = run("brats", fets / "data", "--partition", fets / "p.csv", "-o", path)
    assert code == 2 and "--force" in shown and path.read_bytes() == first
    assert run("brats", fets / "data", "--partition", fets / "p.csv", "-o", path, "--force")[0] == 0
    assert path.read_bytes() == first  # byte for byte the same


def test_what_is_left_out_is_listed_and_exits_1_with_the_rest_written(fets):
    nifti(fets / "data" / "FeTS2022_00009" / "odd.nii.gz")
    code, shown = run("brats", fets / "data", "-o", fets / "m.csv")
    assert code == 1 and "is not named as a BraTS volume" in shown
    assert (fets / "m.csv").read_text().count("\n") == 13


def test_a_folder_of_another_layout_exits_1_and_a_wrong_one_2(tmp_path):
    code, shown = run("ixi", tmp_path, "-o", tmp_path / "m.csv")
    assert code == 1 and "holds nothing of this source's layout" in shown and not (tmp_path / "m.csv").exists()
    for arguments in (
        ("ixi", tmp_path / "nowhere"), ("lld-mmri", tmp_path), ("lld-mmri", tmp_path, "--fold", "9"), ("nothing", tmp_path),
        ("bids", tmp_path, "--label", "tumour"), ("folder", tmp_path), ("ixi", tmp_path, "--vocabulary", "nothing"),
        ("medmom", tmp_path, tmp_path), ("fed-brats", tmp_path),
    ):  # fmt: skip
        code, shown = run(*arguments)
        assert code == 2 and shown.strip() and "Traceback" not in shown, arguments


def test_measured_reports_reach_the_manifest(tmp_path):
    paths = lesion_study(tmp_path / "x", bright={"t1": 0.7, "flair": 2.0})
    for name, path in paths.items():
        os.rename(path, tmp_path / "x" / f"BraTS2021_00000_{'seg' if name == 'mask' else name}.nii.gz")
    code, shown = run(
        "brats", tmp_path / "x", "--reports", "measured", "--reports", "caption", "-o", tmp_path / "m.csv"
    )
    assert code == 1  # T1ce and T2 are missing
    written = (tmp_path / "m.csv").read_text()
    assert "markedly hyperintense on FLAIR" in written and ",measured," in written
    assert "Reports that are not a radiologist's: 1" in shown and "cannot be measured: that takes" in shown


def test_the_output_fits_a_narrow_terminal(fets):
    nifti(fets / "data" / "FeTS2022_00009" / "odd.nii.gz")
    _, shown = run("brats", fets / "data", width=80)
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("name", ALL)
def test_every_source_says_what_it_is_and_gives_an_example(name):
    code, shown = run(name, "--help", width=100)
    assert code == 0 and f"Example: medmap-client ingest {name}" in shown and "--output" in shown
