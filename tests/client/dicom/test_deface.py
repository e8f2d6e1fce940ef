"""Heads and a tool that takes their faces off: no face is left where it was asked for."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from client.manifest import read_manifest
from tests.client.dicom import scanner as s
from tests.client.dicom.command import MEDMOM, run


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


def test_with_a_defacing_tool_no_dicom_copy_of_a_head_is_made(tmp_path, two):
    body = "nib.save(nib.Nifti1Image(np.zeros(image.shape, np.int16), image.affine), sys.argv[2])"
    more = ("--deface", tool(tmp_path / "tool.py", body), "--dicom-copies")
    code, shown = run(two, "--key", tmp_path / "key", "-o", tmp_path / "out" / "manifest.csv", *more)
    assert code == 0 and "1 head volumes have no DICOM copy" in " ".join(shown.split())
    copies = [s.dcmread(p) for p in (tmp_path / "out" / "dicom").rglob("*.dcm")]
    assert len(copies) == 6 and {ds.BodyPartExamined for ds in copies} == {"LIVER"}


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
    run(two, "--key", tmp_path / "key", "-o", tmp_path / "out" / "manifest.csv")  # an earlier run left it with its face
    if command == "TOOL":
        command = tool(tmp_path / "tool.py", "nib.save(image.slicer[:, :, :3], sys.argv[2])")
    out = ("-o", tmp_path / "out" / "manifest.csv", "--force")
    code, shown = run(two, "--key", tmp_path / "key", *out, "--deface", command)
    assert code == 1 and said in " ".join(shown.split())
    assert [study.organ for study in read_manifest(tmp_path / "out" / "manifest.csv", MEDMOM).studies] == ["liver"]
    assert len(list((tmp_path / "out").rglob("*.nii.gz"))) == 1
