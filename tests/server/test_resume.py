"""A federation killed (-9) wherever it writes or waits ends, once resumed, as if nothing had been."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from server import checkpoint
from tests.server.test_rounds import LAYOUT, Hospitals, federation, initial

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> list[dict]:
    """What resuming ended with: the undisturbed run first, then one for each point at which it was killed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.server.resume_driver", tmp_path_factory.mktemp("killed")],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_wherever_it_is_killed_a_resumed_run_ends_with_the_same_weights_lines_and_checkpoints(outcomes):
    whole, *killed = outcomes
    assert whole["phase"] == "finished" and len(whole["lines"]) == 4  # of 5: it stopped early
    assert whole["checkpoints"] == ["finetune-0001", "finetune-0003", "pretrain-0001"]
    for k in killed:
        for what in ("weights", "lines", "checkpoints", "phase"):
            assert k[what] == whole[what], (k["where"], k["stage"], k["completed"], what)


@pytest.mark.slow
def test_at_most_the_current_round_is_lost_and_every_phase_was_hit(outcomes):
    killed = outcomes[1:]
    assert {k["then"] for k in killed} == {None, "joining", "training", "validating"}
    assert {"query", "train", "evaluate", "append", "to_tensors", "replace", "rmtree"} == {k["where"] for k in killed}
    assert {(k["stage"], k["completed"]) for k in killed} >= {
        ("pretrain", 0),
        ("pretrain", 1),
        ("finetune", 2),
        ("finetune", 3),
    }
    assert not [k for k in killed if k["completed"] - k["began"] not in (0, 1)]


def test_a_checkpoint_that_was_put_aside_when_its_successor_was_to_come_is_put_back(tmp_path, monkeypatch):
    """Of two saves of one name a cut between them once left neither."""
    checkpoint.save(tmp_path, "finetune-0002", initial(), LAYOUT, {"completed": 2, "stage": "finetune"})
    real = os.replace

    def cut(source, target):
        if Path(source).name == ".finetune-0002.tmp":
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(checkpoint.os, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(
            tmp_path, "finetune-0002", initial(), LAYOUT, {"completed": 2, "stage": "finetune", "best": "x"}
        )
    monkeypatch.undo()
    assert not (tmp_path / "finetune-0002").exists()
    kept = checkpoint.latest(tmp_path)
    assert kept == tmp_path / "finetune-0002" and "best" not in checkpoint.load(kept, LAYOUT)[1]
    checkpoint.save(tmp_path, "finetune-0002", initial(), LAYOUT, {"completed": 2, "stage": "finetune", "best": "y"})
    assert [p.name for p in tmp_path.iterdir()] == ["finetune-0002"]


@pytest.mark.parametrize(
    ("change", "said"),  # None: a file that is no state at all
    [
        ({"swarm": 3, "quota": 0.5}, "does not know (quota, swarm): a newer one wrote it"),
        ({"condition": "naive"}, "is of 'naive', not of 'federated'"),
        (None, "is damaged, and"),
    ],
)
def test_a_checkpoint_of_another_version_or_condition_is_refused_in_one_sentence(tmp_path, change, said):
    saved = {"condition": "federated", "stage": "finetune", "round": 2, "completed": 2}
    path = checkpoint.save(tmp_path / "checkpoints", "finetune-0002", initial(), LAYOUT, saved)
    assert federation(tmp_path, Hospitals()).state.completed == 2, "control: what this version knows is gone on with"
    if change is None:
        checkpoint.write_json(path / "state.json", [1, {"completed": 2}])
    else:
        checkpoint.write_json(path / "state.json", saved | change)
    with pytest.raises(checkpoint.CheckpointError) as refused:
        federation(tmp_path, Hospitals())
    assert str(path) in str(refused.value) and said in str(refused.value)
