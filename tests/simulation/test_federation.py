"""The federation end to end on small NIfTI hospitals: real ClientApp, real messages, both engines."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from client.app import app
from configs import to_json
from server.app import federate
from server.progress import Event
from server.rounds import Federation
from simulation.engines import InProcessGrid, run_ray
from tests.conftest import small_config, write_hospital


def run_config(folder: Path, hospitals: dict[str, Path], cache: Path, *overrides: str) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    sites = folder / "sites.json"
    sites.write_text(json.dumps([{"name": k, "manifests": [str(v)]} for k, v in hospitals.items()]))
    return {"config": to_json(small_config(*overrides)), "sites-file": str(sites), "cache-dir": str(cache)}


def run(folder: Path, hospitals: dict[str, Path], cache: Path, *overrides: str, progress=None) -> Federation:
    values = run_config(folder, hospitals, cache, *overrides)
    grid = InProcessGrid(app, len(hospitals), values)
    return federate(grid, values["config"], folder=folder, sites=len(hospitals), progress=progress)


def test_two_hospitals_train_one_model_and_an_encoder_nobody_owns_stays_as_it_was(tmp_path, hospitals, cache):
    f = run(tmp_path, hospitals, cache)
    start = run(tmp_path / "none", hospitals, cache, "stage.pretrain.rounds=0", "stage.finetune.rounds=0").vectors
    changed = {g for g, v in f.vectors.items() if (v != start[g]).any()}
    own = {f"{kind}/{m}" for kind in ("encoder", "projection") for m in ("T1", "T2", "FLAIR")}
    assert changed == own | {"text_projection", "fusion", "head/brain"}
    assert [len(line["returned"]) for line in f.history] == [2, 2, 2]
    assert f.history[-1]["val_score"] is not None


@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, hospitals, cache, stop_after):
    whole = run(tmp_path / "whole", hospitals, cache).vectors
    seen = 0

    def interrupt(event: Event) -> None:
        nonlocal seen
        seen += event.kind == "reply"
        if seen == stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", hospitals, cache, progress=interrupt)
    resumed = run(tmp_path / "cut", hospitals, cache)
    for group, vector in whole.items():
        np.testing.assert_array_equal(resumed.vectors[group], vector)
    # Control: another seed does give other weights, so equality is no accident.
    other = run(tmp_path / "other", hospitals, cache, "seed=1").vectors
    assert (other["fusion"] != whole["fusion"]).any()


def test_a_site_whose_data_are_gone_is_refused_and_its_paths_stay_at_home(tmp_path, hospitals, cache, caplog):
    broken = write_hospital(tmp_path / "north", ["T1"], patients=4)
    broken.write_text(broken.read_text().replace("north-train-0-1,T1,", "north-train-0-1,NOSUCH,"))
    told: list[str] = []
    with caplog.at_level(logging.CRITICAL, "medmap.client"):
        f = run(tmp_path / "run", {**hospitals, "north": broken}, cache, progress=lambda e: told.append(e.text))
    assert [len(line["returned"]) for line in f.history] == [2, 2, 2]
    refusals = [t for t in told if "may not join" in t]
    assert len(refusals) == 1 and "cannot be read" in refusals[0]
    assert "north-train" not in refusals[0] and str(tmp_path) not in refusals[0]


@pytest.mark.slow
def test_both_engines_aggregate_to_the_same_weights_and_what_rays_server_raises_reaches_the_caller(
    tmp_path, hospitals, cache
):
    inprocess = run(tmp_path / "inprocess", hospitals, cache).vectors
    values = run_config(tmp_path / "ray", hospitals, cache)
    results: list[Federation] = []

    def serve(grid):
        results.append(federate(grid, values["config"], folder=tmp_path / "ray", sites=len(hospitals)))
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        run_ray(app, len(hospitals), values, serve)
    for group, vector in inprocess.items():
        np.testing.assert_allclose(results[0].vectors[group], vector, rtol=1e-5, atol=1e-6)


def test_the_same_order_of_patients_under_another_hospital_order_gives_the_same_model(tmp_path, hospitals, cache):
    one = run(tmp_path / "a", hospitals, cache).vectors
    two = run(tmp_path / "b", dict(reversed(hospitals.items())), cache).vectors
    for group, vector in one.items():
        np.testing.assert_array_equal(two[group], vector)


def test_hospitals_that_share_no_modality_still_train_one_shared_encoder(tmp_path, hospitals, cache):
    f = run(tmp_path, hospitals, cache, "model.sharing=shared")
    start = run(tmp_path / "none", hospitals, cache, "model.sharing=shared", "stage.pretrain.rounds=0", "stage.finetune.rounds=0")  # fmt: skip
    assert [g for g in f.vectors if g.startswith("encoder/")] == ["encoder/shared"]
    assert (f.vectors["encoder/shared"] != start.vectors["encoder/shared"]).any()
    assert (f.vectors["projection/C+A"] == start.vectors["projection/C+A"]).all()  # nobody has it


def test_a_run_starts_from_another_runs_checkpoint_and_says_what_matched(tmp_path, hospitals, cache):
    before = run(tmp_path / "before", hospitals, cache)
    told: list[str] = []
    after = run(
        tmp_path / "after", hospitals, cache, f"model.init={tmp_path}/before/checkpoints/finetune-0002", "model.fusion.layers=2",
        "stage.pretrain.rounds=0", "stage.finetune.rounds=0", progress=lambda e: told.append(e.text),
    )  # fmt: skip
    np.testing.assert_array_equal(after.vectors["encoder/T1"], before.vectors["encoder/T1"])
    said = next(t for t in told if "init=" in t)
    assert "parameter tensors set" in said and "left random (fusion.layers.1." in said
