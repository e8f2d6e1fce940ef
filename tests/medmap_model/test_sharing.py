"""`model.sharing`: an encoder per modality, one for all, or one per group; module groups, weights and encodings follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from configs.schema import EncoderConfig, FusionConfig, ModelConfig
from configs.setting import ConfigError
from configs.stages import PretrainConfig
from medmap_model import groups
from medmap_model.batch import Batch
from medmap_model.model import MedMAP, build_model
from medmap_model.text import TextEncoder
from medmap_model.vocabulary import Vocabulary

Make = Callable[..., Batch]
GROUPED = {"sharing": "groups", "trunk_groups": ["C+A+C-pre"]}  # names with a plus sign of their own
SHARING = {
    "modality": ({}, ["T1", "FLAIR", "C+A", "C-pre"]),
    "shared": ({"sharing": "shared"}, ["shared"]),
    "groups": (GROUPED, ["T1", "FLAIR", "C+A+C-pre"]),
    "two groups": (GROUPED | {"trunk_groups": ["C+A+C-pre", "T1+FLAIR"]}, ["T1+FLAIR", "C+A+C-pre"]),
}
SOME = [[1, 0, 1], [1, 1, 0], [0, 0, 1], [1, 1, 1]]


def config(**settings: object) -> ModelConfig:
    encoder, fusion = EncoderConfig(width=8), FusionConfig(kind="medmap", heads=2)
    return ModelConfig(encoder=encoder, embed_dim=16, fusion=fusion, **settings)


@pytest.fixture(params=SHARING)
def case(request: pytest.FixtureRequest, vocabulary: Vocabulary, text: TextEncoder) -> tuple[MedMAP, list[str]]:
    settings, trunks = SHARING[request.param]
    model = build_model(config(**settings), vocabulary, text, seed=0)
    torch.manual_seed(0)
    with torch.no_grad():  # the learned vectors start small: make them tell
        for projection in model.projections.values():
            if projection.stem is not None:
                projection.stem.normal_()
    return model, trunks


def test_groups_of_the_model_are_those_that_the_federation_counts_on(
    case: tuple[MedMAP, list[str]], vocabulary: Vocabulary
) -> None:
    model, trunks = case
    trunk = groups.trunks(model.config, vocabulary)
    plan = groups.layout(model)
    assert tuple(plan) == groups.group_names(vocabulary, trunk)
    assert [g for g in plan if g.startswith("encoder/")] == [f"encoder/{t}" for t in trunks]
    named = [name for rows in plan.values() for name, _ in rows]
    assert sorted(named) == sorted(n for n, _ in model.named_parameters())  # each in exactly one
    sent = groups.pack(model, plan)
    zeros = {g: np.zeros_like(v) for g, v in sent.items()}
    groups.unpack(model, zeros)
    assert all(p.abs().sum() == 0 for p in model.parameters())
    groups.unpack(model, sent)
    assert all(np.array_equal(v, sent[g]) for g, v in groups.pack(model, plan).items())


def test_a_shared_encoder_weighs_by_the_volumes_of_all_its_modalities(
    case: tuple[MedMAP, list[str]], vocabulary: Vocabulary
) -> None:
    model, trunks = case
    volumes, studies = {"T1": 7, "C+A": 5, "C-pre": 2}, {"liver": 7}
    trunk = groups.trunks(model.config, vocabulary)
    for stage in ("pretrain", "finetune"):
        owned = groups.owned(vocabulary, volumes, studies, stage, trunk)
        for t in trunks:
            behind = sum(volumes.get(m, 0) for m in trunk if trunk[m] == t)
            assert owned.get(f"encoder/{t}", 0) == behind
        assert {m: owned.get(f"projection/{m}", 0) for m in trunk} == {m: volumes.get(m, 0) for m in trunk}
        assert set(owned) <= set(groups.layout(model))
    total = sum(n for g, n in owned.items() if g.startswith("encoder/"))
    assert total == 14  # no volume is lost, none counts twice


def test_what_a_site_trains_is_what_it_owns(
    case: tuple[MedMAP, list[str]], vocabulary: Vocabulary, make_batch: Make
) -> None:
    model, _ = case
    batch = make_batch("liver", [[1, 1, 0]] * 4)  # no C-pre, no brain
    model.pretrain_loss(batch, PretrainConfig())["loss"].backward()
    trained = {groups.group_of(n) for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    trunk = groups.trunks(model.config, vocabulary)
    owned = groups.owned(vocabulary, {"T1": 4, "C+A": 4}, {"liver": 4}, "pretrain", trunk)
    assert trained == set(owned)


def test_encoding_dense_and_sparse_agree(case: tuple[MedMAP, list[str]], make_batch: Make) -> None:
    model, _ = case
    batch = make_batch("liver", SOME)
    sparse = model.encode(batch.volumes, batch.present, "liver")
    dense = model.encode_dense(batch.volumes, batch.present, "liver")
    assert torch.allclose(sparse.pooled, dense.pooled, atol=1e-5)
    assert torch.allclose(sparse.tokens, dense.tokens, atol=1e-5)


def test_a_shared_encoder_is_told_which_modality_it_sees(
    vocabulary: Vocabulary, text: TextEncoder, make_batch: Make
) -> None:
    batch = make_batch("liver", [[1, 1, 1]] * 2)
    own = build_model(config(), vocabulary, text, seed=0)
    assert all(p.stem is None for p in own.projections.values())  # one that sees one modality need not be told
    model = build_model(config(sharing="shared"), vocabulary, text, seed=0)
    plan = groups.layout(model)
    assert "projections.C+A.stem" in [n for n, _ in plan["projection/C+A"]]
    before = model.encode(batch.volumes, batch.present, "liver").tokens
    with torch.no_grad():
        model.projections["C+A"].stem.add_(torch.randn_like(model.projections["C+A"].stem))
    after = model.encode(batch.volumes, batch.present, "liver").tokens
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert not torch.allclose(before[:, 1], after[:, 1], atol=1e-3)


def test_a_volume_in_the_slot_of_another_modality_means_something_else(
    case: tuple[MedMAP, list[str]], make_batch: Make
) -> None:
    model, _ = case
    model.eval()
    batch = make_batch("liver", [[1, 1, 1]] * 2)
    swapped = replace(batch, volumes=batch.volumes[:, [0, 2, 1]])
    a = model.encode(batch.volumes, batch.present, "liver").tokens
    b = model.encode(swapped.volumes, batch.present, "liver").tokens
    assert torch.equal(a[:, 0], b[:, 0])
    assert not torch.allclose(a[:, [2, 1]], b[:, 1:], atol=1e-4)  # not merely moved
    assert not torch.allclose(model.logits(batch), model.logits(swapped), atol=1e-5)


@pytest.mark.parametrize(
    ("trunk_groups", "message"),
    [
        (["T1+T9"], "trunk_groups=T1.T9: 'T9' is no modality"),
        (["T1+FLAIR", "C+A+T1"], "T1 is in two groups"),
    ],
)
def test_groups_that_make_no_sense_are_refused(
    trunk_groups: list[str], message: str, vocabulary: Vocabulary, text: TextEncoder
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(config(sharing="groups", trunk_groups=trunk_groups), vocabulary, text, seed=0)
