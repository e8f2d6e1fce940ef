"""A federation of five sites, one of them bad: what each robust rule makes of it, and what the coordinator hears.

Behind the real client and round loop, sites whose training is a known change; then small hospitals that really train.
"""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import client.app
from client.site import Site as Hospital
from configs import load, to_json
from configs.federated import StrategyConfig
from server.members import FederationError
from server.rounds import Federation
from simulation.engines import InProcessGrid
from tests.conftest import write_hospital
from tests.simulation.secure_parts import GROUPS, LAYOUT, VOCABULARY, N, Ward, change, wards  # noqa: F401
from tests.simulation.test_federation import run as train

ROUNDS = 3
BASE = load([f"stage.pretrain.rounds={ROUNDS}", "stage.finetune.rounds=0"])
RULES = ("trimmed_mean", "median", "krum")
BAD = 4  # owns T1 as all do, and FLAIR with one other; three own T2


class Site(Ward):
    """A hospital that is honest, or bad in one way from its second round on."""

    def __init__(self, number: int, kind: str = "honest") -> None:
        super().__init__(number)
        self.kind, self.first, self.entry = kind, None, SimpleNamespace(name=f"h{number}")

    def train(self, vectors, task, *, only=None):
        after, figures = super().train(vectors, task, only=only)
        if self.first is None:
            self.first = after
            return after, figures
        made = {
            "honest": lambda g: after[g],
            "scaled": lambda g: vectors[g] + np.float32(1000) * (after[g] - vectors[g]),
            "flipped": lambda g: vectors[g] - (after[g] - vectors[g]),
            "nan": lambda g: np.where(np.arange(N) == 5, np.float32(np.nan), after[g]),
            "unchanged": lambda g: vectors[g],
            "repeated": lambda g: self.first[g],
        }[self.kind]
        return {g: made(g) for g in after}, figures


@pytest.fixture
def run(wards, tmp_path):  # noqa: F811
    """Run a federation whose last site is bad in the way named."""

    def start(kind: str, *, silent: int | None = None, **strategy):
        folder = tmp_path / f"{kind}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        config = replace(BASE, strategy=StrategyConfig(retries=0, join_timeout_s=0, **strategy))
        for i in range(5):
            wards[i] = Site(i, kind if i == BAD else "honest")
            wards[i].fail, wards[i].records = i == silent, SimpleNamespace(cache_dir=tmp_path / "cache")
        told: list[str] = []
        f = Federation(
            InProcessGrid(client.app.app, 5, {"config": to_json(config)}), config, VOCABULARY,
            initial={g: np.full(N, 0.5, np.float32) for g in GROUPS}, layout=LAYOUT, text_hash="text", folder=folder,
            sites=5, progress=lambda e: told.append(f"{e.site} {e.text}".strip()),
        )  # fmt: skip
        f.told = told
        f.run()
        return f

    return start


def off(f: Federation, group: str = "encoder/T1") -> float:
    """Root mean square distance to where the four honest sites' mean goes."""
    wanted = 0.5 + sum(np.mean([change(s, r, group) for s in range(BAD)], axis=0) for r in range(ROUNDS))
    return float(np.sqrt(np.mean((f.vectors[group] - wanted) ** 2)))


@pytest.mark.parametrize("kind", ["scaled", "flipped", "unchanged", "repeated"])
@pytest.mark.parametrize("rule", RULES)
def test_with_a_rule_the_model_stays_near_the_honest_one(run, rule, kind):
    f = run(kind, robust=rule)
    assert off(f) < 0.2 * ROUNDS  # the honest sites' own spread is 0.1 to 0.2 a round
    assert off(f, "text_projection") < 0.2 * ROUNDS
    np.testing.assert_array_equal(f.vectors["encoder/FLAIR"], 0.5)  # two owners are too few for any rule
    assert sum("not changed in pretrain" in t and "encoder/FLAIR" in t for t in f.told) == 1
    assert "encoder/FLAIR" not in f.history[-1]["groups"]
    assert ("encoder/T2" in f.history[-1]["groups"]) == (rule != "krum"), "three owners: enough but for Krum"
    assert "FLAIR" not in f.state.trained["modalities"]
    assert set(f.history[-1]["chosen"]) == (
        {"encoder/T1", "projection/T1", "text_projection"} if rule == "krum" else set()
    )
    if kind == "scaled":
        assert "h4" not in f.history[-1]["chosen"].values()


def test_without_a_rule_one_site_that_sends_its_change_a_thousandfold_drags_the_model_away(run):
    assert off(run("scaled")) > 2
    assert off(run("honest")) < 0.2, "control: volumes weigh, no more"


@pytest.mark.parametrize("rule", ["none", *RULES])
def test_an_update_with_nan_is_refused_whatever_the_rule(run, rule):
    if rule == "krum":  # four are then too few for it: void, rather than a mean
        with pytest.raises(FederationError, match="4 of 5 sites returned an update, 5 are needed"):
            run("nan", robust="krum")
        return
    f = run("nan", robust=rule)
    assert [r["site"] for r in f.history[-1]["refused"]] == ["h4"]
    assert off(f) < 0.2 * ROUNDS


@pytest.mark.parametrize(
    ("kind", "dtype", "alarm", "sentence"),
    [
        ("scaled", "float32", "far", "times as far from the model as the others'"),
        ("scaled", "int8", "far", "times as far from the model as the others'"),
        ("unchanged", "float32", "unchanged", "the model as it was sent"),
        ("repeated", "float32", "repeated", "the one it sent before"),
        ("flipped", "float32", None, ""),  # as long as an honest one: only a rule helps
        ("honest", "int8", None, ""),
    ],
)
def test_the_coordinator_hears_of_it_and_the_lines_have_it(run, kind, dtype, alarm, sentence):
    f = run(kind, update_dtype=dtype)
    lines = [json.loads(x) for x in (f.folder / "metrics.jsonl").read_text().splitlines()]
    found = [[(a["site"], a["kind"]) for a in line["alarms"]] for line in lines]
    assert found == ([[], *[[("h4", alarm)]] * (ROUNDS - 1)] if alarm else [[]] * ROUNDS)
    heard = [t for t in f.told if "alarm" in t]
    assert len(heard) == (ROUNDS - 1 if alarm else 0)
    assert all(t.startswith("h4 alarm: ") and sentence in t for t in heard)


def test_secure_aggregation_says_that_there_are_no_alarms(run):
    f = run("scaled", secure_aggregation=True)
    assert sum("no alarms about updates" in t for t in f.told) == 1
    assert all(line["alarms"] == [] for line in f.history)
    assert not any("no alarms" in t for t in run("honest").told), "control"


def test_a_federation_in_which_no_group_has_enough_owners_does_not_start(run):
    with pytest.raises(FederationError, match=r"no module group has the 7 owners that strategy\.robust=median needs"):
        run("honest", robust="median", robust_faulty=3)


def test_too_few_updates_void_the_round_rather_than_fall_back_to_the_mean(run):
    with pytest.raises(FederationError, match="4 of 5 sites returned an update, 5 are needed"):
        run("honest", robust="krum", silent=0)
    f = run("honest", robust="median", silent=0)  # two of three owners of T2, four of T1
    np.testing.assert_array_equal(f.vectors["encoder/T2"], 0.5)
    assert (f.vectors["encoder/T1"] != 0.5).any()
    assert sum("fewer than 3 updates for strategy.robust: encoder/T2, projection/T2" in t for t in f.told) == ROUNDS


def test_hospitals_that_train_are_not_steered_by_a_thousandfold_change(tmp_path, hospitals, cache, monkeypatch):
    hospitals = hospitals | {"north": write_hospital(tmp_path / "north", ["FLAIR"], patients=8)}
    short = ("stage.pretrain.rounds=0", "stage.finetune.rounds=1")
    honest = train(tmp_path / "honest", hospitals, cache, *short).vectors
    real, off = Hospital.train, {}

    def scaled(self, vectors, task, *, only=None):
        update, figures = real(self, vectors, task, only=only)
        if self.entry.name == "north":
            update = {g: vectors[g] + np.float32(1000) * (v - vectors[g]) for g, v in update.items()}
        return update, figures

    monkeypatch.setattr(Hospital, "train", scaled)
    for rule in ("none", "median"):
        f = train(tmp_path / rule, hospitals, cache, *short, f"strategy.robust={rule}")
        off[rule] = np.linalg.norm(f.vectors["encoder/FLAIR"] - honest["encoder/FLAIR"])
        assert [(a["site"], a["kind"]) for a in f.history[0]["alarms"]] == [("north", "far")]
    assert off["none"] > 100 * off["median"]
