"""Plans: the noise of a whole schedule from a budget, on top of what ledgers have spent, and the command around it."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from client.privacy.budget import budget, read_plan
from client.privacy.ledger import Key, Ledger
from configs import load
from configs.setting import ConfigError
from medmap_model.accounting import Cost, spent
from server.cli import app
from server.plan import plan, read_told

SCHEDULE = (
    "privacy=patient_dp", "privacy.epsilon=4", "stage.pretrain.rounds=2", "stage.finetune.rounds=3", "privacy.statistics_epsilon=0.25",
    "privacy.validations=2", "privacy.validation_epsilon=0.5",
)  # fmt: skip


@pytest.fixture
def used(tmp_path) -> Ledger:
    ledger = Ledger(tmp_path / "north.db", epsilon=4.0, delta=1e-6)
    for i in range(4):
        ledger.reserve(Key("earlier", "finetune", i, str(i)), "training", Cost(3, 4.0, 0.5))
    return ledger


def test_the_whole_schedule_uses_the_budget_up_and_no_more():
    told = plan(load([*SCHEDULE]), {})
    sigma = told["noise_multiplier"]
    assert [(p["what"], p["rounds"], p["steps"]) for p in told["parts"]] == [
        ("statistics", 1, 0), ("pretrain", 2, 6), ("finetune", 3, 9), ("validation", 2, 0),
    ]  # fmt: skip
    everything = [Cost(15, sigma, 0.5), Cost(1, epsilon=0.25), Cost(2, epsilon=0.5)]
    row = told["sites"]["a new site"]
    assert row["fits"] and row["before"] == 0
    assert row["after"] == pytest.approx(spent(everything, delta=1e-5))
    assert 3.8 < row["after"] <= 4
    less = [Cost(15, sigma * 0.97, 0.5), *everything[1:]]
    assert spent(less, delta=1e-5) > 4, "less noise would not do"


def test_it_fits_the_site_that_has_spent_most(used, tmp_path):
    path = tmp_path / "north.json"
    path.write_text(json.dumps(budget(used)))
    alone, both = (
        plan(load([*SCHEDULE]), {}),
        plan(load([*SCHEDULE]), {"north": read_told(path), "new": read_fresh(tmp_path)}),
    )
    assert both["noise_multiplier"] > alone["noise_multiplier"]
    north, new = both["sites"]["north"], both["sites"]["new"]
    assert north["before"] == pytest.approx(used.spent()) and north["delta"] == 1e-6
    assert 3.8 < north["after"] <= 4 and new["after"] < north["after"] and new["fits"]


def read_fresh(folder):
    path = folder / "new.json"
    path.write_text(json.dumps(budget(Ledger(folder / "new.db", epsilon=4.0, delta=1e-5))))
    return read_told(path)


def test_what_was_planned_is_what_a_site_says_it_would_cost(used, tmp_path):
    told_by_site, planned = tmp_path / "north.json", tmp_path / "plan.json"
    told_by_site.write_text(json.dumps(budget(used)))
    run = CliRunner().invoke(app, ["plan", *SCHEDULE, "--ledger", str(told_by_site), "--json"])
    assert run.exit_code == 0, run.output
    planned.write_text(run.output)
    there = budget(used, read_plan(planned))["planned"]
    assert there["fits"] and there["epsilon_after"] == pytest.approx(json.loads(run.output)["sites"]["north"]["after"])


def test_a_plan_that_cannot_be_is_one_sentence_and_names_the_site(used, tmp_path):
    used.reserve(Key("earlier", "validation", 0, "v"), "validation", Cost(1, epsilon=1.4))
    path = tmp_path / "north.json"
    path.write_text(json.dumps(budget(used)))
    with pytest.raises(ConfigError, match=r"north: .*cannot keep to the budget"):
        plan(load([*SCHEDULE]), {"north": read_told(path)})
    for arguments, words in (
        ([*SCHEDULE, "--ledger", str(path)], "north"),
        ([*SCHEDULE, "--ledger", str(tmp_path / "none.json")], "medmap-client budget"),
        (["privacy=none"], "nothing to plan"),
    ):
        run = CliRunner().invoke(app, ["plan", *arguments])
        assert run.exit_code == 1 and words in run.output and "Traceback" not in run.output, run.output


def test_noise_that_is_given_is_kept_and_told_when_it_is_too_little():
    told = plan(load([*SCHEDULE, "privacy.noise_multiplier=0.8"]), {})
    assert told["noise_multiplier"] == 0.8
    row = told["sites"]["a new site"]
    assert not row["fits"] and row["after"] > 4
    run = CliRunner().invoke(app, ["plan", *SCHEDULE, "privacy.noise_multiplier=0.8"])
    assert run.exit_code == 1 and "exceeds" in run.output
