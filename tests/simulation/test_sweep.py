"""`medmap-sim -m`: which runs a sweep has, what it never repeats, and what its table says."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from configs import load
from configs.setting import ConfigError
from simulation.ablation import means, summarise
from simulation.cli import _main
from simulation.sweep import collect, plan, split_values, state

SIM = shutil.which("medmap-sim", path=str(Path(sys.executable).parent))
# A federation of three brain hospitals that trains in seconds.
TINY = [
    "sites.organs=[brain]", "sites.count=3", "sites.patients=12", "sites.validation_patients=4", "sites.test_patients=6", "sites.common_patients=8",
    "sites.external_patients=10", "data.phantom.size=16", "data.volumes.size=16", "data.volumes.spacing_mm=6", "text=hash", "model.encoder.width=4",
    "model.embed_dim=32", "stage.pretrain.rounds=1", "stage.finetune.rounds=1", "stage.pretrain.epochs=1", "stage.finetune.epochs=1", "bootstrap=0",
    "evaluation=none", "baselines=[]", "engine.workers=1",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("0,1,2", ["0", "1", "2"]),
        ("full, no_csa", ["full", "no_csa"]),
        ("[pooled,local],[]", ["[pooled,local]", "[]"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("{a: 1, b: (2,3)}", ["{a: 1, b: (2,3)}"]),
        ("", [""]),
    ],
)
def test_values_are_split_at_commas_that_are_not_inside_anything(text, parts):
    assert split_values(text) == parts


def test_the_ablation_is_five_variants_with_three_seeds():
    runs = plan(["experiment=ablation", "output_dir=somewhere"])
    assert [dict(r.values) for r in runs[:2]] == [
        {"seed": "0", "variant": "full"},
        {"seed": "0", "variant": "no_pretraining"},
    ]
    assert len(runs) == 15 and len({r.folder for r in runs}) == 15
    assert runs[3].folder == Path("somewhere").absolute() / "03-seed-0-no_csa"
    for run in runs[:2]:  # a run's own command gives that run's config, and no second sweep is hidden in its folder
        assert replace(load(run.overrides), output_dir=run.config.output_dir) == run.config
    one = {r.values["variant"]: r.config for r in runs[:5]}
    full = one["full"]
    assert full.baselines == ["pooled"] and full.model.fusion.csa and full.model.fusion.cct
    total = full.stage.pretrain.rounds + full.stage.finetune.rounds
    rounds = {v: (c.stage.pretrain.rounds, c.stage.finetune.rounds) for v, c in one.items()}
    assert rounds["no_pretraining"] == (0, full.stage.finetune.rounds)
    assert rounds["no_pretraining_equal"] == (0, total)
    assert not one["no_csa"].model.fusion.csa and one["no_csa"].model.fusion.cct
    assert not one["no_cct"].model.fusion.cct and one["no_cct"].model.fusion.csa
    for name, config in one.items():  # nothing else differs
        same = replace(config, variant="", stage=full.stage, model=replace(config.model, fusion=full.model.fusion))
        assert same == replace(full, variant=""), name


def test_the_command_line_decides_over_the_experiment_s_sweep():
    runs = plan(["experiment=ablation", "variant=no_csa,no_cct", "seed=5,6", "stage.finetune.rounds=3"])
    assert [(r.values["seed"], r.values["variant"]) for r in runs] == [
        ("5", "no_csa"), ("5", "no_cct"), ("6", "no_csa"), ("6", "no_cct"),
    ]  # fmt: skip
    assert {r.config.stage.finetune.rounds for r in runs} == {3} and set(runs[0].values) == {"seed", "variant"}
    both = plan(["experiment=smoke,ablation", "seed=0", "variant=full"])
    assert [r.folder.name for r in both] == ["00-smoke", "01-ablation"]
    mixed = plan(["experiment=smoke,ablation", "seed=0"])
    assert len(mixed) == 1 + 5, "each experiment with the sweep it has"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["experiment=smoke"], "-m has nothing to vary: give a setting several values"),
        (["seed=0,1", "resume=outputs/x"], "a sweep goes on by itself"),
        (["sead=0,1"], "there is no setting 'sead'; did you mean seed"),
        (["seed=0,,1"], "nothing between two commas"),
        (["seed=0,one"], "Value 'one'"),
        (["experiment=ablation", "variant=full,fool"], "variant=fool is not a choice: take one of full"),
        (["output_dir=a,b", "seed=0,1"], "a sweep has one folder"),
        (["seed=0,1", "sites"], "'sites' is not key=value"),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_runs(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _main(["-m", *arguments]) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err and shown.err.count("\n") == 1
    assert not shown.out and not list(tmp_path.iterdir())


def test_multirun_goes_with_run_alone(capsys):
    assert _main(["config", "--multirun", "seed=0,1"]) == 2
    assert "does not go with 'config'" in capsys.readouterr().err
    _main(["--help"])
    assert "medmap-sim -m experiment=ablation" in capsys.readouterr().out


def pretend(run, *, finished=True, score=0.5):
    """A run's folder as the run itself leaves it, as far as a sweep reads it."""
    run.folder.mkdir(parents=True)
    config = replace(run.config, output_dir=str(run.folder), sweep=run.config.sweep)
    config = replace(config, data=replace(config.data, folder=str(Path("outputs/data").absolute())))
    (run.folder / "config.yaml").write_text(yaml.safe_dump(asdict(config), sort_keys=False))
    scores = {"brain": {"n": 10, "auroc": score, "balanced_accuracy": None}}
    summary = {
        "stages": {"finetune": {"val_score": [0.1, 0.7]}},
        "baseline_stages": {"pooled": {"finetune": {"val_score": [0.8]}}},
        "metrics": {"federated": scores, "pooled": scores, "local": None},
        "metrics_own": {"federated": scores},
        "metrics_external": {"federated": None},
    }
    if finished:
        (run.folder / "summary.json").write_text(json.dumps(summary))


def test_a_finished_run_is_known_and_another_config_is_another_run(tmp_path):
    arguments = ["experiment=ablation", "seed=0", "variant=full,no_csa", f"output_dir={tmp_path}"]
    first, second = plan(arguments)
    assert state(first) == "new"
    pretend(first)
    pretend(second, finished=False)
    assert (state(first), state(second)) == ("finished", "interrupted")
    assert state(plan([*arguments, "engine.workers=1"])[0]) == "finished", "how it is run is no part of the result"
    assert state(plan([*arguments, "stage.finetune.lr=0.01"])[0]) == "new"
    (first.folder / "config.yaml").write_text("seed: [not, a, config")
    assert state(first) == "new"


def test_rows_are_a_run_s_scores_and_missing_is_none(tmp_path):
    runs = plan(["experiment=ablation", "seed=0", "variant=full,no_csa", f"output_dir={tmp_path}"])
    pretend(runs[0], score=0.9)
    pretend(runs[1], finished=False)
    rows = collect(runs)
    places = [(r["condition"], r["organ"], r["test_set"], r["auroc"], r["val_auroc"]) for r in rows]
    assert places == [
        ("federated", "brain", "common", 0.9, 0.7),
        ("pooled", "brain", "common", 0.9, 0.8),
        ("federated", "brain", "own", 0.9, 0.7),
    ]
    assert {r["run"] for r in rows} == {runs[0].folder.name}
    assert rows[0]["variant"] == "full" and rows[0]["balanced_accuracy"] is None


def table_rows(scores: dict[str, dict[str, float | None]]) -> list[dict[str, object]]:
    place = {"condition": "federated", "organ": "brain", "test_set": "common"}
    return [
        {"seed": seed, "variant": variant, **place, "auroc": score, "balanced_accuracy": None}
        for variant, by_seed in scores.items()
        for seed, score in by_seed.items()
    ]


def test_differences_are_paired_by_seed_and_a_missing_run_is_left_out(tmp_path, capsys):
    rows = table_rows({"full": {"0": 0.9, "1": 0.7, "2": 0.8}, "no_csa": {"0": 0.8, "1": 0.8}, "no_cct": {"2": None}})
    full, csa, cct = means(rows, ["seed", "variant"])
    assert full["auroc_mean"] == pytest.approx(0.8) and full["auroc_sd"] == pytest.approx(0.1)
    assert full["auroc_difference_mean"] is None, "the reference differs from nothing"
    assert csa["seeds"] == 2 and csa["auroc_difference_mean"] == pytest.approx(0.0)
    assert (csa["auroc_difference_least"], csa["auroc_difference_most"]) == (pytest.approx(-0.1), pytest.approx(0.1))
    assert csa["auroc_difference_sd"] == pytest.approx(0.1414, abs=1e-3)
    assert cct["auroc_mean"] is None and cct["auroc_difference_mean"] is None
    assert full["balanced_accuracy_mean"] is None, "what is missing is not 0"
    summarise(rows, tmp_path, keys=["seed", "variant"])
    shown = capsys.readouterr().out
    assert "0.800 ± 0.100" in shown and "+0.000 ± 0.141" in shown
    with (tmp_path / "sweep_mean.csv").open(newline="") as f:
        assert [r["variant"] for r in csv.DictReader(f)] == ["full", "no_csa", "no_cct"]
    assert (tmp_path / "sweep.png").stat().st_size > 5000


def test_experiments_that_vary_in_different_things_make_one_table():
    place = {"condition": "federated", "organ": "brain", "test_set": "common", "balanced_accuracy": None}
    rows = [{"experiment": "smoke", "auroc": 0.6, **place}]
    rows += [{"experiment": "ablation", "variant": v, "auroc": a, **place} for v, a in (("full", 0.7), ("no_csa", 0.9))]
    table = means(rows, ["experiment", "variant"])
    assert [(r["experiment"], r["variant"], r["auroc_mean"]) for r in table] == [
        ("smoke", None, 0.6), ("ablation", "full", 0.7), ("ablation", "no_csa", 0.9),
    ]  # fmt: skip


def multirun(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [SIM, "-m", *TINY, *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_sweep_is_interrupted_goes_on_and_is_summed_up_although_a_run_fails(tmp_path):
    """The second run asks for a device that is not there."""
    arguments = ("output_dir=sweep", "engine.device=cpu,cuda")
    begun = multirun(tmp_path, *arguments)
    first, second = (tmp_path / "sweep" / f"0{i}-device-{d}" for i, d in enumerate(("cpu", "cuda")))
    deadline = time.monotonic() + 300
    while not (first / "metrics.jsonl").exists():
        assert begun.poll() is None and time.monotonic() < deadline, begun.communicate()
        time.sleep(0.1)
    begun.send_signal(signal.SIGINT)
    _, stderr = begun.communicate(timeout=600)
    assert begun.returncode == 130, stderr
    assert "the same command goes on with it" in stderr and "Traceback" not in stderr
    assert not (first / "summary.json").exists()

    again = multirun(tmp_path, *arguments)
    shown, stderr = again.communicate(timeout=600)
    assert again.returncode == 1, stderr
    assert "this machine has no CUDA device" in stderr and "01-device-cuda failed with exit code" in stderr
    assert "1 of 2 runs failed: 01-device-cuda" in stderr and "Traceback" not in stderr
    assert not second.exists() or not (second / "summary.json").exists()
    with (tmp_path / "sweep" / "sweep.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert {r["run"] for r in rows} == {first.name} and {r["test_set"] for r in rows} == {"common", "own", "external"}
    assert not list((tmp_path / "sweep").glob("*.1")), "the interrupted run was gone on with, not begun anew"

    written = (first / "summary.json").stat().st_mtime_ns
    third = multirun(tmp_path, *arguments)
    shown, _ = third.communicate(timeout=600)
    assert "00-device-cpu: finished before" in shown
    assert (first / "summary.json").stat().st_mtime_ns == written


def test_a_sweep_in_a_file_is_checked_like_the_command_line(monkeypatch):
    import simulation.sweep as module

    def with_sweep(values):
        monkeypatch.setattr(module, "load", lambda overrides: replace(load(overrides), sweep=values))

    with_sweep({"seed": []})
    with pytest.raises(ConfigError, match=r"sweep\.seed names no values"):
        plan(["experiment=smoke"])
    with_sweep({"sites.cuont": [1, 2]})
    with pytest.raises(ConfigError, match=r"did you mean sites\.count"):
        plan(["experiment=smoke"])
    with_sweep({"baselines": [[], ["pooled", "local"]], "resume": [None]})
    assert [r.config.baselines for r in plan(["experiment=smoke"])] == [[], ["pooled", "local"]]
