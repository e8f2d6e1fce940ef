"""Compressed updates in a federation: what travels, what is kept at the site, and that nothing is lost by stopping."""

from __future__ import annotations

import os
import shutil
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from client.problems import SiteError
from client.residuals import Residuals
from client.site import Site
from medmap_model.compression import restore
from medmap_model.contract import Task
from tests.simulation.test_federation import run

ROUNDS = ("stage.pretrain.rounds=1", "stage.finetune.rounds=2")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, hospitals, cache):
    """By dtype a federation that ran undisturbed."""
    folder = tmp_path_factory.mktemp("dtypes")
    dtypes = ("float32", "float16", "int8")
    return {d: run(folder / d, hospitals, cache, *ROUNDS, f"strategy.update_dtype={d}") for d in dtypes}


def test_fewer_bytes_travel_up_and_the_model_is_nearly_the_same(whole):
    sent = {d: sum(line["bytes_up"] for line in f.history) for d, f in whole.items()}
    assert sent["float16"] / sent["float32"] == pytest.approx(1 / 2 + 1 / 256, rel=0.02)  # a scale per block of 256
    assert sent["int8"] / sent["float32"] == pytest.approx(1 / 4 + 1 / 256, rel=0.02)
    per_group = whole["int8"].communication()["per_group"]
    assert sum(per_group.values()) == sent["int8"]
    for dtype, tolerance in (("float16", 1e-3), ("int8", 2e-2)):
        for line, exact in zip(whole[dtype].history, whole["float32"].history, strict=True):
            assert line["val_loss"] == pytest.approx(exact["val_loss"], rel=tolerance)
            assert line["bytes_down"] == exact["bytes_down"]
            assert line["alarms"] == []
        assert any((whole[dtype].vectors[g] != v).any() for g, v in whole["float32"].vectors.items()), "control"


def test_a_run_that_was_cut_and_resumed_ends_with_the_same_bits(whole, tmp_path, hospitals, cache, monkeypatch):
    real, calls = Site.train, 0

    def cut(self, *args, **more):
        nonlocal calls
        calls += 1
        if calls == 6:  # the last round, after one of the two sites has answered it
            raise KeyboardInterrupt
        return real(self, *args, **more)

    monkeypatch.setattr(Site, "train", cut)
    settings = (*ROUNDS, "strategy.update_dtype=int8")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", hospitals, cache, *settings)
    shutil.copytree(tmp_path / "cut", tmp_path / "control")
    resumed = run(tmp_path / "cut", hospitals, cache, *settings)
    assert calls == 6 + 2
    for group, vector in whole["int8"].vectors.items():
        np.testing.assert_array_equal(resumed.vectors[group], vector)
    shutil.rmtree(cache / "residuals")
    control = run(tmp_path / "control", hospitals, cache, *settings).vectors
    assert any((control[g] != v).any() for g, v in resumed.vectors.items()), "control: what was left over matters"


def test_private_updates_travel_compressed_with_their_receipts_and_no_figure(whole, tmp_path, hospitals, cache):
    f = run(
        tmp_path, hospitals, cache, "strategy.update_dtype=int8", "privacy=patient_dp", "privacy.noise_multiplier=3",
        "privacy.epsilon=9", "privacy.secure_noise=false", f"privacy.ledger_dir={tmp_path}/ledgers", "stage.pretrain.rounds=0",
    )  # fmt: skip
    assert [line["returned"] for line in f.history] == [["east", "west"]] * 2
    assert set(f.state.receipts) == {"east", "west"}
    assert not any(line["sites"]["east"] for line in f.history)
    assert [x["bytes_up"] for x in f.history] == [x["bytes_up"] for x in whole["int8"].history[1:]]


def task(number: int, stage: str = "finetune") -> Task:
    return Task(stage, number, 9, 0, run="r")


def update(seed: int) -> tuple[dict, dict]:
    rng = np.random.default_rng(seed)
    received = {g: rng.normal(size=700).astype(np.float32) for g in ("encoder/T1", "fusion")}
    return {g: (v + rng.normal(size=700) * 1e-3).astype(np.float32) for g, v in received.items()}, received


def ask(residuals: Residuals, number: int, stage: str = "finetune"):
    return residuals.compressed(*update(number), task(number, stage), "int8")


def same(a, b) -> bool:
    return all((x[g] == y[g]).all() for x, y in zip(a, b, strict=True) for g in x)


def test_a_round_asked_again_sends_the_same_bits_and_starts_from_the_round_before(tmp_path):
    residuals = Residuals.of(tmp_path, "east", "r")
    first, second = ask(residuals, 0), ask(residuals, 1)
    assert same(ask(residuals, 1), second)
    assert same(ask(residuals, 0), first), "the server went back by a round"
    fresh = Residuals.of(tmp_path, "east", "another run")
    assert not same(ask(fresh, 1), second), "control: what round 0 left over is in round 1"
    assert not same(ask(residuals, 1, "pretrain"), second), "a stage starts afresh"


def test_what_a_round_leaves_is_what_it_did_not_send(tmp_path):
    residuals = Residuals.of(tmp_path, "east", "r")
    numbers, scales = ask(residuals, 0)
    after, received = update(0)
    left = load_file(residuals.folder / "finetune-000000.safetensors")
    for g in after:
        np.testing.assert_allclose(left[g] + restore(numbers[g], scales[g]), after[g] - received[g], atol=1e-9)
        assert left[g].any()


def test_two_files_of_a_run_are_kept_and_runs_long_forgotten_are_removed(tmp_path):
    residuals = Residuals.of(tmp_path, "east", "r")
    for number in (0, 1, 2, 5):
        ask(residuals, number)
    kept = ["finetune-000002.safetensors", "finetune-000005.safetensors"]
    assert sorted(p.name for p in residuals.folder.iterdir()) == kept
    other = Residuals.of(tmp_path, "west", "r")
    ask(other, 0)
    assert residuals.folder.is_dir(), "another site's, a run of today"
    old = time.time() - 40 * 86400
    os.utime(residuals.folder, (old, old))
    ask(Residuals.of(tmp_path, "east", "new"), 0)
    assert not residuals.folder.exists()
    assert other.folder.is_dir()


def test_a_run_id_cannot_lead_out_of_the_folder(tmp_path):
    folder = Residuals.of(tmp_path, "east", "../../elsewhere").folder
    assert folder.parent == tmp_path / "residuals"
    assert folder.name.isalnum()


def test_a_file_that_cannot_be_read_costs_its_rounding_only(tmp_path, caplog):
    residuals = Residuals.of(tmp_path, "east", "r")
    ask(residuals, 0)
    (residuals.folder / "finetune-000000.safetensors").write_bytes(b"torn")
    torn = ask(residuals, 1)
    assert same(torn, ask(Residuals.of(tmp_path, "east", "without"), 1))
    assert "its rounding is lost" in caplog.text


def test_an_update_that_is_not_finite_is_refused_and_leaves_nothing_behind(tmp_path):
    residuals = Residuals.of(tmp_path, "east", "r")
    after, received = update(0)
    after["fusion"][3] = np.nan
    with pytest.raises(SiteError, match="fusion: the change is not finite") as refused:
        residuals.compressed(after, received, task(0), "int8")
    assert refused.value.code == "diverged"
    assert not residuals.folder.exists()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "residuals").write_text("a file where a folder should be")
    with pytest.raises(SiteError, match=r"cannot be written.*choose another cache_dir") as refused:
        ask(Residuals.of(tmp_path, "east", "r"), 0)
    assert refused.value.code == "data"
