"""What is charged is what is done: steps taken, rates and noise against the ledger; histories however kept; who is drawn."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from opacus.accountants import PRVAccountant, RDPAccountant
from scipy import stats

from client.privacy.ledger import Key, Ledger
from client.privacy.optimizer import PatientDPOptimizer
from client.privacy.training import PrivateTrainer
from medmap_model.accounting import EPS_ERROR, Cost, spent
from medmap_model.batch import Batch
from medmap_model.contract import Task
from medmap_model.randomness import SecretRandom
from simulation.engines import InProcessGrid
from tests.client.privacy.small import site
from tests.client.privacy.test_accounting import HISTORIES, pld
from tests.client.privacy.test_federation import ledger, run

DELTA = 1e-5
BOTH_STAGES = (
    "stage.pretrain.rounds=1", "stage.finetune.rounds=2", "stage.pretrain.objective=bank", "privacy.sample_rate=0.4",
    "privacy.trainable=norms", "privacy.engine=vmap",
)  # fmt: skip


# --- charged and taken


@dataclass
class Taken:
    """What one site really did: the noise of each step (multiplier of the clip norm) and the rate of each draw."""

    noise: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)


class Watched(InProcessGrid):
    """Knows which site is answering, so that what happens meanwhile can be put down to it."""

    answering = 0

    def _answer(self, message):
        Watched.answering = message.metadata.dst_node_id
        return super()._answer(message)


@pytest.fixture
def taken(monkeypatch) -> dict[int, Taken]:
    """Node -> what it did. The real methods run; their calls are noted."""
    found: dict[int, Taken] = {}
    add_noise, normal, sample = PatientDPOptimizer.add_noise, SecretRandom.normal, SecretRandom.sample
    drawn_std: set[float] = set()

    def noted_normal(self, shape, *, std):
        drawn_std.add(std)
        return normal(self, shape, std=std)

    def noted_add_noise(self):
        drawn_std.clear()
        add_noise(self)
        [std] = drawn_std  # every parameter of a step has the same noise
        found.setdefault(Watched.answering, Taken()).noise.append(std / self.max_grad_norm)

    def noted_sample(self, n, *, rate):
        found.setdefault(Watched.answering, Taken()).rates.append(rate)
        return sample(self, n, rate=rate)

    monkeypatch.setattr(SecretRandom, "normal", noted_normal)
    monkeypatch.setattr(SecretRandom, "sample", noted_sample)
    monkeypatch.setattr(PatientDPOptimizer, "add_noise", noted_add_noise)
    return found


def charged(folder: Path, site: str) -> tuple[list[float], list[float]]:
    """Noise multiplier and rate of every step that the site's ledger holds."""
    costs = [c.cost for c in ledger(folder, site).charges()]
    return [c.noise_multiplier for c in costs for _ in range(c.steps)], [
        c.sample_rate for c in costs for _ in range(c.steps)
    ]


def test_every_step_of_both_stages_is_one_that_the_ledger_was_charged_for(tmp_path, hospitals, cache, taken):
    run(tmp_path, hospitals, cache, *BOTH_STAGES, spy=Watched)
    assert len(taken) == len(hospitals)
    for name, did in zip(hospitals, (taken[node] for node in sorted(taken)), strict=True):
        noise, rates = charged(tmp_path, name)
        assert len(noise) == 3 * 2  # three rounds of two steps
        assert did.noise == pytest.approx(noise) and did.rates == rates
        stages = [c.key.stage for c in ledger(tmp_path, name).charges()]
        assert stages == ["pretrain", "finetune", "finetune"]


def test_a_trainer_that_takes_a_step_too_many_is_noticed(tmp_path, hospitals, cache, taken, monkeypatch):
    """The negative control of the count."""
    train = PrivateTrainer.train

    def twice(self, records, task, groups, **more):
        train(self, records, task, groups, **more)
        train(self, records, task, groups, **more)

    monkeypatch.setattr(PrivateTrainer, "train", twice)
    run(tmp_path, hospitals, cache, *BOTH_STAGES, "stage.pretrain.rounds=0", "stage.finetune.rounds=1", spy=Watched)
    for name, did in zip(hospitals, (taken[node] for node in sorted(taken)), strict=True):
        assert len(did.noise) == 2 * len(charged(tmp_path, name)[0])


# --- histories


def test_epsilon_rises_with_steps_and_rate_and_falls_with_noise():
    by_steps = [spent([Cost(n, 2.0, 0.25)], delta=DELTA) for n in (1, 2, 20)]
    by_rate = [spent([Cost(20, 2.0, q)], delta=DELTA) for q in (0.05, 0.25, 1.0)]
    by_noise = [spent([Cost(20, s, 0.25)], delta=DELTA) for s in (6.0, 2.0, 1.5)]
    for rising in (by_steps, by_rate, by_noise):
        assert all(a < b for a, b in itertools.pairwise(rising))


@pytest.mark.slow
@pytest.mark.parametrize("name", HISTORIES)
def test_renyi_accounting_is_never_below_the_two_that_are_tight(name):
    """RDP (Mironov 2017) is another route to the same number, and a looser one."""
    history, delta = HISTORIES[name], 1e-3
    accountant = RDPAccountant()
    accountant.history = [(c.noise_multiplier, c.sample_rate, c.steps) for c in history]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        renyi = accountant.get_epsilon(delta)
    assert renyi >= pld(history, delta)
    assert renyi >= spent(history, delta=delta) - EPS_ERROR
    assert renyi <= 1.5 * spent(history, delta=delta)  # and of the same thing


STAGE_1, STAGE_2 = [Cost(2, 4.0, 0.25)] * 3, [Cost(2, 4.0, 0.25), Cost(1, epsilon=0.2), Cost(3, 6.0, 1.0)]
READ = """
import sys
from pathlib import Path
from client.privacy.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]), epsilon=9.0, delta=1e-5)
print(repr(ledger.spent()), len(ledger.charges()))
"""


def kept(path: Path, costs: list[Cost], stage: str) -> Ledger:
    made = Ledger(path, epsilon=9.0, delta=DELTA)
    for number, cost in enumerate(costs):
        made.reserve(Key("a", stage, number, f"m{number}"), f"training, {stage}", cost)
    return made


def test_a_history_says_the_same_read_by_another_process_and_merged_from_parts(tmp_path):
    whole = [*STAGE_1, *STAGE_2]
    expected = spent(whole, delta=DELTA)
    one = kept(tmp_path / "one.db", whole, "both")
    child = subprocess.run(
        [sys.executable, "-c", READ, str(one.path)], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[3], env={**os.environ, "PYTHONPATH": "."},
    )  # fmt: skip
    assert child.stdout.split() == [repr(expected), str(len(whole))]

    parts = kept(tmp_path / "1.db", STAGE_1, "first"), kept(tmp_path / "2.db", STAGE_2, "second")
    merged = [c.cost for part in reversed(parts) for c in part.charges()]
    assert spent(merged, delta=DELTA) == expected
    apart = [part.spent() for part in parts]
    assert max(apart) < expected < sum(apart)  # composed, neither forgotten nor added


def test_opacus_own_accountant_saved_and_loaded_says_the_same(tmp_path):
    """An independent keeper of the same history, one row per step, through its own state_dict and through JSON."""
    whole = [*STAGE_1, *STAGE_2]
    first = PRVAccountant()
    for cost in whole:
        for _ in range(cost.steps if cost.noise_multiplier else 0):
            first.step(noise_multiplier=cost.noise_multiplier, sample_rate=cost.sample_rate)
    saved = json.loads(json.dumps(first.state_dict()))
    second = PRVAccountant()
    second.load_state_dict({**saved, "history": [tuple(row) for row in saved["history"]]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gaussian = second.get_epsilon(DELTA, eps_error=EPS_ERROR)
    reopened = Ledger(kept(tmp_path / "one.db", whole, "both").path, epsilon=9.0, delta=DELTA)
    assert reopened.spent() == pytest.approx(gaussian + 0.2, abs=1e-6)


# --- who is drawn


class Attendance:
    """A site's records that note whom a round draws. Their batches are left out: nobody is drawn by what he or she has."""

    def __init__(self, records) -> None:
        self._records, self.drawn = records, []

    def __getattr__(self, name: str):
        return getattr(self._records, name)

    def batches_of(self, patients: Collection[int], **_) -> Iterator[Batch]:
        self.drawn.append(list(patients))
        return iter(())


def fair(drawn: np.ndarray, rate: float, *, rare: float = 1e-6) -> set[str]:
    """What is wrong with draws (steps, patients) of rate `rate`; each check fails right ones once in a million."""
    steps, n = drawn.shape
    wrong = set()
    low, high = stats.binom.ppf([rare / 2 / n, 1 - rare / 2 / n], steps, rate)
    if not ((low <= drawn.sum(0)) & (drawn.sum(0) <= high)).all():
        wrong.add("rate")
    together = drawn.T.astype(int) @ drawn.astype(int)
    pairs = np.triu_indices(n, 1)
    low, high = stats.binom.ppf([rare / 2 / len(pairs[0]), 1 - rare / 2 / len(pairs[0])], steps, rate**2)
    if not ((low <= together[pairs]) & (together[pairs] <= high)).all():
        wrong.add("pairs")
    again = (drawn[1::2] & drawn[::2]).sum(0)
    low, high = stats.binom.ppf([rare / 2 / n, 1 - rare / 2 / n], steps // 2, rate**2)
    if not ((low <= again) & (again <= high)).all():
        wrong.add("steps")
    sizes = np.bincount(drawn.sum(1), minlength=n + 1)
    expected = steps * stats.binom.pmf(np.arange(n + 1), n, rate)
    common = expected >= 10
    statistic = ((sizes - expected)[common] ** 2 / expected[common]).sum()
    if statistic > stats.chi2.isf(rare / 10, common.sum()):
        wrong.add("sizes")
    return wrong


@pytest.mark.parametrize("secure", ["true", "false"])
def test_a_rounds_draws_are_those_that_are_charged_for(hospitals, cache, secure):
    rate, rounds, steps = 0.3, 8, 500
    _, trainer, records = site(
        hospitals["east"], cache, f"privacy.sample_rate={rate}", f"privacy.steps={steps}", f"privacy.secure_noise={secure}",
        "privacy.lr=1e-8", "privacy.engine=vmap",
    )  # fmt: skip
    n, attendance = records.patients("train"), Attendance(records)
    for _ in range(rounds):  # the same task and seed each time: no two rounds draw the same
        torch.manual_seed(0)
        PrivateTrainer(trainer).train(attendance, Task("finetune", 0, 1, 0), {"head/brain"})
    assert len(attendance.drawn) == rounds * steps
    assert all(len(set(d)) == len(d) for d in attendance.drawn)
    drawn = np.zeros((len(attendance.drawn), n), bool)
    for row, patients in zip(drawn, attendance.drawn, strict=True):
        row[patients] = True
    assert fair(drawn, rate) == set()
    by_round = drawn.reshape(rounds, steps, n)
    assert all((by_round[0] != other).any() for other in by_round[1:])


def test_other_ways_to_draw_are_told_from_it():
    """The negative control: what batches of a fixed size, a shuffled pass, families and a lower rate look like."""
    rng, steps, n, rate = np.random.default_rng(0), 4000, 12, 0.25
    poisson = rng.random((steps, n)) < rate
    fixed = np.argsort(rng.random((steps, n)), 1) < 3
    shuffled = (np.argsort(rng.random((steps // 4, n)), 1)[:, None] // 3 == np.arange(4)[:, None]).reshape(steps, n)
    families = np.repeat(rng.random((steps, n // 2)) < rate, 2, axis=1)
    assert fair(poisson, rate) == set()
    assert fair(fixed, rate) == {"pairs", "sizes"}
    assert fair(shuffled, rate) == {"pairs", "sizes", "steps"}
    assert fair(families, rate) >= {"pairs", "sizes"}
    assert "rate" in fair(rng.random((steps, n)) < 0.2, rate)


def test_adam_steps_on_the_same_noisy_gradients(tmp_path, hospitals, cache, monkeypatch):
    """Its moments hold nothing but what the noise is in: what reaches the optimiser is a noisy sum for either."""
    import torch

    import client.privacy.training as training

    seen: dict[str, list[float]] = {}
    for name in ("sgd", "adam"):
        made, kept = training._OPTIMIZERS[name], []
        seen[name] = kept

        class Watching(made):
            def step(self, closure=None, kept=kept):
                kept.append(float(torch.cat([p.grad.flatten() for g in self.param_groups for p in g["params"]]).std()))
                return super().step(closure)

        monkeypatch.setitem(training._OPTIMIZERS, name, Watching)
        rate = {"sgd": "1", "adam": "0.003"}[name]
        settings = (
            f"privacy.optimizer={name}",
            f"privacy.lr={rate}",
            "privacy.sample_rate=0.05",
            "stage.finetune.rounds=1",
        )
        run(tmp_path / name, hospitals, cache, *settings)
    assert len(seen["sgd"]) == len(seen["adam"]) == 4
    # Noise of 3 x C over an expected 0.05 x 12 patients, whoever was drawn; the clipped signal is far below it.
    assert np.mean(seen["sgd"]) == pytest.approx(3 * 0.5 / 0.6, rel=0.02)
    assert np.mean(seen["adam"]) == pytest.approx(3 * 0.5 / 0.6, rel=0.02)
