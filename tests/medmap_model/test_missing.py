"""Missing modalities: the shortcut equals hiding, and the formulas by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from medmap_model.evaluation import missing as module
from medmap_model.evaluation import scores
from medmap_model.evaluation.missing import (
    encode_all,
    expected,
    missing_modalities,
    subset_probabilities,
    subsets,
)

PRESENT = [[1, 1, 1], [1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 1, 1]]
LABELS = [0, 1, 2, 0, 1, 2]


def test_every_subset_equals_hiding_the_others_from_the_whole_model(model, make_batch):
    batch = make_batch(present=PRESENT, labels=LABELS)
    encodings = encode_all(model, [batch.rows(slice(0, 4)), batch.rows(slice(4, 6))])
    kept = subsets(np.ones(3, bool))
    assert len(kept) == 7
    model.eval()
    for chosen, p in zip(kept, subset_probabilities(model, encodings, kept), strict=True):
        hidden = replace(batch, present=batch.present & torch.from_numpy(chosen))
        with torch.no_grad():
            whole = model.probabilities(model.logits(hidden), "liver").numpy()
        rows = hidden.present.any(1).numpy()
        np.testing.assert_allclose(p[rows], whole[rows], atol=2e-6)
        np.testing.assert_allclose(p[~rows], 1 / 3)


def test_what_was_hidden_is_never_looked_at(model, make_batch):
    batch = make_batch(present=[[1, 1, 1]] * 4)
    other = replace(batch, volumes=batch.volumes.clone())
    other.volumes[:, 1] += 5
    kept = np.array([[True, False, True], [True, True, True]])
    (a, whole_a), (b, whole_b) = (subset_probabilities(model, encode_all(model, [x]), kept) for x in (batch, other))
    np.testing.assert_array_equal(a, b)
    assert np.abs(whole_a - whole_b).max() > 1e-4, "shown, it does matter"


def test_an_untrained_modality_is_hidden_and_counts_as_absent(model, make_batch):
    encodings = encode_all(model, [make_batch(present=[[1, 1, 1]] * 6, labels=LABELS)], known={"T1", "C-pre"})
    found = missing_modalities(model, encodings)
    assert found["modalities"] == ["T1", "C-pre"]
    assert [row["missing"] for row in found["subsets"]] == [[], ["T1"], ["C-pre"]] or [
        row["missing"] for row in found["subsets"]
    ] == [[], ["C-pre"], ["T1"]]


@pytest.mark.parametrize(("modalities", "count"), [(4, 15), (8, 255)])
def test_all_non_empty_subsets_are_there_once(modalities, count):
    usable = np.ones(modalities + 1, bool)
    usable[1] = False
    kept = subsets(usable)
    assert len({tuple(k) for k in kept}) == len(kept) == count
    assert kept[0].tolist() == usable.tolist(), "the whole set comes first"
    assert not kept[:, 1].any() and kept.any(1).all()


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2, 0.9])
def test_expected_score_is_the_mean_over_independent_losses_without_the_loss_of_all(rate):
    kept = subsets(np.ones(3, bool))
    score = np.random.default_rng(0).random(len(kept))
    of = {tuple(k): s for k, s in zip(kept.tolist(), score, strict=True)}
    weights = {
        k: np.prod([1 - rate if there else rate for there in k]) for k in product([True, False], repeat=3) if any(k)
    }
    by_hand = sum(weights[k] * of[k] for k in weights) / sum(weights.values())
    assert expected(3 - kept.sum(1), score, rate=rate, modalities=3) == pytest.approx(by_hand)
    assert expected(3 - kept.sum(1), np.ones(7), rate=rate, modalities=3) == pytest.approx(1)


def test_summary_agrees_with_its_own_rows(model, make_batch):
    batch = make_batch(present=PRESENT * 2, labels=LABELS * 2)
    encodings = encode_all(model, [batch])
    found = missing_modalities(model, encodings)
    values = [row["auroc"] for row in found["subsets"]]
    whole = subset_probabilities(model, encodings, np.ones((1, 3), bool))[0]
    assert found["full"] == values[0] == pytest.approx(scores(np.array(LABELS * 2), whole)["auroc"], abs=1e-6)
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["worst"]["value"] == min(values)
    assert next(r["auroc"] for r in found["subsets"] if r["missing"] == found["worst"]["missing"]) == min(values)
    assert abs(found["expected"]["0.05"] - found["full"]) <= abs(found["expected"]["0.2"] - found["full"]) + 0.05


def test_one_class_or_too_many_modalities_is_none_with_a_reason(model, make_batch, monkeypatch):
    alone = missing_modalities(model, encode_all(model, [make_batch(labels=[1, 1, 1, 1])]))
    assert alone["mean"] is None and alone["worst"] is None and "one class" in alone["reason"]
    monkeypatch.setattr(module, "MOST", 2)
    many = missing_modalities(model, encode_all(model, [make_batch()]))
    assert many["subsets"] == [] and "3 modalities" in many["reason"]


def test_no_study_is_an_error_in_words(model):
    with pytest.raises(ValueError, match="no study"):
        encode_all(model, [])


def test_how_many_threads_share_the_subsets_does_not_matter(model, make_batch):
    encodings, kept = encode_all(model, [make_batch(present=PRESENT, labels=LABELS)]), subsets(np.ones(3, bool))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(subset_probabilities(model, encodings, kept))
            assert torch.get_num_threads() == threads, "the caller's threads come back"
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(*results)
