"""`medmap-sim` as a person runs it: the phantom, the summary's promises, Ctrl-C and resume.

What a process of its own does not change runs in this one, by `here`: starting one takes longer than so small a federation.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from server.cli import app
from simulation.cli import _main

SIM = shutil.which("medmap-sim", path=str(Path(sys.executable).parent))
# A federation of three brain hospitals that trains in seconds.
TINY = [
    "sites.organs=[brain]", "sites.count=3", "sites.patients=12", "sites.validation_patients=4", "sites.test_patients=6", "sites.common_patients=8",
    "sites.external_patients=10", "data.phantom.size=16", "data.volumes.size=16", "data.volumes.spacing_mm=6", "text=hash", "model.encoder.width=4",
    "model.embed_dim=32", "stage.pretrain.rounds=1", "stage.finetune.rounds=2", "stage.pretrain.epochs=1", "stage.finetune.epochs=1", "bootstrap=20",
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder to run in: the phantom is made once and found again by later runs."""
    return tmp_path_factory.mktemp("world")


def sim(world: Path, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SIM, *arguments], cwd=world, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def done(world):
    """One finished run with all baselines, in two worker processes."""
    shown = sim(world, *TINY, "output_dir=run", "engine.workers=2")
    assert shown.returncode == 0, shown.stderr[-3000:]
    return world / "run", shown.stdout


@pytest.fixture
def here(world, monkeypatch, capsys) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """medmap-sim in this process, in `world`."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.chdir(world)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        code = _main(list(arguments))
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    yield run
    for polite, handler in handlers.items():
        signal.signal(polite, handler)


def wait_for(what: Callable[[], bool], process: subprocess.Popen | None = None, *, wait_s: float = 240) -> None:
    """Until it is so; no longer than the process runs."""
    end = time.monotonic() + wait_s
    while not what():
        assert time.monotonic() < end and (process is None or process.poll() is None)
        time.sleep(0.02)


def status(folder: Path) -> tuple[int, str]:
    """What `medmap-server status` says of a run's folder: exit code, last line."""
    shown = CliRunner().invoke(app, ["status", str(folder)])
    return shown.exit_code, shown.output.splitlines()[-1]


def weights(run_dir: Path) -> dict[str, np.ndarray]:
    return load_file(run_dir / "checkpoints" / "finetune-0002" / "model.safetensors")


@pytest.mark.slow
def test_a_run_leaves_what_it_promises(done):
    run_dir, shown = done
    assert {
        "summary.json",
        "report.html",
        "config.yaml",
        "metrics.jsonl",
        "checkpoints",
        "tensorboard",
        "partition.png",
    } <= {p.name for p in run_dir.iterdir()}
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["schema_version"], summary["status"], summary["engine"], summary["privacy"]) == (
        1,
        "completed",
        "inprocess",
        None,
    )
    assert set(summary["metrics"]) == {"federated", "local", "pooled", "naive"}
    for condition in summary["metrics"].values():
        assert 0 <= condition["brain"]["auroc"] <= 1
        assert "liver" not in condition, "what is missing is absent or null, never 0"
    assert summary["metrics"]["federated"]["brain"]["n"] == 3 * 8
    assert summary["metrics_external"]["federated"]["brain"]["n"] == 10
    low, high = summary["metrics"]["federated"]["brain"]["auroc_ci"]
    assert low <= summary["metrics"]["federated"]["brain"]["auroc"] <= high
    trained = [s["name"] for s in summary["sites"] if not s["external"]]
    matrix = summary["cross_site"]
    assert set(matrix["models"]) == {"federated", "pooled", "naive", *[f"local-{s}" for s in trained]}
    assert len(matrix["organ"]["brain"]) == len(matrix["models"])
    assert summary["stages"]["finetune"]["rounds"] == 2
    census = {s["name"]: s["patients"] for s in json.loads((run_dir / "partition.json").read_text())["sites"]}
    assert {s["name"]: s["studies"] for s in summary["sites"]} == {
        name: {split: n for split, n in patients.items() if split != "common"} for name, patients in census.items()
    }
    assert set(summary["shift"]["organs"]["brain"]["sites"]) == set(census)
    assert all(0 < s["studies"]["train"] <= 12 for s in summary["sites"] if not s["external"])
    traffic = summary["communication"]
    assert 0 < traffic["bytes_up"] <= traffic["bytes_down"]
    assert traffic["bytes_up"] < 3 * 3 * traffic["bytes_full_model"], "sites send what they own, not the whole model"
    assert "AUROC" in shown and "report.html" in shown
    assert len((run_dir / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_the_same_seed_gives_the_same_model_and_the_same_scores_in_one_process_or_two(done, world):
    run_dir, _ = done
    assert sim(world, *TINY, "output_dir=again", "engine.workers=1", "baselines=[pooled]").returncode == 0
    one, two = (json.loads((d / "summary.json").read_text()) for d in (run_dir, world / "again"))
    assert one["metrics"]["federated"] == two["metrics"]["federated"]
    assert one["metrics"]["pooled"] == two["metrics"]["pooled"]
    for name, tensor in weights(run_dir).items():
        np.testing.assert_array_equal(weights(world / "again")[name], tensor)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_ends_cleanly_and_the_resumed_run_ends_with_the_same_bits(done, world, workers):
    run_dir, _ = done
    cut, baselines = f"cut-{workers}", "[]" if workers == 1 else "[pooled]"
    process = subprocess.Popen(
        [SIM, *TINY, f"output_dir={cut}", f"baselines={baselines}", f"engine.workers={workers}"],
        cwd=world,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: (world / cut / "checkpoints").exists(), process)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors[-2000:]
    assert "medmap-sim resume=" in errors and "Traceback" not in errors
    assert not (world / cut / "summary.json").exists()
    resumed = sim(world, f"resume={cut}")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    for name, tensor in weights(run_dir).items():
        np.testing.assert_array_equal(weights(world / cut)[name], tensor)


@pytest.mark.slow
def test_two_never_work_in_one_folder_and_a_killed_run_leaves_nobody_there(world):
    settings = [*TINY, "output_dir=held", "baselines=[pooled]", "engine.workers=2"]
    process = subprocess.Popen([SIM, *settings, "stage.finetune.rounds=5000"], cwd=world, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: (world / "held" / "checkpoints").exists(), process)
        workers = [int(n) for n in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        assert len(workers) >= 2
        for second in (["resume=held"], settings):
            shown = sim(world, *second)
            assert (shown.returncode, shown.stderr.count("\n")) == (1, 1), shown.stderr
            assert f"another run (process {process.pid}) works in" in shown.stderr
        assert not (world / "held.1").exists()
        assert status(world / "held") == (0, "running")
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: not any(Path(f"/proc/{n}").exists() for n in workers))
    told = f"cut off; nobody works on it; to go on: medmap-sim resume={world / 'held'}"
    assert status(world / "held") == (1, told)


@pytest.mark.slow
def test_a_second_run_moves_the_first_aside(done, world):
    first = json.loads((world / "run" / "summary.json").read_text())
    shown = sim(world, *TINY, "output_dir=run", "baselines=[]", "stage.finetune.rounds=1")
    assert shown.returncode == 0, shown.stderr[-2000:]
    assert json.loads((world / "run.1" / "summary.json").read_text()) == first
    shutil.rmtree(world / "run")
    (world / "run.1").rename(world / "run")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["sites.cuont=3"], 2, "there is no setting 'sites.cuont'; did you mean sites.count"),
        (["fly"], 2, "there is no command 'fly': take run, partition, phantom or config"),
        (["resume=nowhere"], 2, "resume=nowhere: there is no run in that folder"),
        (["data=manifest"], 2, "data.kind=manifest needs data.manifest=PATH"),
        (["data=manifest", "data.manifest=nowhere.csv", "output_dir=m"], 1, "nowhere.csv"),
        (["engine.device=cuda", "text=hash"], 2, "engine.device=cuda: this machine has no CUDA device"),
        (["text=huggingface", "text.model=no/such-model"], 1, "no/such-model"),
        (["sites=natural"], 2, "natural"),
        (["phantom", "data=manifest"], 2, "`medmap-sim phantom` writes simulated data"),
    ],
)
def test_a_mistake_is_one_sentence_and_a_true_exit_code(here, arguments, code, sentence):
    shown = here(*arguments)
    lines = 2 if "nowhere.csv" in sentence else 1  # a manifest's problems have a line each
    assert (shown.returncode, shown.stderr.count("\n")) == (code, lines), shown.stderr[-2000:]
    assert sentence in shown.stderr
    assert "Traceback" not in shown.stderr + shown.stdout


def test_every_setting_can_be_listed(here):
    shown = here("config", "seed=7").stdout
    assert "seed=7" in shown
    assert "data.phantom.scanner_strength=0.4" in shown


@pytest.mark.slow
def test_the_smoke_experiment_runs_whole_and_federated_learns(world):
    shown = sim(world, "experiment=smoke", "output_dir=smoke", timeout=600)
    assert shown.returncode == 0, shown.stderr[-3000:]
    metrics = json.loads((world / "smoke" / "summary.json").read_text())["metrics"]
    assert metrics["federated"]["brain"]["auroc"] > 0.75
    assert metrics["federated"]["brain"]["auroc"] > metrics["local"]["brain"]["auroc"]
    assert metrics["naive"] is None


@pytest.mark.slow
def test_a_manifest_of_ones_own_becomes_hospitals_by_its_column(done, world, here):
    site = json.loads((world / "run" / "sites.json").read_text())[0]["manifests"][0]
    manifest = Path(site).parent.parent / "manifest.csv"
    small = [o for o in TINY if not o.startswith(("sites.", "data.phantom"))]
    shown = here(
        "data=manifest", f"data.manifest={manifest}", "sites=natural", "sites.external_site=external", "data.volumes.crop=centre",
        "output_dir=natural", "baselines=[]", *small,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr[-2000:]
    summary, before = (json.loads((world / d / "summary.json").read_text()) for d in ("natural", "run"))
    assert {(s["name"], s["external"]) for s in summary["sites"]} == {
        (s["name"], s["external"]) for s in before["sites"]
    }
    assert summary["metrics"]["federated"] == before["metrics"]["federated"], (
        "the same patients, found through a manifest"
    )


@pytest.mark.slow
@pytest.mark.parametrize("sites", ["iid", "label_skew", "modality_skew", "organ_split"])
def test_every_partition_trains(world, here, sites):
    small = [o for o in TINY if not o.startswith("sites.organs")]
    shown = here(
        *small,
        f"sites={sites}",
        "sites.count=4",
        "stage.finetune.rounds=1",
        f"output_dir={sites}",
        "baselines=[]",
    )
    assert shown.returncode == 0, shown.stderr[-2000:]
    summary = json.loads((world / sites / "summary.json").read_text())
    assert len([s for s in summary["sites"] if not s["external"]]) == 4
    owned = [set(s["modalities"]) for s in summary["sites"] if not s["external"]]
    if sites == "modality_skew":
        assert any(a != b for a in owned for b in owned)
    if sites == "organ_split":
        assert {tuple(s["organs"]) for s in summary["sites"] if not s["external"]} == {("brain",), ("liver",)}


@pytest.mark.slow
def test_real_scans_train_beside_phantom_hospitals_or_say_in_one_sentence_why_not(world, here):
    shown = here("experiment=real", "text=hash", "output_dir=real", "sites.patients=8", "data.folder=real-data")
    if shown.returncode == 1 and shown.stderr.count("\n") == 1:
        pytest.skip(f"the packages cannot be had here: {shown.stderr.strip()}")
    assert shown.returncode == 0, shown.stderr[-2000:]
    summary = json.loads((world / "real" / "summary.json").read_text())
    assert {"real-head", "real-abdomen"} <= {s["name"] for s in summary["sites"]}
    assert all(len(r["returned"]) == 4 for r in summary["participation"])
    assert "not accuracy" in summary["data"]["note"]
    assert "not accuracy" in (world / "real" / "report.html").read_text()


def test_real_scans_that_cannot_be_had_are_one_sentence(world):
    shown = subprocess.run(
        [SIM, "experiment=real", "output_dir=offline", "data.folder=offline-data"], cwd=world, capture_output=True, text=True, timeout=120,
        env=os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""},
    )  # fmt: skip
    assert shown.returncode == 1, shown.stderr[-2000:]
    assert "Traceback" not in shown.stderr
    assert "pip download" in shown.stderr


@pytest.mark.slow
def test_a_broken_volume_is_named_and_left_out_or_stops_the_run(done, world, here):
    site = json.loads((world / "run" / "sites.json").read_text())[0]["manifests"][0]
    shutil.copytree(Path(site).parent.parent, world / "mine")
    broken = next((world / "mine").glob("north/north-brain-0000/*.nii.gz"))
    broken.write_bytes(broken.read_bytes()[:700])
    small = [o for o in TINY if not o.startswith(("sites.", "data.phantom"))]
    mine = [
        "data=manifest", "data.manifest=mine/manifest.csv", "sites=natural", "sites.external_site=external", "data.volumes.crop=centre",
        "baselines=[]", *small,
    ]  # fmt: skip
    skipped = here(*mine, "output_dir=skipped")
    assert skipped.returncode == 0, skipped.stderr[-2000:]
    assert (
        "north: left out" in skipped.stdout
        and "truncated" in skipped.stdout
        and "Copy or export it again" in skipped.stdout
    )
    stopped = here(*mine, "output_dir=stopped", "data.volumes.on_bad_volume=stop")
    assert stopped.returncode == 1
    assert "truncated" in stopped.stderr and "Traceback" not in stopped.stderr
    assert not (world / "stopped" / "checkpoints").exists()


@pytest.mark.slow
def test_a_semicolon_manifest_with_a_missing_file_trains_and_too_many_hospitals_are_one_sentence(done, world, here):
    site = Path(json.loads((world / "run" / "sites.json").read_text())[0]["manifests"][0])
    with (site.parent.parent / "manifest.csv").open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    for row in rows:
        row["image"], row["mask"] = (str(site.parent.parent / row[c]) for c in ("image", "mask"))
    rows[0]["image"] = "nowhere.nii.gz"
    with (world / "semicolon.csv").open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, list(rows[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    small = [o for o in TINY if not o.startswith(("sites.", "data.phantom"))]
    mine = ["data=manifest", "data.manifest=semicolon.csv", "data.volumes.crop=centre", "baselines=[]", *small]
    shown = here(*mine, "sites=iid", "sites.count=2", "output_dir=semicolon")
    assert shown.returncode == 0, shown.stderr[-2000:]
    assert "nowhere.nii.gz" in shown.stdout
    many = here(*mine, "sites=iid", "sites.count=900", "output_dir=many")
    assert (many.returncode, many.stderr.count("\n")) == (2, 1), many.stderr[-2000:]
    assert "take a smaller sites.count" in many.stderr
