"""A prepared study is made once, is never half there, and follows its files and settings."""

from __future__ import annotations

import gzip
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from client.cache import CubeCache
from client.manifest import Study
from client.problems import DataError
from configs.schema import VolumesConfig

CONFIG = VolumesConfig(size=16, spacing_mm=4.0, crop="centre")


def write_volume(path: Path, seed: int) -> Path:
    values = np.random.default_rng(seed).random((16, 16, 16)).astype(np.float32)
    path.write_bytes(gzip.compress(nib.Nifti1Image(values, np.diag([4.0, 4, 4, 1])).to_bytes(), 1))
    return path


def make_study(folder: Path, number: int = 0, *, modalities: tuple[str, ...] = ("T1", "T2")) -> Study:
    folder.mkdir(parents=True, exist_ok=True)
    images = {m: write_volume(folder / f"{number}-{m}.nii.gz", 10 * number + i) for i, m in enumerate(modalities)}
    rows = {m: i + 2 for i, m in enumerate(modalities)}
    return Study(f"P{number}", "A", "brain", None, None, "train", None, images, None, rows)


def files_of(folder: Path) -> dict[Path, bytes]:
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_cubes_come_back_in_the_studys_order(tmp_path):
    study = make_study(tmp_path / "scans")
    cache = CubeCache(tmp_path / "cache", CONFIG)
    entry = cache.entry(study)
    assert entry.modalities == ("T1", "T2")
    assert entry.read().shape == (2, 16, 16, 16) and entry.read().dtype == np.float16
    turned = replace(study, images=dict(reversed(study.images.items())))
    other = cache.entry(turned)
    assert other.modalities == ("T2", "T1")
    assert np.array_equal(other.read(), entry.read()[::-1])


def test_a_warm_start_reads_no_nifti_file(tmp_path):
    studies = [make_study(tmp_path / "scans", i) for i in range(3)]
    cold = CubeCache(tmp_path / "cache", CONFIG)
    first = [entry.read() for entry in cold.entries(studies)]
    assert cold.built == 3
    opened, watching = list[str](), [True]  # an audit hook stays for ever: it is switched off instead
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if watching and event == "open" else None)
    warm = CubeCache(tmp_path / "cache", CONFIG)
    second = [entry.read() for entry in warm.entries(studies)]
    watched = [name for name in opened if str(tmp_path) in name]
    assert watched and not [name for name in watched if name.endswith(".nii.gz")]
    assert warm.built == 0
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    studies[0].images["T1"].read_bytes()
    assert str(studies[0].images["T1"]) in opened  # the watch does see such a read
    watching.clear()


def test_a_changed_file_is_prepared_again_and_the_same_content_elsewhere_is_not(tmp_path):
    study = make_study(tmp_path / "scans")
    cache = CubeCache(tmp_path / "cache", CONFIG)
    before = cache.entry(study).read()
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "scans", moved)
    cache.entry(replace(study, images={m: moved / p.name for m, p in study.images.items()}))
    assert cache.built == 1
    write_volume(study.images["T2"], seed=99)
    after = cache.entry(study).read()
    assert cache.built == 2
    assert np.array_equal(before[0], after[0]) and not np.array_equal(before[1], after[1])


@pytest.mark.parametrize(
    ("change", "again"),
    [({"size": 8}, True), ({"spacing_mm": 5.0}, True), ({"crop": "foreground"}, True), ({"clip_percentiles": [1.0, 99.0]}, True),
     ({"memory_mb": 1}, False), ({"cache_gb": 1.0}, False), ({"on_bad_volume": "stop"}, False), ({"cache_dir": "x"}, False)],
)  # fmt: skip
def test_settings_that_change_cubes_and_only_those_make_new_ones(tmp_path, change, again):
    study = make_study(tmp_path / "scans")
    CubeCache(tmp_path / "cache", CONFIG).entry(study)
    other = CubeCache(tmp_path / "cache", replace(CONFIG, **change))
    other.entry(study)
    assert other.built == int(again)


def test_a_new_code_version_makes_new_ones(tmp_path, monkeypatch):
    study = make_study(tmp_path / "scans")
    CubeCache(tmp_path / "cache", CONFIG).entry(study)
    monkeypatch.setattr("client.cache.VERSION", -1)
    newer = CubeCache(tmp_path / "cache", CONFIG)
    newer.entry(study)
    assert newer.built == 1


def test_findings_are_remembered_with_the_place_they_have_now(tmp_path):
    study = make_study(tmp_path / "scans")
    study.images["T2"].write_bytes(b"no image")
    cache = CubeCache(tmp_path / "cache", CONFIG)
    first = cache.entry(study)
    assert first.modalities == ("T1",)
    assert [p.row for p in first.problems] == [3]
    later = cache.entry(replace(study, rows={"T1": 12, "T2": 13}))
    assert cache.built == 1
    assert [p.row for p in later.problems] == [13]
    assert str(study.images["T2"]) in later.problems[0].problem


def test_a_missing_file_is_found_once_it_is_there(tmp_path):
    study = make_study(tmp_path / "scans")
    cache = CubeCache(tmp_path / "cache", CONFIG)
    content = study.images["T2"].read_bytes()
    study.images["T2"].unlink()
    assert cache.entry(study).modalities == ("T1",)
    assert "missing" in cache.entry(study).problems[0].problem
    study.images["T2"].write_bytes(content)
    assert cache.entry(study).modalities == ("T1", "T2")
    study.images["T1"].unlink()
    study.images["T2"].unlink()
    nothing = cache.entry(study)
    assert nothing.modalities == () and len(nothing.problems) == 2


def test_a_damaged_cache_file_is_made_again(tmp_path):
    study = make_study(tmp_path / "scans")
    cache = CubeCache(tmp_path / "cache", CONFIG)
    entry = cache.entry(study)
    whole = entry.path.read_bytes()
    for damage in (whole[: len(whole) // 2], b"", b"\xff" * len(whole)):
        entry.path.write_bytes(damage)
        assert np.array_equal(cache.entry(study).read(), entry.read())
        assert entry.path.read_bytes() == whole


def test_two_builds_of_the_same_data_leave_the_same_bytes(tmp_path):
    studies = [make_study(tmp_path / "scans", i) for i in range(4)]
    for name in ("a", "b"):
        CubeCache(tmp_path / name, CONFIG).entries(studies)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


BUILD = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from client import cache as module
from client.cache import CubeCache
from client.manifest import read_manifest
from configs import load_vocabulary
from configs.schema import VolumesConfig
studies = read_manifest(Path(sys.argv[1]), load_vocabulary("medmom")).studies
config = VolumesConfig(size=16, spacing_mm=4.0, crop="centre", cache_gb=float(sys.argv[3]))
cache = CubeCache(Path(sys.argv[2]), config)
print("ready", flush=True)
module.workers_for = lambda studies, slow: ThreadPoolExecutor(4)  # as for large files
cache.entries(studies)
print(cache.built)
"""


def start_build(manifest: Path, cache: Path, *, cache_gb: float = 0.0) -> subprocess.Popen[str]:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", BUILD, str(manifest), str(cache), str(cache_gb)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)


@pytest.fixture
def manifest(tmp_path) -> Path:
    studies = [make_study(tmp_path, i) for i in range(150)]
    lines = [f"{s.patient_id},A,{m},{p.name}" for s in studies for m, p in s.images.items()]
    path = tmp_path / "m.csv"
    path.write_text("\n".join(["patient_id,study_id,modality,image", *lines]))
    return path


def test_two_processes_may_build_the_same_cache_at_once(tmp_path, manifest):
    builds = [start_build(manifest, tmp_path / "cache") for _ in "ab"]
    assert [b.communicate(timeout=60)[0].startswith("ready") and b.returncode for b in builds] == [0, 0]
    alone = start_build(manifest, tmp_path / "alone")
    alone.communicate(timeout=60)
    assert files_of(tmp_path / "cache") == files_of(tmp_path / "alone")
    assert not list((tmp_path / "cache" / "tmp").iterdir())


def test_a_killed_build_is_resumed(tmp_path, manifest):
    build = start_build(manifest, tmp_path / "cache")
    assert build.stdout is not None
    build.stdout.readline()
    wait_for_cubes(tmp_path / "cache", 20)
    build.send_signal(signal.SIGKILL)
    build.wait()
    assert 0 < len(list((tmp_path / "cache" / "cubes").rglob("*/*"))) < 150
    again = start_build(manifest, tmp_path / "cache").communicate(timeout=60)[0]
    assert 0 < int(again.split()[1]) < 135  # the rest, not everything
    start_build(manifest, tmp_path / "alone").communicate(timeout=60)
    kept = {p: c for p, c in files_of(tmp_path / "cache").items() if p.parts[0] != "tmp"}
    assert kept == files_of(tmp_path / "alone")


def test_leavings_of_killed_builds_go_after_a_day(tmp_path):
    CubeCache(tmp_path, CONFIG)
    for name, age_s in (("old", 90_000), ("new", 0)):
        (tmp_path / "tmp" / name).touch()
        os.utime(tmp_path / "tmp" / name, (time.time() - age_s,) * 2)
    CubeCache(tmp_path, CONFIG)
    assert [p.name for p in (tmp_path / "tmp").iterdir()] == ["new"]


def test_a_folder_that_cannot_be_written_is_said_with_the_remedy(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cache_dir"):
        CubeCache(tmp_path / "file" / "cache", CONFIG)


def test_names_in_the_folder_say_nothing(tmp_path):
    study = make_study(tmp_path / "scans")
    CubeCache(tmp_path / "cache", CONFIG).entry(study)
    for name, content in files_of(tmp_path / "cache").items():
        assert "P0" not in str(name) and b"nii" not in content
    assert len(files_of(tmp_path / "cache")) == 2


def test_two_processes_share_a_bounded_folder_and_a_kill_leaves_it_whole(tmp_path, manifest):
    one = CubeCache(tmp_path / "measure", CONFIG).entry(make_study(tmp_path / "one", 1)).path.stat().st_size
    limit = 40 * one
    builds = [start_build(manifest, tmp_path / "cache", cache_gb=limit / 1e9) for _ in "ab"]
    assert builds[0].stdout is not None
    builds[0].stdout.readline()
    wait_for_cubes(tmp_path / "cache", 20)
    builds[0].send_signal(signal.SIGKILL)
    builds[0].wait()
    assert builds[1].communicate(timeout=60)[0].startswith("ready") and builds[1].returncode == 0
    sizes = [p.stat().st_size for p in (tmp_path / "cache" / "cubes").rglob("*") if p.is_file()]
    assert 0 < sum(sizes) <= limit * 1.1
    assert set(sizes) == {one}, "no half file"


def wait_for_cubes(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 30
    while len(list(folder.rglob("cubes/*/*"))) < count and time.monotonic() < deadline:
        time.sleep(0.002)
