"""Parameters become vectors and come back bit for bit; ownership follows the data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medmap_model import groups
from medmap_model.model import MedMAP, build_model, describe
from medmap_model.vocabulary import Vocabulary


def test_every_parameter_has_one_group_and_every_group_parameters(model: MedMAP, vocabulary: Vocabulary) -> None:
    plan = groups.layout(model)
    assert tuple(plan) == groups.group_names(vocabulary)
    named = [name for rows in plan.values() for name, _ in rows]
    assert sorted(named) == sorted(name for name, _ in model.named_parameters())
    assert all(shape == dict(model.named_parameters())[n].shape for rows in plan.values() for n, shape in rows)


def test_modality_embedding_and_temperature_travel_where_documented(model: MedMAP) -> None:
    plan = groups.layout(model)
    assert "projections.C+A.embedding" in [n for n, _ in plan["projection/C+A"]]
    assert "text_projection.temperature" in [n for n, _ in plan["text_projection"]]


def test_unknown_parameter_is_refused() -> None:
    for name in ("decoder.weight", "encoders", "head.brain.weight"):
        with pytest.raises(groups.GroupError, match=name):
            groups.group_of(name)


def test_round_trip_is_bit_exact(model: MedMAP, vocabulary, text, model_config) -> None:
    other = build_model(model_config, vocabulary, text, seed=1)
    sent = groups.pack(other, groups.group_names(vocabulary))
    assert all(v.dtype == np.float32 and v.ndim == 1 for v in sent.values())
    before = [id(p) for p in model.parameters()]
    groups.unpack(model, sent)
    assert [id(p) for p in model.parameters()] == before
    for (name, a), (_, b) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    again = groups.pack(model, sent)
    assert all(again[g].tobytes() == sent[g].tobytes() for g in sent)


def test_only_the_named_group_changes_and_vectors_are_copies(model: MedMAP) -> None:
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    vector = groups.pack(model, ["encoder/T1"])["encoder/T1"]
    vector += 1
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    vector.flags.writeable = False
    groups.unpack(model, {"encoder/T1": vector})
    for name, p in model.named_parameters():
        assert torch.equal(before[name], p) is (groups.group_of(name) != "encoder/T1"), name


@pytest.mark.parametrize(
    ("group", "vector"),
    [
        ("encoder/T9", np.zeros(3, np.float32)),
        ("head/brain", np.zeros(3, np.float32)),
        ("head/brain", np.zeros(34, np.float64)),
        ("head/brain", np.zeros((17, 2), np.float32)),
    ],
)
def test_a_vector_that_does_not_fit_names_its_group_and_changes_nothing(
    model: MedMAP, group: str, vector: np.ndarray
) -> None:
    good = groups.pack(model, ["fusion"])["fusion"] + 1
    before = groups.pack(model, ["fusion"])["fusion"]
    with pytest.raises(groups.GroupError, match=group):
        groups.unpack(model, {"fusion": good, group: vector})
    assert np.array_equal(groups.pack(model, ["fusion"])["fusion"], before)
    if group == "encoder/T9":
        with pytest.raises(groups.GroupError, match=group):
            groups.pack(model, [group])


def test_a_site_owns_what_it_has_data_for(vocabulary: Vocabulary) -> None:
    volumes, studies = {"T1": 7, "FLAIR": 3, "C+A": 0}, {"brain": 8}
    pretrain = groups.owned(vocabulary, volumes, studies, "pretrain")
    assert pretrain == {
        "encoder/T1": 7,
        "encoder/FLAIR": 3,
        "projection/T1": 7,
        "projection/FLAIR": 3,
        "text_projection": 8,
    }
    assert groups.owned(vocabulary, volumes, studies, "finetune") == pretrain | {"fusion": 8, "head/brain": 8}
    with pytest.raises(groups.GroupError, match="warmup"):
        groups.owned(vocabulary, volumes, studies, "warmup")


def test_description_adds_up(model: MedMAP, vocabulary: Vocabulary) -> None:
    rows = describe(model)
    assert tuple(r.name for r in rows) == groups.group_names(vocabulary)
    assert sum(r.parameters for r in rows) == sum(p.numel() for p in model.parameters())
    assert rows[-1].megabytes == pytest.approx(rows[-1].parameters * 4e-6)
