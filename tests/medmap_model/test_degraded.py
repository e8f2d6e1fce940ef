"""Degraded modalities: mixing embeddings equals degrading the volumes, and the damage is what it says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from medmap_model.evaluation.degraded import LOST, add_noise, lose_voxels, lost_signal, noisy
from medmap_model.evaluation.metrics import scores
from medmap_model.evaluation.missing import encode_all, subset_probabilities, subsets

PRESENT = [[1, 1, 1], [1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 1, 1]]
LABELS = [0, 1, 2, 0, 1, 2]


def test_mixed_embeddings_equal_the_whole_model_on_volumes_damaged_in_that_subset(model, make_batch):
    batch = make_batch(present=PRESENT, labels=LABELS)
    damaged = lose_voxels(batch, rate=0.5, seed=0)
    clean = encode_all(model, [batch])
    other = encode_all(model, [batch], change=lambda b, at: lose_voxels(b, rate=0.5, seed=at))
    hit = subsets(np.ones(3, bool))
    mixed = subset_probabilities(model, clean, ~hit, degraded=other.embedded)
    for chosen, p in zip(hit, mixed, strict=True):
        volumes = torch.where(torch.from_numpy(chosen)[None, :, None, None, None], damaged, batch.volumes)
        with torch.no_grad():
            whole = model.probabilities(model.logits(replace(batch, volumes=volumes)), "liver").numpy()
        np.testing.assert_allclose(p, whole, atol=2e-6)
    assert np.abs(mixed[0] - mixed[-1]).max() > 1e-4, "which modality is damaged does matter"


def test_the_figures_are_over_all_subsets_and_of_the_rates_of_the_source(model, make_batch):
    batch = make_batch(present=PRESENT * 2, labels=LABELS * 2)
    clean = encode_all(model, [batch])
    found = lost_signal(model, clean, lambda: [batch], seed=3)
    assert list(found) == ["0.25", "0.5", "0.75"]
    for rate in LOST:
        other = encode_all(model, [batch], change=lambda b, at, r=rate: lose_voxels(b, rate=r, seed=3 + at))
        hit = subsets(np.ones(3, bool))
        p = subset_probabilities(model, clean, ~hit, degraded=other.embedded)
        values = [scores(clean.label, each)["auroc"] for each in p]
        told = found[f"{rate:g}"]
        assert told["mean"] == pytest.approx(np.mean(values), abs=1e-5)
        assert told["all"] == pytest.approx(values[0], abs=1e-5)
        assert told["worst"]["value"] == pytest.approx(min(values), abs=1e-5)
    assert found["0.25"] != found["0.75"]


def test_one_class_is_none_with_a_reason(model, make_batch):
    batch = make_batch(labels=[1, 1, 1, 1])
    found = lost_signal(model, encode_all(model, [batch]), lambda: [batch], seed=0)
    assert all(row["mean"] is None and "one class" in row["reason"] for row in found.values())


def test_lost_voxels_have_the_value_of_air_at_the_asked_rate_and_absent_slots_stay(make_batch):
    batch = make_batch(present=[[1, 0, 1]] * 2)
    for rate in (0.25, 0.75):
        lost = lose_voxels(batch, rate=rate, seed=1)
        changed = lost != batch.volumes
        assert changed[batch.present].float().mean() == pytest.approx(rate, abs=0.02)
        low = batch.volumes.amin((2, 3, 4), keepdim=True).expand_as(lost)
        assert torch.equal(lost[changed], low[changed])
        assert not changed[~batch.present].any()
    assert torch.equal(lose_voxels(batch, rate=0.5, seed=1), lose_voxels(batch, rate=0.5, seed=1))
    assert not torch.equal(lose_voxels(batch, rate=0.5, seed=1), lose_voxels(batch, rate=0.5, seed=2))


def test_noise_is_salt_pepper_and_gaussian_of_the_asked_strength(make_batch):
    batch = make_batch(present=[[1, 0, 1]] * 2)
    low, high = (f((2, 3, 4), keepdim=True).expand_as(batch.volumes) for f in (batch.volumes.amin, batch.volumes.amax))
    grainy = add_noise(batch, density=0.2, deviation=0.0, seed=0)
    for value in (low, high):
        assert (grainy == value)[batch.present].float().mean() == pytest.approx(0.1, abs=0.02)
    grain = (add_noise(batch, density=0.0, deviation=0.1, seed=0) - batch.volumes)[batch.present]
    assert float(grain.std() / (high - low)[batch.present].mean()) == pytest.approx(0.1, abs=0.01)
    assert torch.equal(grainy[~batch.present], batch.volumes[~batch.present])


def test_noise_has_three_levels(model, make_batch):
    found = noisy(model, lambda: [make_batch(labels=[0, 1, 2, 0])], seed=0)
    assert list(found) == ["low", "mid", "high"] and all(0 <= v <= 1 for v in found.values())
