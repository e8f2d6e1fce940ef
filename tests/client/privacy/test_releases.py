"""Noisy score histograms: sensitivity, honest noise, and what the coordinator can tell from them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from client.privacy.releases import release_scores, score_histograms, with_noise
from medmap_model.accounting import Cost, noise_variance
from medmap_model.randomness import SecretRandom
from server.validation import NoisyCounts, estimate


def patients(n: int, *, classes: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, n, p=[0.65, 0.35] if classes == 2 else None)
    logits = rng.normal(0, 1, (n, classes)) + 1.3 * np.eye(classes)[labels] * (0.5 if classes == 2 else 1)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return labels, p


@pytest.mark.parametrize("classes", [2, 7])
def test_one_patient_is_in_one_cell_of_each_class(classes):
    labels, p = patients(50, classes=classes)
    whole = score_histograms(labels, p, bins=8)
    released = 1 if classes == 2 else classes
    assert whole.shape == (released, 8, 2) and whole.sum() == 50 * released
    for i in (0, 17, 49):
        without = score_histograms(np.delete(labels, i), np.delete(p, i, 0), bins=8)
        assert np.abs(whole - without).sum() == released
    labels[:10] = -1
    assert score_histograms(labels, p, bins=8).sum() == 40 * released


@pytest.mark.parametrize("cost", [Cost(1, epsilon=1.0), Cost(1, noise_multiplier=2.0)], ids=["laplace", "gaussian"])
@pytest.mark.parametrize("classes", [2, 7])
def test_noise_is_what_the_sensitivity_asks_for(classes, cost):
    labels, p = patients(30, classes=classes)
    exact = score_histograms(labels, p, bins=8)
    secret = SecretRandom(chacha=False)
    noise = np.stack([release_scores(labels, p, cost=cost, bins=8, secret=secret) - exact for _ in range(1500)])
    expected = math.sqrt(noise_variance(cost, cells=1 if classes == 2 else classes))
    assert noise.dtype.kind == "i"
    assert noise.std() == pytest.approx(expected, rel=0.05)
    assert abs(noise.mean()) < 5 * expected / math.sqrt(noise.size)
    assert (noise.std(0) > 0.7 * expected).all()  # every cell, empty ones too


def test_labels_of_their_own_are_counted_each():
    labels = np.array([0b00, 0b01, 0b11, 0b10])
    p = np.array([[0.1, 0.2], [0.9, 0.3], [0.8, 0.7], [0.2, np.nan]])
    counts = score_histograms(labels, p, bins=2, multi_label=True)
    assert counts.tolist() == [[[2, 0], [0, 2]], [[2, 1], [0, 1]]], "a score that is not finite counts as 0"


def test_without_noise_the_estimate_is_the_truth_up_to_binning():
    labels, p = patients(4000)
    counts = score_histograms(labels, p, bins=64)[0]
    told = estimate(NoisyCounts(counts, 0.0), bootstrap=200)
    assert told["auroc"] == pytest.approx(roc_auc_score(labels, p[:, 1]), abs=2e-3)
    at = p[:, 1] >= told["threshold"]
    assert told["sensitivity"] == pytest.approx(at[labels == 1].mean(), abs=0.02)
    assert told["specificity"] == pytest.approx(1 - at[labels == 0].mean(), abs=0.02)
    low, high = told["auroc_ci"]
    assert low < told["auroc"] < high and high - low < 0.05


def test_sites_add_up_and_the_interval_covers_noise_and_sampling():
    covered, wide, cost = 0, 0.0, Cost(1, epsilon=1.0)
    big = patients(200_000, seed=99)
    truth = roc_auc_score(big[0], big[1][:, 1])
    for repeat in range(60):
        total = None
        for site in range(3):
            labels, p = patients(100, seed=1000 * repeat + site)
            counts = release_scores(labels, p, cost=cost, bins=8, secret=SecretRandom(chacha=False))
            noisy = NoisyCounts(counts[0], noise_variance(cost, cells=1))
            total = noisy if total is None else total + noisy
        told = estimate(total, bootstrap=150, seed=repeat)
        covered += told["auroc_ci"][0] <= truth <= told["auroc_ci"][1]
        wide += told["auroc_ci"][1] - told["auroc_ci"][0]
    assert covered >= 47  # 95 % nominal; binning and clipping cost a little; the noise is secret
    assert wide / 60 < 0.25


def test_nothing_to_tell_is_none_with_a_reason():
    told = estimate(NoisyCounts(np.array([[5, 0], [3, -2]]), 1.0))
    assert told["auroc"] is None and "too few patients" in told["reason"]


def test_a_table_of_counts():
    exact, cost = np.array([[10, 0], [3, 7]]), Cost(1, epsilon=1.0)
    secret = SecretRandom(chacha=False)
    noisy = np.stack([with_noise(exact, cost=cost, cells=2, unit=3, secret=secret) for _ in range(4000)])
    assert noisy.mean(0) == pytest.approx(exact, abs=0.9)
    assert (noisy - exact).std() == pytest.approx(math.sqrt(noise_variance(cost, cells=2, unit=3)), rel=0.05)


def test_tables_that_share_a_cost_cost_as_much_together():
    from medmap_model.accounting import spent

    for cost in (Cost(1, epsilon=1.2), Cost(1, noise_multiplier=3.0)):
        assert spent([cost.part_of(4)] * 4, delta=1e-5) == pytest.approx(spent([cost], delta=1e-5), abs=0.02)


def test_curves_come_with_the_figures():
    labels, p = patients(3000)
    told = estimate(NoisyCounts(score_histograms(labels, p, bins=10)[0], 2.0), bootstrap=200)
    roc = told["roc"]
    assert (roc["false"][0], roc["true"][0], roc["false"][-1], roc["true"][-1]) == (0, 0, 1, 1)
    assert all(low <= t <= high for t, (low, high) in zip(roc["true"], roc["true_ci"], strict=True))
    for row in told["calibration"]:
        mine = (p[:, 1] * 10).astype(int).clip(0, 9) == round(row["score"] * 10 - 0.5)
        assert row["observed"] == pytest.approx(labels[mine].mean())
        assert row["observed_ci"][0] <= row["observed"] <= row["observed_ci"][1]
    assert told["prevalence"] == pytest.approx((labels == 1).mean())


def test_noise_too_large_to_be_drawn_exactly_is_refused():
    for cost in (Cost(1, epsilon=1e-30), Cost(1, noise_multiplier=1e30)):
        with pytest.raises(ValueError, match="cannot be drawn exactly"):
            with_noise(np.array([[3, 4]]), cost=cost, cells=1, secret=SecretRandom())
