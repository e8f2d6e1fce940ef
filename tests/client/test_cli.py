"""What an engineer sees: `medmap-client check` on good data, on bad data, and on a wrong command line."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from client.check import problem_table
from client.problems import Problem

HEADER = "patient_id,study_id,modality,image,organ,abnormality,report,mask,site,split"


def volume(path: Path, affine: np.ndarray | None = None) -> None:
    values = np.random.default_rng(0).random((16, 16, 16)).astype(np.float32)
    image = nib.Nifti1Image(values, np.diag([4.0, 4, 4, 1]) if affine is None else affine)
    path.write_bytes(gzip.compress(image.to_bytes(), 1))


def run(*arguments: object, width: int = 400) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "client.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "COLUMNS": str(width)},
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def site(tmp_path) -> Path:
    rows = []
    for i in range(4):
        for modality in ("T1", "FLAIR"):
            volume(tmp_path / f"{i}-{modality}.nii.gz")
            rows.append(f"P{i},A,{modality},{i}-{modality}.nii.gz,brain,tumour,Mass.,,north,{'train' if i else 'val'}")
    path = tmp_path / "manifest.csv"
    path.write_text("\n".join([HEADER, *rows, ""]))
    return path


def test_good_data_is_summarised_and_exits_0(site):
    code, shown = run("check", site)
    assert code == 0
    assert "4 patients, 4 studies, 8 volumes" in shown
    assert "train 3, val 1" in shown
    assert "tumour 4" in shown
    assert "No problems" in shown


def test_every_problem_of_rows_and_files_is_shown_and_exits_1(site):
    (site.parent / "1-T1.nii.gz").write_bytes(b"junk")
    (site.parent / "2-T1.nii.gz").write_bytes((site.parent / "2-T1.nii.gz").read_bytes()[:300])
    extra = ["P9,A,FLAR,0-T1.nii.gz,brain,,,,,val", "P8,A,T1,gone.nii.gz,brain,,,,,val", "P8,A,FLAR,x.nii.gz,,,,,,val"]
    site.write_text(site.read_text() + "\n".join(extra))
    code, shown = run("check", site)
    assert code == 1
    for text in ("'FLAR' is not a modality", "Did you mean FLAIR", "gone.nii.gz", "not a NIfTI image", "truncated"):
        assert text in shown
    assert "4 problems in the manifest" in shown
    assert "2 files cannot be used" in shown
    code, quick = run("check", site, "--headers-only")
    assert code == 1 and "not a NIfTI image" in quick and "truncated" not in quick


def test_rows_that_share_a_problem_are_shown_together(site):
    site.write_text(site.read_text().replace("tumour", "tumor"))
    _, shown = run("check", site)
    assert shown.count("'tumor' is not an abnormality") == 1
    assert "2-9" in shown


def test_problems_that_nobody_would_read_are_counted():
    def told(problems: list[Problem]) -> list[str]:
        return [str(cell) for cell in problem_table(problems).columns[2].cells]

    some = [Problem(row, "image", f"{row} is missing", "Mend it") for row in range(2, 1002)]
    alike = [Problem(row, "split", "No split", "Fill it in") for row in range(2, 5000)]
    odd = [Problem(None, None, f"{i} is odd", "Mend it") for i in range(3)]
    assert told(some) == [p.problem for p in some]  # as many as fit, all of them
    assert told([*alike, *some[:-1]]) == ["No split", *(p.problem for p in some[:-1])]  # what rows share is one line
    assert told([*some, *alike, *odd])[999:] == ["1001 is missing", "And 4 problems more: split 1, file 3"]


def test_a_mask_elsewhere_is_found(site):
    affine = np.diag([4.0, 4, 4, 1])
    affine[0, 3] = 300
    volume(site.parent / "mask.nii.gz", affine)
    site.write_text(site.read_text().replace("Mass.,,", "Mass.,mask.nii.gz,"))
    code, shown = run("check", site)
    assert code == 1 and "mask.nii.gz" in shown and "Resample it" in shown


@pytest.mark.parametrize(
    "arguments", [("check",), ("check", "nowhere.csv"), ("check", "SITE", "--vocabulary", "nothing"), ("check", "SITE", "--size", "1"),
                  ("check", "."), ("chek",)],
)  # fmt: skip
def test_a_wrong_command_line_exits_2(site, arguments):
    code, shown = run(*(site if a == "SITE" else a for a in arguments))
    assert code == 2
    assert shown.strip()


def test_a_file_that_is_no_manifest_exits_1(tmp_path):
    path = tmp_path / "notes.csv"
    path.write_bytes(b"\x00\x01 binary \xff\n\n")
    code, shown = run("check", path)
    assert code == 1 and "The column is missing" in shown


def test_the_output_fits_a_narrow_terminal(site):
    (site.parent / "1-T1.nii.gz").write_bytes(b"junk")
    _, shown = run("check", site, width=80)
    assert max(map(len, shown.splitlines())) <= 80


def test_help_says_what_it_does_and_gives_an_example():
    code, shown = run("check", "--help", width=100)
    assert code == 0
    assert "Example: medmap-client check" in shown and "Exit code: 0" in shown
    code, shown = run("predict", "--help", width=100)
    assert code == 0
    assert "Example: medmap-client predict" in shown and "Not a medical device" in shown and "Exit code: 0" in shown


def test_predict_without_a_checkpoint_or_a_study_is_wrong_usage():
    assert run("predict", "T1=a.nii.gz")[0] == 2
    assert run("predict", "-c", "outputs")[0] == 2
