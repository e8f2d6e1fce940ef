"""Checkpoints: whole or absent, readable without pickle, refused when they do not fit."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from server import checkpoint

LAYOUT = {"fusion": [("fusion.a", (2, 2)), ("fusion.b", (3,))], "head/brain": [("heads.brain.bias", ())]}
VECTORS = {"fusion": np.arange(7, dtype=np.float32), "head/brain": np.array([5], np.float32)}


def test_what_is_saved_is_read_back_bit_for_bit_under_parameter_names(tmp_path):
    path = checkpoint.save(tmp_path, "finetune-0001", VECTORS, LAYOUT, {"completed": 1, "best": None})
    assert load_file(path / "model.safetensors")["fusion.a"].tolist() == [[0, 1], [2, 3]]
    vectors, state = checkpoint.load(path, LAYOUT)
    assert state["completed"] == 1
    for group, vector in VECTORS.items():
        np.testing.assert_array_equal(vectors[group], vector)


def test_only_the_latest_and_the_best_are_kept(tmp_path):
    for n in range(1, 6):
        checkpoint.save(
            tmp_path,
            f"finetune-{n:04d}",
            VECTORS,
            LAYOUT,
            {"completed": n, "best": "finetune-0002" if n > 1 else None},
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["finetune-0002", "finetune-0005"]
    assert checkpoint.latest(tmp_path).name == "finetune-0005"


def test_a_half_written_checkpoint_is_not_taken_for_one(tmp_path):
    checkpoint.save(tmp_path, "pretrain-0001", VECTORS, LAYOUT, {"completed": 1, "best": None})
    partial = tmp_path / ".pretrain-0002.tmp"  # what a kill in the middle of save leaves
    partial.mkdir()
    (partial / "state.json").write_text(json.dumps({"completed": 2}))
    assert checkpoint.latest(tmp_path).name == "pretrain-0001"
    checkpoint.save(tmp_path, "pretrain-0002", VECTORS, LAYOUT, {"completed": 2, "best": None})
    assert checkpoint.latest(tmp_path).name == "pretrain-0002"


@pytest.mark.parametrize("durable", [True, False])
def test_all_of_a_checkpoint_is_on_the_disk_before_the_last_one_goes(tmp_path, monkeypatch, durable):
    checkpoint.save(tmp_path, "pretrain-0001", VECTORS, LAYOUT, {"completed": 1})
    done: list[str] = []
    real_sync, real_remove = os.fsync, shutil.rmtree

    def sync(descriptor):
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        real_sync(descriptor)

    def remove(path, **more):
        done.append(f"drop {path.name}")
        real_remove(path, **more)

    monkeypatch.setattr(checkpoint.os, "fsync", sync)
    monkeypatch.setattr(checkpoint.shutil, "rmtree", remove)
    checkpoint.save(tmp_path, "pretrain-0002", VECTORS, LAYOUT, {"completed": 2}, beside={"x": b""}, durable=durable)
    before = set(done[: done.index("drop pretrain-0001")])
    names = {"model.safetensors", "state.json", "x", ".pretrain-0002.tmp", tmp_path.name}
    assert names <= before if durable else not names & before


def test_a_checkpoint_of_another_model_or_a_broken_one_is_refused(tmp_path):
    path = checkpoint.save(tmp_path, "pretrain-0001", VECTORS, LAYOUT, {"completed": 1})
    other = {"fusion": [("fusion.a", (7,))], "head/brain": LAYOUT["head/brain"]}
    with pytest.raises(
        checkpoint.CheckpointError, match=r"fusion\.a is \(7,\) in this model, the checkpoint has \(2, 2\)"
    ):
        checkpoint.load(path, other)
    (path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(checkpoint.CheckpointError, match="not a readable checkpoint"):
        checkpoint.load(path, LAYOUT)
