"""What an engineer sees of `medmap-client ingest`: a dry run, a manifest, a refusal, each with its exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.sources.commands import ALL, ingest
from tests.client.sources.trees import brats_case, lesion_study, lld, nifti


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


@pytest.mark.parametrize("source", ["lld-mmri", "brats", "fed-brats", "ixi", "bids", "folder", "medmom"])
def test_no_source_changes_a_byte_of_the_data_set_and_again_gives_the_same_manifest(tmp_path, source):
    data, more, brain = tmp_path / "data", [], ("flair", "t1", "t1ce", "t2", "seg")
    if source in ("lld-mmri", "medmom"):
        lld(data, {"MR1": [6], "MR-2": [4]})
        more = ["--write-masks", tmp_path / "masks"]
    if source == "medmom":
        brats_case(tmp_path / "brain", "BraTS2021_00000", brain)
        more = [tmp_path / "brain", *more]
    elif source == "brats":
        brats_case(data, "BraTS2021_00000", brain)
    elif source == "fed-brats":
        nifti(data / "x" / "t1n.nii.gz")
        (data / "metadata").mkdir()
        (data / "metadata" / "train.csv").write_text("BraTS Subject ID,Site,t1n\nBraTS-GLI-00005-100,1,x/t1n.nii.gz\n")
    elif source == "ixi":
        nifti(data / "IXI012-HH-1211-T1.nii.gz")
    elif source == "bids":
        nifti(data / "sub-1" / "anat" / "sub-1_T1w.nii.gz")
    elif source == "folder":
        nifti(data / "P 1+" / "T1.nii")
        (tmp_path / "l.yaml").write_text("files: '(?P<patient>.+)/(?P<modality>T1)\\.nii'\norgan: brain\n")
        more = ["--layout", tmp_path / "l.yaml"]

    def state() -> dict[Path, tuple[bytes, int]]:
        return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(data.rglob("*")) if p.is_file()}

    before = state()
    code, shown = run(source, data, *more, "-o", tmp_path / "m.csv")
    assert code in (0, 1) and (tmp_path / "m.csv").read_bytes().count(b"\n") > 1, shown
    first = (tmp_path / "m.csv").read_bytes()
    assert run(source, data, *more, "-o", tmp_path / "m.csv", "--force")[0] == code
    assert (tmp_path / "m.csv").read_bytes() == first and state() == before


def test_neither_ingest_nor_check_loads_what_takes_longer_than_they_do(fets):
    loads = "import sys\nfrom client.cli import app\ntry: app(sys.argv[1:])\nexcept SystemExit as ended: assert not ended.code\n"
    loads += "assert not {'torch', 'monai', 'flwr', 'transformers', 'scipy.ndimage'} & sys.modules.keys()"
    path = fets / "m.csv"
    for command in (["ingest", "brats", fets / "data", "-o", path], ["check", path, "--headers-only"]):
        done = subprocess.run(
            [sys.executable, "-c", loads, *command], capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[3]
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_masks_are_not_written_in_a_dry_run(tmp_path):
    lld(tmp_path / "data", {"MR1": [6]})
    code, shown = run("lld-mmri", tmp_path / "data", "--write-masks", tmp_path / "masks")
    assert code == 2 and "takes -o" in shown and not (tmp_path / "masks").exists()
    assert run("lld-mmri", tmp_path / "data", "--write-masks", tmp_path / "masks", "-o", tmp_path / "m.csv")[0] == 0
    assert (tmp_path / "masks" / "MR1.nii.gz").is_file()


def test_a_name_that_would_steer_the_terminal_or_its_markup_is_shown_as_it_is(tmp_path):
    brats_case(tmp_path / "[/bold] \x1b[2J", "BraTS2021_00000", ("t1",))
    nifti(tmp_path / "[/bold] \x1b[2J" / "odd.nii.gz")
    code, shown = run("brats", tmp_path)
    assert code == 1 and "[/bold] \\x1b[2J/odd.nii.gz" in shown and "\x1b[2J" not in shown


def test_a_screen_that_is_not_utf8_shows_what_it_lacks_escaped(tmp_path):
    brats_case(tmp_path / "Ärzte 患者", "BraTS2021_00000", ("t1",))
    nifti(tmp_path / "Ärzte 患者" / "odd.nii.gz")
    done = subprocess.run(
        [sys.executable, "-m", "client.cli", "ingest", "brats", tmp_path],
        capture_output=True, timeout=60, cwd=Path(__file__).resolve().parents[3],
        env={**os.environ, "COLUMNS": "400", "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 1 and b"\\xc4rzte \\u60a3\\u8005/odd.nii.gz" in done.stdout and not done.stderr


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
        ("medmom", tmp_path, tmp_path), ("fed-brats", tmp_path), ("ixi", tmp_path, "-o", tmp_path),
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
