"""Preprocessing undoes what it is there to undo, leaves alone what it is not, and is in the cache's key and the model's card."""

from __future__ import annotations

import gzip
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from client.cache import CubeCache
from client.grids import Grid
from client.manifest import Study
from client.preprocess.n4 import bias_corrected
from client.preprocess.registration import registered
from client.preprocess.steps import HOOK
from client.problems import DataError
from client.volumes import prepare
from configs.schema import VolumesConfig

SIZE = 32
GRID = Grid((SIZE,) * 3, np.array([[3.0, 0, 0, -46], [0, 3, 0, -46], [0, 0, 3, -46], [0, 0, 0, 1]]))
PLAIN = VolumesConfig(size=24, spacing_mm=4.0, crop="centre")
RAMP = np.exp(np.linspace(-0.5, 0.5, SIZE))[:, None, None].astype(np.float32)  # one side 2.7 times as bright


def head(shift_mm: tuple[float, float, float] = (0, 0, 0), *, turn_deg: float = 0.0, seed: int = 0) -> np.ndarray:
    """An ellipsoid with three different balls in it, as if the patient had moved; the same anatomy whatever the seed."""
    points = np.stack(np.meshgrid(*[np.arange(SIZE) * 3.0 - 46] * 3, indexing="ij"), -1) - np.array(shift_mm)
    c, s = np.cos(np.radians(turn_deg)), np.sin(np.radians(turn_deg))
    points = points @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    data = 100.0 / (1 + np.exp(8 * (((points / (32, 38, 35)) ** 2).sum(-1) - 1)))
    for centre, radius, value in (((12, 10, 5), 9, 80), ((-14, -8, 9), 7, -60), ((4, -18, -12), 8, 50)):
        data += value / (1 + np.exp(np.linalg.norm(points - np.array(centre), axis=-1) - radius))
    return (data + np.random.default_rng(seed).normal(0, 1, data.shape)).astype(np.float32)


def nifti(data: np.ndarray) -> bytes:
    return gzip.compress(nib.Nifti1Image(data, GRID.affine).to_bytes(), 1)


def alike(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


def test_n4_removes_a_known_bias_field_and_makes_none_up():
    inside = head() > 40
    spoilt = head() * RAMP
    mended = bias_corrected(GRID, spoilt)
    field = np.broadcast_to(RAMP, spoilt.shape)[inside]
    assert alike((spoilt / head())[inside], field) > 0.99
    left = np.log(mended[inside] / head()[inside])
    assert np.ptp(np.percentile(left, (5, 95))) < 0.4 * np.ptp(np.percentile(np.log(field), (5, 95)))
    assert alike(mended[inside], head()[inside]) > alike(spoilt[inside], head()[inside]) + 0.1
    assert np.abs(np.log(bias_corrected(GRID, head())[inside] / head()[inside])).mean() < 0.05
    assert np.array_equal(mended, bias_corrected(GRID, spoilt)), "the cache keeps what comes out"


def test_n4_leaves_alone_what_is_too_small():
    tiny = Grid((6, 6, 2), np.eye(4))
    data = np.random.default_rng(0).random((6, 6, 2)).astype(np.float32)
    assert np.array_equal(bias_corrected(tiny, data), data)


@pytest.mark.parametrize(("shift_mm", "turn_deg"), [((9, -6, 4), 0), ((4, 3, -5), 8)])
def test_registration_undoes_a_known_motion_between_contrasts(shift_mm, turn_deg):
    reference, still = head(), 180 - head(seed=1)  # another contrast: dark where the reference is bright
    moved = 180 - head(shift_mm, turn_deg=turn_deg, seed=1)
    grid, back = registered(GRID, moved, (GRID, reference))
    assert grid.shape == GRID.shape and np.allclose(grid.affine, GRID.affine)
    inner = (slice(6, -6),) * 3
    assert alike(moved[inner], still[inner]) < 0.85  # the control: unregistered they do not agree
    assert alike(back[inner], still[inner]) > 0.97
    _, unmoved = registered(GRID, still, (GRID, reference))
    assert alike(unmoved[inner], still[inner]) > 0.99
    assert np.array_equal(back, registered(GRID, moved, (GRID, reference))[1]), "the cache keeps what comes out"


def test_registration_keeps_the_volumes_own_voxels_on_the_references_axes():
    coarse = Grid((SIZE, SIZE, SIZE // 2), GRID.affine @ np.diag([1.0, 1, 2, 1]))
    grid, _ = registered(coarse, head()[:, :, ::2], (GRID, head()))
    np.testing.assert_allclose(grid.spacing_mm, (3, 3, 6))
    np.testing.assert_allclose(grid.box_mm, GRID.box_mm, atol=1e-6)


def test_a_studys_cubes_agree_once_they_are_registered():
    images = {"T1": nifti(head()), "T2": nifti(180 - head((9, -6, 4), seed=1))}
    still = prepare({"T1": images["T1"], "T2": nifti(180 - head(seed=1))}, None, PLAIN).cubes["T2"]
    before = prepare(images, None, PLAIN).cubes["T2"]
    after = prepare(images, None, replace(PLAIN, register="rigid")).cubes["T2"]
    inner = (slice(4, -4),) * 3
    assert alike(after[inner], still[inner]) > 0.97 > 0.9 > alike(before[inner], still[inner])


def test_skulls_are_stripped_of_brains_by_the_hospitals_own_tool(tmp_path, monkeypatch):
    script = tmp_path / "tool.py"
    script.write_text(
        "import sys, nibabel as nib, numpy as np\nimage = nib.load(sys.argv[1])\nvoxels = np.asarray(image.dataobj).copy()\n"
        "voxels[:, :10] = 0\nnib.save(nib.Nifti1Image(voxels, image.affine), sys.argv[2])\n"
    )
    monkeypatch.setenv(HOOK, f"{shlex.quote(sys.executable)} {shlex.quote(str(script))} {{input}} {{output}}")
    images, config = {"T1": nifti(head())}, replace(PLAIN, skull_strip="hook")
    brain, liver = (prepare(images, None, config, organ=organ).cubes["T1"] for organ in ("brain", "liver"))
    assert np.array_equal(liver, prepare(images, None, PLAIN).cubes["T1"])
    assert brain[:, :5].std() == 0 < liver[:, :5].std()
    monkeypatch.setenv(HOOK, "false {input} {output}")
    failed = prepare(images, None, config, organ="brain")
    assert not failed.cubes and "ended with 1" in failed.findings[0].problem


def study(folder: Path) -> Study:
    folder.mkdir(exist_ok=True)
    images = {}
    for modality, data in (("T1", head()), ("T2", 180 - head(seed=1))):
        images[modality] = folder / f"{modality}.nii.gz"
        images[modality].write_bytes(nifti(data))
    return Study("P", "A", "brain", None, None, "train", None, images, None, {"T1": 2, "T2": 3})


@pytest.mark.parametrize(
    ("change", "again"),
    [({"bias_correction": "n4"}, True), ({"register": "rigid"}, True), ({"standardise": "nyul"}, True),
     ({"skull_strip": "hook"}, True), ({"landmarks": {"T1": list(range(11))}}, False)],
)  # fmt: skip
def test_what_changes_cubes_is_in_the_caches_key(tmp_path, monkeypatch, change, again):
    monkeypatch.setenv(HOOK, "cp {input} {output}")
    one = study(tmp_path / "scans")
    CubeCache(tmp_path / "cache", PLAIN).entry(one)
    other = CubeCache(tmp_path / "cache", replace(PLAIN, **change))
    other.entry(one)
    assert other.built == int(again)


def test_another_tool_or_version_makes_new_cubes(tmp_path, monkeypatch):
    one, config = study(tmp_path / "scans"), replace(PLAIN, skull_strip="hook", bias_correction="n4")
    built = []
    for command, version in (
        ("cp {input} {output}", "2.5"),
        ("cp -p {input} {output}", "2.5"),
        ("cp -p {input} {output}", "2.6"),
    ):
        monkeypatch.setenv(HOOK, command)
        monkeypatch.setattr("SimpleITK.Version.VersionString", lambda version=version: version)
        cache = CubeCache(tmp_path / "cache", config)
        cache.entry(one)
        cache.entry(one)
        built.append(cache.built)
    assert built == [1, 1, 1]


def test_a_tool_that_failed_is_tried_again_at_the_next_start_and_what_cannot_be_used_is_not(tmp_path, monkeypatch):
    one, config = study(tmp_path / "scans"), replace(PLAIN, skull_strip="hook")
    tool, marker = tmp_path / "tool.py", tmp_path / "works"
    tool.write_text(
        f"import pathlib, sys, nibabel as nib, numpy as np\nif not pathlib.Path({str(marker)!r}).exists(): sys.exit(137)\n"
        "image = nib.load(sys.argv[1])\nvoxels = np.asarray(image.dataobj).copy()\nvoxels[:, :10] = 0\n"
        "nib.save(nib.Nifti1Image(voxels, image.affine), sys.argv[2])\n"
    )
    monkeypatch.setenv(HOOK, f"{shlex.quote(sys.executable)} {shlex.quote(str(tool))} {{input}} {{output}}")
    failed = CubeCache(tmp_path / "cache", config).entry(one)
    assert failed.modalities == () and "ended with 137" in failed.problems[0].problem and failed.path.exists()
    marker.touch()
    again = CubeCache(tmp_path / "cache", config)
    assert again.entry(one).modalities == ("T1", "T2") and again.built == 1
    monkeypatch.setenv(HOOK, "cp {input} {output}")  # changes nothing, however often
    for built in (1, 0):
        cache = CubeCache(tmp_path / "cache", config)
        assert "changed nothing" in cache.entry(one).problems[0].problem and cache.built == built


def test_a_tool_that_is_not_there_is_one_sentence_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    for change in ({"bias_correction": "n4"}, {"register": "rigid"}):
        with pytest.raises(DataError, match=r"medmap-fl\[ingest\]") as error:
            CubeCache(tmp_path / "cache", replace(PLAIN, **change))
        assert "\n" not in str(error.value)
    for command in (None, "strip {input}", "strip '{input} {output}"):
        monkeypatch.delenv(HOOK, raising=False)
        if command:
            monkeypatch.setenv(HOOK, command)
        with pytest.raises(DataError, match=HOOK):
            CubeCache(tmp_path / "cache", replace(PLAIN, skull_strip="hook"))
    CubeCache(tmp_path / "cache", PLAIN)  # who asks for none needs none
