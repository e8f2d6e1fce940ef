"""Every fusion inside the whole model under vmap(grad): gradients per patient in one call, as private training needs them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from configs.schema import EncoderConfig, FusionConfig, ModelConfig
from configs.stages import FinetuneConfig
from medmap_model.batch import Batch
from medmap_model.fusion import drop_modalities
from medmap_model.model import build_model

D = 16
MEDMAP = FusionConfig(kind="medmap", heads=2, layers=2, width=8, dropout=0.0)
KINDS = {
    "full": MEDMAP,
    "no_csa": replace(MEDMAP, csa=False),
    "no_cct": replace(MEDMAP, cct=False),
    "compact": FusionConfig(kind="compact", heads=2, dropout=0.0),
}
SETTINGS = FinetuneConfig(modality_dropout=0.0)
PRESENT = [[1, 1, 1], [0, 1, 0], [1, 0, 1], [0, 0, 0], [0, 1, 1]]


def per_record(model: torch.nn.Module, batch: Batch, settings: FinetuneConfig, **how: Any) -> dict[str, Tensor]:
    """Gradients of stage 2's loss per record, (B, ...) per parameter, in one call: what per-patient clipping needs."""

    def loss(weights: dict[str, Tensor], volumes: Tensor, present: Tensor, label: Tensor) -> Tensor:
        one = replace(batch, volumes=volumes[None], present=present[None], label=label[None])
        terms = functional_call(_Stage2(model), weights, (one, settings))
        return terms

    weights = {f"model.{n}": p.detach() for n, p in model.named_parameters()}
    rows = (batch.volumes, batch.present, batch.label)
    return vmap(grad(loss), in_dims=(None, 0, 0, 0), **how)(weights, *rows)


class _Stage2(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, settings: FinetuneConfig) -> Tensor:
        return self.model.finetune_loss(batch, settings, progress=0.5, dense=True)["loss"]


def double(batch: Batch) -> Batch:
    return replace(batch, volumes=batch.volumes.double(), report=batch.report.double())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_per_record_in_one_vmap_equal_a_loop(kind: str, vocabulary, text, make_batch) -> None:
    config = ModelConfig(encoder=EncoderConfig(width=4), embed_dim=D, fusion=KINDS[kind])
    model = build_model(config, vocabulary, text, seed=0).double().eval()
    batch = double(make_batch("liver", PRESENT, labels=[0, 1, 2, 0, 1]))
    together = per_record(model, batch, SETTINGS)
    for i in range(len(batch)):
        model.zero_grad(set_to_none=True)
        model.finetune_loss(batch.rows(slice(i, i + 1)), SETTINGS, progress=0.5)["loss"].backward()  # the sparse path
        for name, p in model.named_parameters():
            alone = torch.zeros_like(p) if p.grad is None else p.grad
            assert torch.allclose(together[f"model.{name}"][i], alone, atol=1e-9), (i, name)
    absent = together[_first(together, "model.encoders.C+A")]
    assert absent[2].abs().sum() == 0 and absent[0].abs().sum() > 0


def _first(gradients: dict[str, Tensor], start: str) -> str:
    return next(name for name in gradients if name.startswith(start))


def test_dropout_and_modality_dropout_draw_anew_per_record_under_vmap(vocabulary, text, make_batch) -> None:
    config = ModelConfig(encoder=EncoderConfig(width=4), embed_dim=D, fusion=replace(MEDMAP, dropout=0.2))
    model = build_model(config, vocabulary, text, seed=0).double().train()
    alike = double(make_batch("liver", [[1, 1, 1]], labels=[1]))
    batch = alike._each(lambda t: t.repeat(6, *[1] * (t.ndim - 1)))  # six times the same patient
    found = per_record(model, batch, FinetuneConfig(modality_dropout=0.5), randomness="different")
    head = found["model.heads.liver.weight"]
    assert all(g.isfinite().all() for g in found.values())
    assert len({round(float(row.sum()), 10) for row in head.abs()}) > 1
    torch.manual_seed(0)
    kept = vmap(lambda p: drop_modalities(p[None], rate=0.5)[0], randomness="different")(torch.ones(64, 3).bool())
    assert kept.any(1).all() and (~kept).sum() > 0
