"""Retrieval: ranks counted by hand, ties, reports that read the same, and what chance looks like."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from medmap_model.evaluation.retrieval import ranks, retrieval


def units(n: int, dim: int = 64, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_perfect_pairs_are_found_and_strangers_are_found_by_chance_only():
    image, names = units(200), [f"report {i}" for i in range(200)]
    found = retrieval(image, image, names)
    assert found["image_to_report"] == {
        "recall@1": 1.0, "recall@5": 1.0, "recall@10": 1.0, "median_rank": 1.0, "n": 200, "distinct": 200,
    }  # fmt: skip
    chance = retrieval(image, units(200, seed=1), names)
    for way in ("image_to_report", "report_to_image"):
        assert chance[way]["recall@10"] < 0.12
        assert 70 < chance[way]["median_rank"] < 130


def test_ranks_by_hand():
    similarity = torch.tensor([[0.9, 0.8, 0.1], [0.9, 0.8, 0.1], [0.9, 0.8, 0.1]])
    assert ranks(similarity, torch.eye(3).bool()).tolist() == [1, 2, 3]


def test_a_tie_counts_as_its_mean_rank_so_that_a_constant_model_gains_nothing():
    assert ranks(torch.zeros(5, 5), torch.eye(5).bool()).tolist() == [3] * 5
    same = F.normalize(torch.ones(5, 8), dim=1)
    found = retrieval(same, same, list("abcde"))
    assert found["image_to_report"]["recall@1"] == 0
    assert found["report_to_image"]["median_rank"] == 3


def test_reports_that_read_the_same_are_hits_of_one_another():
    image = torch.eye(4)
    text = torch.eye(4)[[1, 0, 2, 3]]  # studies 0 and 1 have each other's text vector
    apart = retrieval(image, text, ["a", "b", "c", "d"])
    assert apart["image_to_report"]["recall@1"] == 0.5
    together = retrieval(image, text[[0, 0, 2, 3]], ["a", "a", "c", "d"])
    assert together["image_to_report"]["median_rank"] == 1
    assert together["report_to_image"]["recall@1"] == 1.0
    assert together["image_to_report"]["distinct"] == 3
    # A hit does not push a hit back: two nearer copies of the same text are no worse than one.
    assert ranks(torch.tensor([[0.5, 0.9, 0.1]]), torch.tensor([[True, True, False]])).tolist() == [1]


def test_duplicates_tie_to_the_last_bit_whatever_their_rounding():
    text = units(6)[[0, 0, 1, 2, 3, 4]]
    wobbled = text + 1e-7 * torch.randn(6, 64, generator=torch.Generator().manual_seed(2))
    names = ["a", "a", "b", "c", "d", "e"]
    image = units(6, seed=3)
    one, two = retrieval(image, text, names), retrieval(image, wobbled, names)
    assert one["report_to_image"]["median_rank"] == two["report_to_image"]["median_rank"]


@pytest.mark.parametrize("reports", [[], ["only one"], ["all alike", "all alike", "all alike"]])
def test_nothing_to_tell_apart_is_none_with_a_reason(reports):
    found = retrieval(units(len(reports)), units(len(reports)), reports)
    assert found["image_to_report"] is None and found["report_to_image"] is None
    assert "different reports" in found["reason"]


def test_what_does_not_pair_up_is_refused():
    with pytest.raises(ValueError, match="3 images, 2 text embeddings and 3 reports"):
        retrieval(units(3), units(2), ["a", "b", "c"])


def test_more_dimensions_than_patients_is_no_trouble():
    assert np.isfinite(retrieval(units(3, 512), units(3, 512, 1), list("abc"))["image_to_report"]["median_rank"])
