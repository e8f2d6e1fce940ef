"""Corruptions: deterministic, graded, of the right kind; calibration shift by hand; a missing extra is one sentence."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch

from medmap_model.batch import Batch
from medmap_model.evaluation import corruptions
from medmap_model.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt, overconfidence, robustness


@pytest.fixture
def heads(make_batch) -> Batch:
    """Three studies of a smooth, bright body in air, with a lesion, as normalised volumes."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(16.0)] * 3, indexing="ij"))
    body = (((grid - 7.5) ** 2).sum(0) < 49).float()
    lesion = (((grid - torch.tensor([9.0, 7, 8])[:, None, None, None]) ** 2).sum(0) < 6).float()
    volume = (
        -3.0 + 3.0 * body + 1.5 * lesion + 0.05 * torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(0))
    )
    batch = make_batch(present=[[1, 1, 1], [1, 0, 1], [0, 1, 0]])
    return replace(batch, volumes=volume.expand_as(batch.volumes) * batch.present[:, :, None, None, None])


def moved(batch: Batch, name: str, severity: int, **more) -> float:
    return float((corrupt(batch, name, severity=severity, seed=0, **more) - batch.volumes)[batch.present].abs().mean())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_graded_repeatable_and_leaves_absent_slots_alone(heads, name):
    before = heads.volumes.clone()
    one, two, three = (moved(heads, name, s) for s in SEVERITIES)
    assert 0.005 < one < two * 1.05 and two < three * 1.05 and three < 1.5
    again = [corrupt(heads, name, severity=2, seed=0) for _ in range(2)]
    assert torch.equal(*again)
    assert torch.isfinite(again[0]).all() and again[0].shape == before.shape
    assert torch.equal(again[0][~heads.present], before[~heads.present])
    assert torch.equal(heads.volumes, before), "the clean volumes are not written to"
    if name != "resolution":  # whose only draw is one of three axes
        assert not torch.equal(again[0], corrupt(heads, name, severity=2, seed=5))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_study_is_corrupted_alike_in_whatever_batch_it_comes(heads, name):
    whole = corrupt(heads, name, severity=3, seed=0)
    last = corrupt(heads.rows(slice(2, 3)), name, severity=3, seed=0, first=2)
    assert torch.equal(whole[2:], last)
    others = [corrupt(heads.rows(slice(2, 3)), name, severity=3, seed=0, first=n) for n in (0, 1, 6, 7, 9)]
    assert not all(torch.equal(whole[2:], other) for other in others)  # ghosting and resolution draw an axis only


def test_no_corruption_changes_nothing_and_foreground_statistics_stay(heads, monkeypatch):
    monkeypatch.setitem(CORRUPTIONS, "none", corruptions.Corruption((0, 0, 0), lambda image, level, rng: image))
    torch.testing.assert_close(corrupt(heads, "none", severity=1, seed=0), heads.volumes, atol=1e-5, rtol=0)
    darker = corruptions.Corruption((0, 0, 0), lambda image, level, rng: 0.3 * image)
    monkeypatch.setitem(CORRUPTIONS, "darker", darker)  # a gain is what normalisation takes away
    torch.testing.assert_close(corrupt(heads, "darker", severity=1, seed=0), heads.volumes, atol=1e-4, rtol=0)


def test_each_artefact_is_of_its_kind(heads):
    clean = heads.volumes[0, 0]
    air = clean < -2
    noisy = corrupt(heads, "noise", severity=3, seed=0)[0, 0]
    assert noisy[air].std() > 3 * clean[air].std(), "noise is in the air, too"
    coarse = corrupt(heads, "resolution", severity=3, seed=0)[0, 0]
    steps = lambda v: torch.stack([v.diff(dim=d).abs().mean() for d in range(3)])  # noqa: E731
    assert (steps(coarse) / steps(clean)).min() < 0.7, "blurred along one axis"
    field = corrupt(heads, "bias_field", severity=3, seed=0)[0, 0] - clean
    inside = field[5:11, 5:11, 5:11]
    assert inside.diff(dim=0).abs().mean() < 0.5 * inside.std() + 0.2, "a bias field is smooth"


def test_a_severity_or_name_that_there_is_not(heads):
    with pytest.raises(ValueError, match="severity 4 is not one of 1, 2, 3"):
        corrupt(heads, "noise", severity=4, seed=0)
    with pytest.raises(KeyError):
        corrupt(heads, "rain", severity=1, seed=0)


def test_overconfidence_by_hand():
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.5, 0.5]])
    assert overconfidence(np.array([0, 1, 1, -1]), p) == pytest.approx((0.9 + 0.8 + 0.6) / 3 - 2 / 3)
    assert overconfidence(np.array([-1, -1, -1, -1]), p) is None


def test_robustness_has_a_row_per_corruption_and_severity(model, heads, monkeypatch):
    monkeypatch.setattr(corruptions, "CORRUPTIONS", {k: CORRUPTIONS[k] for k in ("noise", "resolution")})
    batch = replace(heads, label=torch.tensor([0, 1, 1]))
    found = robustness(model, lambda: [batch, batch], seed=0)
    assert [(r["name"], r["severity"]) for r in found["rows"]] == [
        (n, s) for n in ("noise", "resolution") for s in (1, 2, 3)
    ]
    assert set(found["rows"][0]) == {"name", "severity", "auroc", "balanced_accuracy", "ece", "calibration_shift"}
    values = [r["auroc"] for r in found["rows"]]
    assert found["mean"] == pytest.approx(np.mean(values)) and found["worst"]["auroc"] == min(values)
    single = robustness(model, lambda: [replace(batch, label=torch.tensor([1, 1, 1]))], seed=0)
    assert single["mean"] is None and single["worst"] is None and single["rows"][0]["auroc"] is None


def test_without_torchio_one_sentence_says_what_to_install_and_the_rest_goes_on(model, heads, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "torchio" else there(name, *a))
    monkeypatch.setattr(corruptions, "SEVERITIES", (1,))
    found = robustness(model, lambda: [heads], seed=0)
    assert {r["name"] for r in found["rows"]} == {"bias_field", "undersampling", "noise", "resolution"}
    assert set(found["skipped"]) == {"motion", "ghosting"}
    assert "pip install 'medmap-fl[robust]'" in found["skipped"]["motion"]
