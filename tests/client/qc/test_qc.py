"""`medmap-client qc` on simulated patients: what was spoilt is named, a clean site is not, and only rows and numbers may be sent on."""

from __future__ import annotations

import csv
import json
import re
import shutil
import stat
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from client.cli import app
from configs import load_vocabulary
from configs.schema import PhantomConfig
from simulation.phantom import generate
from simulation.phantom.kinds import KINDS
from simulation.sites import OrganShare, SiteSpec

MODALITIES = ("T1", "T2", "FLAIR")
Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    """A hospital of 36 patients with three sequences each; its manifest."""
    folder = tmp_path_factory.mktemp("phantom")
    mix = {kind: 1 / len(KINDS["brain"]) for kind in KINDS["brain"]}
    spec = SiteSpec("north", "reference-3T", {"brain": OrganShare(30, 3, 3, 0, MODALITIES, mix)})
    generate([spec], PhantomConfig(workers=1), load_vocabulary("medmom"), folder, seed=5)
    return folder / "north" / "manifest.csv"


def qc(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["qc", *map(str, arguments)], env={"COLUMNS": "300"})
    return done.exit_code, done.stdout, done.stderr


def rows_of(manifest: Path) -> Rows:
    """With whole paths, so that a manifest elsewhere can name the same files."""
    rows = list(csv.DictReader(manifest.open(encoding="utf-8")))
    return [row | {"image": str(manifest.parent / row["image"]), "mask": "", "report": ""} for row in rows]


def write(path: Path, rows: Rows) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def told(text: str) -> dict[str, list[tuple[str, list[int]]]]:
    """check -> (grade, rows) of each remark."""
    found: dict[str, list[tuple[str, list[int]]]] = {}
    for remark in json.loads(text)["remarks"]:
        found.setdefault(remark["check"], []).append((remark["grade"], remark["rows"]))
    return found


def test_a_clean_site_fails_in_nothing_and_its_names_are_not_doubted(clean):
    code, shown, _ = qc(clean, "--json")
    assert code == 0
    assert not {"label", "duplicates", "leakage", "file", "manifest"} & told(shown).keys()
    assert json.loads(shown)["counts"] | {"warning": 0} == {"failed": 0, "warning": 0, "volumes": 108}


def test_what_was_spoilt_is_named_by_row_and_nobody_by_name(clean, tmp_path):
    rows = rows_of(clean)
    rows[0]["modality"], rows[1]["modality"] = rows[1]["modality"], rows[0]["modality"]
    shutil.copy(rows[12]["image"], tmp_path / "copy.nii.gz")
    rows[30]["image"] = str(tmp_path / "copy.nii.gz")
    image = nib.load(rows[40]["image"])
    voxels = np.asarray(image.dataobj, np.float32)
    noisy = voxels + np.random.default_rng(0).normal(0, 0.3 * voxels.max(), voxels.shape)
    nib.save(nib.Nifti1Image(noisy.astype(np.float32), image.affine), tmp_path / "noisy.nii.gz")
    rows[40]["image"] = str(tmp_path / "noisy.nii.gz")
    (tmp_path / "bad.nii.gz").write_bytes(b"no image")
    rows[50]["image"] = str(tmp_path / "bad.nii.gz")
    rows[61]["split"] = "test" if rows[60]["split"] == "train" else "train"
    code, shown, _ = qc(write(tmp_path / "manifest.csv", rows), "--json", "-o", tmp_path / "qc.html")
    found = told(shown)
    assert code == 1
    assert [r for grade, r in found["label"] if grade == "failed"] == [[2], [3]]
    assert found["duplicates"] == [("failed", [14, 32])]
    assert ("failed", [52]) in found["file"] and ("failed", [63]) in found["leakage"]
    assert ("warning", [42]) in found["noise"]
    names = {row[column] for row in rows for column in ("patient_id", "study_id")}
    assert not [name for name in names if name in shown]
    assert str(tmp_path) not in shown and "bad.nii" not in shown
    page = (tmp_path / "qc.html").read_text(encoding="utf-8")
    assert rows[0]["patient_id"] in page and 'id="row-2"' in page
    assert stat.S_IMODE((tmp_path / "qc.html").stat().st_mode) == 0o600


def test_the_page_replaces_no_data_and_a_folder_that_is_not_there_is_said_at_once(clean, tmp_path):
    few = write(tmp_path / "manifest.csv", [row | {"split": ""} for row in rows_of(clean)[:3]])
    before = few.read_bytes()
    for output, words in ((few, "end it with .html"), (tmp_path / "none" / "qc.html", "there is no folder")):
        code, shown, error = qc(few, "-o", output)
        assert code == 2 and words in error and not shown
    assert few.read_bytes() == before


def test_the_page_needs_nothing_but_itself_and_a_name_cannot_break_out(clean, tmp_path):
    rows = [row | {"patient_id": "<script>alert(1)</script>", "split": ""} for row in rows_of(clean)[:3]]
    path = tmp_path / "qc.html"
    path.write_text("older")
    assert qc(write(tmp_path / "manifest.csv", rows), "-o", path)[0] == 0
    page = path.read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page
    assert page.count("data:image/png;base64,") == 3
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page) and "url(" not in page and "@import" not in page
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_of_many_volumes_those_with_a_remark_and_some_others_have_a_picture(clean, tmp_path, monkeypatch):
    monkeypatch.setattr("client.qc.page._ALL_SHOWN", 8)
    monkeypatch.setattr("client.qc.page._COMPARED", 1)
    rows = [row | {"split": ""} for row in rows_of(clean)[:9]]
    mine = tmp_path / "mine.yaml"
    mine.write_text("edge_mm: {warning: 3}\n")
    for limits, pictures in ((mine, 9), (None, 3)):
        path = tmp_path / "qc.html"
        qc(write(tmp_path / "manifest.csv", rows), "-o", path, *(("--limits", limits) if limits else ()))
        page = path.read_text(encoding="utf-8")
        assert page.count("data:image/png;base64,") == pictures
        assert ("and 2 more, without a remark" in page) == (limits is None)


def test_limits_of_ones_own_decide_and_strict_counts_warnings(clean, tmp_path):
    few = write(tmp_path / "manifest.csv", [row | {"split": ""} for row in rows_of(clean)[:6]])
    assert qc(few, "--strict")[0] == 0
    mine = tmp_path / "mine.yaml"
    mine.write_text("edge_mm: {warning: 2}\n")
    code, shown, _ = qc(few, "--limits", mine)
    assert code == 0 and "Coarsest edge above 2" in shown
    assert qc(few, "--limits", mine, "--strict")[0] == 1
    mine.write_text("edge_mm: {failed: 2}\n")
    assert qc(few, "--limits", mine)[0] == 1
    mine.write_text("edge_mm: {waning: 2}\n")
    code, _, error = qc(few, "--limits", mine)
    assert code == 2 and "line 1" in error and "warning" in error
    assert qc(tmp_path / "none.csv")[0] == 2
