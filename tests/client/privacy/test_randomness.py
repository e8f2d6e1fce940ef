"""Noise of the right size and shape, from a generator that no seed reaches; honest sampling."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from medmap_model.randomness import SecretRandom


@pytest.mark.parametrize("chacha", [True, False])
def test_noise_has_the_standard_deviation_asked_for(chacha):
    n, std = 400_000, 0.91
    x = SecretRandom(chacha=chacha).normal((n,), std=std).double().numpy()
    low, high = stats.chi2.ppf([5e-5, 1 - 5e-5], n)
    assert low <= (x**2).sum() / std**2 <= high  # wrong once in 10,000 runs
    assert stats.kstest(x / std, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 5 / math.sqrt(n)
    wrong = SecretRandom(chacha=chacha).normal((n,), std=std * 1.01).double().numpy()
    assert not low <= (wrong**2).sum() / std**2 <= high  # the test sees one percent


@pytest.mark.parametrize("chacha", [True, False])
def test_seeds_do_not_reach_it(chacha):
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        drawn.append(SecretRandom(chacha=chacha).normal((1000,), std=1.0))
    assert abs(float(torch.corrcoef(torch.stack(drawn))[0, 1])) < 0.2
    before = torch.random.get_rng_state()
    SecretRandom(chacha=chacha).normal((10,), std=1.0)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("chacha", [True, False])
def test_every_patient_is_in_at_the_rate_and_independently(chacha):
    rng, rate, rounds = SecretRandom(chacha=chacha), 0.25, 4000
    drawn = torch.stack([rng.sample(20, rate=rate) for _ in range(rounds)]).double()
    tolerance = 4.5 * math.sqrt(rate * (1 - rate) / rounds)
    assert ((drawn.mean(0) - rate).abs() < tolerance).all()
    pairs = torch.corrcoef(drawn.T) - torch.eye(20)
    assert pairs.abs().max() < 5 / math.sqrt(rounds)
    assert drawn.sum(1).var() == pytest.approx(20 * rate * (1 - rate), rel=0.15)  # sizes vary: no fixed batch
    assert rng.sample(5, rate=1.0).all()
    with pytest.raises(ValueError, match="sampling rate is 0"):
        rng.sample(5, rate=0.0)


def test_discrete_laplace_by_its_formula():
    x = SecretRandom().discrete_laplace((200_000,), scale=1.0)
    assert x.dtype == np.int64
    p = math.exp(-1)
    for k in (0, 1, -1, 3):
        expected = (1 - p) / (1 + p) * p ** abs(k)
        assert (x == k).mean() == pytest.approx(expected, abs=5 * math.sqrt(expected / len(x)))
    assert x.std() == pytest.approx(math.sqrt(2 * p) / (1 - p), rel=0.02)
