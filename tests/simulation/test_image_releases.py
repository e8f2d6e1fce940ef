"""Site shift and a common intensity scale over real messages: noisy moments and landmarks, paid once, and what is made of them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from client.preprocess.nyul import read_landmarks
from client.privacy.cohort import cohort
from client.site import open_records
from configs import load_vocabulary, to_json
from medmap_model import contract
from medmap_model.accounting import Cost
from medmap_model.releases import FINE, SHIFT
from server.app import federate
from server.shift import shift_between
from tests.conftest import small_config
from tests.simulation.test_releases import MUCH, grid_of, ledger


def test_site_shift_is_told_from_noisy_moments_and_paid_once(tmp_path, hospitals, cache):
    config = small_config(
        f"privacy.ledger_dir={tmp_path / 'ledgers'}", MUCH, "privacy.shift_epsilon=900", "stage.pretrain.rounds=0",
        "stage.finetune.rounds=1",
    )  # fmt: skip
    grid = grid_of(tmp_path, hospitals, cache, config)
    federate(grid, to_json(config), folder=tmp_path, sites=2)
    federate(grid_of(tmp_path, hospitals, cache, config), to_json(config), folder=tmp_path, sites=2)
    told = json.loads((tmp_path / "shift.json").read_text())
    assert told["epsilon"] == 900 and list(told["organs"]) == ["brain"]
    part, organ = told["organs"]["brain"], load_vocabulary("medmom").organs["brain"]
    assert part["sites"] == ["east", "west"] and part["modalities"]["east"] == ["T1", "FLAIR"]
    exact = [cohort(open_records(config, (p,), cache), organ, SHIFT)["moments"] / FINE for p in hospitals.values()]
    expected = shift_between({"brain": dict(enumerate(exact))}, load_vocabulary("medmom"))["organs"]["brain"][
        "distance"
    ][0][1]
    assert part["distance"][0][1] == pytest.approx(expected, abs=0.03) and expected > 0
    replies = [r for m, r in grid.seen if m.metadata.message_type == "query.cohort"]
    assert len(replies) == 2
    for reply in replies:
        released = np.array(json.loads(reply.content[contract.RELEASE][contract.RELEASE])["brain"]["moments"]) / FINE
        assert 0 < min(np.abs(released - table).max() for table in exact) < 0.4  # the noise has scale 12 / 900
    assert not (tmp_path / "statistics.json").exists()
    charges = ledger(tmp_path, "east", 1000).charges()
    assert [(c.purpose, c.cost) for c in charges] == [("statistics of the cohort", Cost(1, epsilon=900))]


def test_a_common_scale_is_made_of_noisy_landmarks_and_can_be_trained_on(tmp_path, hospitals, cache):
    few = ["stage.pretrain.rounds=0", "stage.finetune.rounds=1"]
    ask = f"privacy.ledger_dir={tmp_path / 'ledgers'}", MUCH, "privacy.landmarks_epsilon=900"
    config = small_config(*ask, *few)
    federate(grid_of(tmp_path, hospitals, cache, config), to_json(config), folder=tmp_path, sites=2)
    told = json.loads((tmp_path / "landmarks.json").read_text())["modalities"]
    assert told["FLAIR"]["patients"] == pytest.approx(24, abs=1) and told["FLAIR"]["sd"] < 0.01
    assert told["T1ce"]["landmarks"] is None and told["DWI"]["landmarks"] is None, "nobody has them"
    made = read_landmarks(tmp_path / "landmarks.yaml")
    assert set(made) == {"T1", "T2", "FLAIR"}
    setting = json.dumps(made).replace('"', "")
    own = small_config("data.volumes.standardise=nyul", f"data.volumes.landmarks={setting}", *few)
    with_scale = open_records(own, (hospitals["east"],), cache)
    plain = open_records(small_config(), (hospitals["east"],), cache)
    a, b = (next(r.eval_batches(split="train", organ="brain")).volumes for r in (with_scale, plain))
    assert a.shape == b.shape and not np.allclose(a, b)
    again = tmp_path / "poor"
    again.mkdir()
    config = small_config(f"privacy.ledger_dir={again / 'ledgers'}", "privacy.landmarks_epsilon=0.5", *few)
    federate(grid_of(again, hospitals, cache, config), to_json(config), folder=again, sites=2)
    poor = json.loads((again / "landmarks.json").read_text())["modalities"]
    assert all(row["landmarks"] is None for row in poor.values()), "12 patients cannot outweigh that noise"
