"""The noise of real optimiser steps: of the size charged for, normal, and never the same or related twice.

Every check on secret noise is one that right noise fails less than once in 100,000 runs, and each has a wrong noise that
fails it.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from opacus.optimizers import DPOptimizer
from scipy import stats
from torch import Tensor, nn

from client.privacy.ledger import Ledger
from client.privacy.optimizer import PatientDPOptimizer
from client.site import open_site
from configs import to_json
from medmap_model.accounting import Cost
from medmap_model.contract import Task
from medmap_model.groups import layout, pack
from medmap_model.randomness import SecretRandom
from tests.conftest import small_config

C, SIGMA, EXPECTED, STEPS = 0.5, 1.3, 8.0, 300
SHAPES = {"convolution": (4, 2, 3, 3, 3), "linear": (12, 18), "norm": (216,), "embedding": (8, 27)}  # 216 numbers each
RARE = 1e-6  # chance that right noise fails one check


class Parameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.all = nn.ParameterDict({name: nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()})


def pure_noise(steps: int, *, sigma: float = SIGMA, chacha: bool = True, dtype: torch.dtype = torch.float32) -> Tensor:
    """(steps, parameters, 216): what each step of one optimiser on nobody adds, in units of C * sigma / EXPECTED."""
    model = Parameters().to(dtype)
    named = dict(model.named_parameters())
    optimizer = PatientDPOptimizer(
        torch.optim.SGD(named.values(), lr=1.0), noise_multiplier=sigma, clip_norm=C, expected_patients=EXPECTED,
        secret=SecretRandom(chacha=chacha),
    )  # fmt: skip
    found = []
    for _ in range(steps):
        before = [p.detach().clone() for p in named.values()]
        optimizer.step_on({n: torch.zeros_like(p) for n, p in named.items()}, named)
        found.append(torch.stack([(b - p.detach()).flatten() for b, p in zip(before, named.values(), strict=True)]))
        with torch.no_grad():
            for p in named.values():
                p.zero_()
    return torch.stack(found).double() * EXPECTED / (C * SIGMA)


def has_unit_variance(noise: Tensor) -> bool:
    """Chi-square on the sum of squares."""
    low, high = stats.chi2.ppf([RARE / 2, 1 - RARE / 2], noise.numel())
    return bool(low <= noise.square().sum() <= high)


def is_normal(noise: Tensor) -> bool:
    """Kolmogorov and Smirnov."""
    return stats.kstest(noise.flatten().numpy(), "norm").pvalue > RARE


def are_unrelated(vectors: Tensor) -> bool:
    """(k, d): no two of the k vectors are correlated, by Bonferroni over all pairs."""
    k, d = vectors.shape
    limit = stats.norm.isf(RARE / (k * (k - 1))) / math.sqrt(d)
    return bool(torch.corrcoef(vectors).fill_diagonal_(0).abs().max() < limit)


@pytest.mark.parametrize("chacha", [True, False])
def test_three_hundred_steps_on_nobody_are_the_noise_that_was_charged(chacha):
    noise = pure_noise(STEPS, chacha=chacha)
    assert noise.shape == (STEPS, len(SHAPES), 216)
    assert has_unit_variance(noise) and is_normal(noise)
    for part in noise.unbind(1):  # no parameter less than another
        assert has_unit_variance(part)
    assert not has_unit_variance(pure_noise(STEPS, sigma=SIGMA * 0.98, chacha=chacha))  # two percent less is seen
    assert not is_normal(noise.sign() * noise.abs().pow(0.9))
    assert has_unit_variance(pure_noise(40, chacha=chacha, dtype=torch.float64))


def test_parameters_and_steps_share_no_noise():
    noise = pure_noise(60)
    assert are_unrelated(noise.flatten(0, 1))  # 240 vectors: every parameter of every step with every other
    assert are_unrelated(noise.reshape(60, -1))
    assert are_unrelated(noise.transpose(0, 1).reshape(len(SHAPES), -1))
    shared = noise.clone()
    shared[37, 2] = (noise[11, 0] + noise[37, 2]) / math.sqrt(2)
    assert not are_unrelated(shared.flatten(0, 1))  # half shared, in one pair of 28,680


def test_rounds_and_sites_share_no_noise_whatever_seed_is_set():
    """As a simulation would: every site and round begins with the same training seed."""

    def seeded() -> Tensor:
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        return pure_noise(2).flatten()

    assert are_unrelated(torch.stack([seeded() for _ in range(12)]))

    def opacus() -> Tensor:
        """Its own optimiser draws from the generator that the seed sets."""
        torch.manual_seed(0)
        p = nn.Parameter(torch.zeros(864))
        optimizer = DPOptimizer(torch.optim.SGD([p], lr=1.0), noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=1)  # fmt: skip
        p.summed_grad = torch.zeros(864)  # type: ignore[attr-defined]
        optimizer.add_noise()
        return p.grad.detach()

    assert not are_unrelated(torch.stack([opacus() for _ in range(3)]))


def test_noise_hides_which_sum_it_was_added_to():
    """A step is the sum plus noise over a constant: the mean over many steps is the sum, and no step is without noise."""
    model = Parameters()
    named = dict(model.named_parameters())
    sums = {n: torch.full_like(p, 0.1) for n, p in named.items()}
    optimizer = PatientDPOptimizer(
        torch.optim.SGD(named.values(), lr=1.0), noise_multiplier=SIGMA, clip_norm=C, expected_patients=EXPECTED, secret=SecretRandom()
    )  # fmt: skip
    for _ in range(STEPS):
        optimizer.step_on(sums, named)
    added = torch.cat([-p.detach().flatten().double() * EXPECTED for p in named.values()])
    rest = (added - STEPS * 0.1) / (math.sqrt(STEPS) * C * SIGMA)
    assert has_unit_variance(rest) and is_normal(rest)


def test_a_round_that_draws_nobody_is_noised_and_charged(hospitals, cache, tmp_path):
    """Should a patient be drawn after all (once in 10,000 runs), it is less than the noise of one coordinate."""
    steps, rate = 4, 1e-6
    config = small_config(
        "privacy=patient_dp", f"privacy.steps={steps}", f"privacy.sample_rate={rate}", "privacy.noise_multiplier=2",
        "privacy.lr=1e-6", "stage.finetune.lr_floor=1", "stage.pretrain.rounds=0", f"privacy.ledger_dir={tmp_path}",
    )  # fmt: skip
    site = open_site(to_json(config), "east", (hospitals["east"],), cache)
    groups = [g for g in layout(site.trainer.model) if g in ("head/brain", "encoder/T1", "fusion")]
    sent = pack(site.trainer.model, groups)
    patients = site.records.patients("train")
    updates = []
    for r in range(2):
        task = Task("finetune", r, 2, 0, run="a", message=f"m{r}")
        got, figures = site.train(sent, task)
        assert not figures.known()
        scale = 1e-6 * math.sqrt(steps) * 2 * config.privacy.clip_norm / (rate * patients)
        update = torch.cat([torch.from_numpy(got[g].astype(np.float64) - sent[g]) for g in groups]) / scale
        assert update.numel() > 10_000
        assert has_unit_variance(update) and is_normal(update)
        updates.append(update)
    assert are_unrelated(torch.stack(updates))
    ledger = Ledger(tmp_path / "east.db", epsilon=config.privacy.epsilon, delta=config.privacy.delta)
    assert [c.cost for c in ledger.charges()] == [Cost(steps, 2.0, rate)] * 2
    assert all(c.released for c in ledger.charges())


def test_the_check_passes_independent_vectors_and_sees_any_one_related_pair():
    g = torch.Generator().manual_seed(0)
    vectors = torch.randn(100, 2000, generator=g, dtype=torch.float64)
    assert are_unrelated(vectors)
    for i, j in itertools.combinations((0, 50, 99), 2):
        wrong = vectors.clone()
        wrong[i] = vectors[i] + vectors[j]
        assert not are_unrelated(wrong)


def test_noise_is_added_in_float64_and_rounded_once():
    """Rounded to float32 before, only some sums would be possible for a value of a coordinate: they would tell it."""
    noise = SecretRandom(chacha=False).normal((10_000,), std=1.5)
    assert noise.dtype == torch.float64 and (noise == noise.float().double()).double().mean() < 0.01

    class Fixed:
        def normal(self, shape, *, std):
            return torch.full(shape, 2.0**-24 + 2.0**-50, dtype=torch.float64)

    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = PatientDPOptimizer(
        torch.optim.SGD([parameter], lr=1.0), noise_multiplier=1.0, clip_norm=1.0, expected_patients=1.0, secret=Fixed()
    )
    optimizer.step_on({"w": torch.ones(1)}, {"w": parameter})
    assert parameter.item() == -(1 + 2.0**-23), "float32 noise would have been half a step, and rounded away"


def test_the_keystream_starts_its_counter_at_0_and_so_never_runs_out(monkeypatch):
    monkeypatch.setattr("medmap_model.randomness.secrets.token_bytes", lambda n: b"\xff" * n)
    assert SecretRandom().normal((1000,), std=1.0).isfinite().all()
