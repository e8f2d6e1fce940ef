"""Clipped sums: equal to a loop, bounded by C for every patient whatever its data, and NaN-proof; a coupled loss is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from client.privacy.gradients import PatientGradients
from configs.schema import EncoderConfig, FusionConfig, ModelConfig, TextConfig
from configs.stages import FinetuneConfig, PretrainConfig
from medmap_model.batch import Batch
from medmap_model.encoders import ModelError
from medmap_model.model import MedMAP, build_model
from medmap_model.text import build_text_encoder
from medmap_model.vocabulary import Vocabulary
from tests.medmap_model.conftest import SPEC

C = 0.5
PRESENT = [[1, 1, 1], [1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 1, 0], [1, 1, 1]]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.from_dict(SPEC)


@pytest.fixture(scope="module", params=["compact", "medmap"])
def model(request, vocabulary) -> MedMAP:
    config = ModelConfig(
        encoder=EncoderConfig(width=4), embed_dim=16, fusion=FusionConfig(kind=request.param, heads=2, dropout=0.0)
    )
    return build_model(config, vocabulary, build_text_encoder(TextConfig(kind="hash", dim=32)), seed=0).double().eval()


@pytest.fixture
def batch() -> Batch:
    g = torch.Generator().manual_seed(0)
    present = torch.tensor(PRESENT).bool()
    volumes = torch.randn(6, 3, 16, 16, 16, generator=g, dtype=torch.float64) * present[..., None, None, None]
    report = torch.nn.functional.normalize(torch.randn(6, 32, generator=g, dtype=torch.float64), dim=1)
    return Batch("liver", volumes, present, torch.tensor([0, 1, 2, 0, -1, 1]), report, torch.ones(6, dtype=torch.bool))


def finetune(model: nn.Module, batch: Batch) -> Tensor:
    return model.finetune_loss(batch, FinetuneConfig(modality_dropout=0.0), progress=0.5, dense=True)["loss"]


def pretrain(model: nn.Module, batch: Batch) -> Tensor:
    return model.pretrain_loss(batch, PretrainConfig(objective="bank"), dense=True)["loss"]


LOSSES = {"finetune": finetune, "pretrain": pretrain}


def engine(model: MedMAP, loss: str, **changes) -> PatientGradients:
    names = [n for n, _ in model.named_parameters()]
    return PatientGradients(model, LOSSES[loss], names, **{"clip_norm": C, "chunk": 2, **changes})


def flat(vectors: dict[str, Tensor]) -> Tensor:
    return torch.cat([v.flatten() for v in vectors.values()]).double()


@pytest.mark.parametrize("loss", LOSSES)
def test_chunks_equal_a_loop_of_plain_backward_passes(model, batch, loss):
    expected = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for i in range(len(batch)):
        model.zero_grad(set_to_none=True)
        LOSSES[loss](model, batch.rows(slice(i, i + 1))).backward()
        grads = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
        factor = min(1.0, C / float(flat(grads).norm() + 1e-12))
        for n, g in grads.items():
            expected[n] += factor * g
    for chunk in (0, 1, 2, 4):
        found = flat(engine(model, loss, chunk=chunk).clipped_sum(batch))
        assert (found - flat(expected)).norm() <= 1e-5 * flat(expected).norm(), chunk


@pytest.mark.parametrize("loss", LOSSES)
def test_one_patient_moves_the_sum_by_at_most_c(model, batch, loss):
    volumes = batch.volumes.clone()
    volumes[1] *= 1e3
    volumes[3, 0] = float("nan")
    volumes[5, 1, 0, 0, 0] = float("inf")
    batch = replace(batch, volumes=volumes)
    e = engine(model, loss)
    whole = flat(e.clipped_sum(batch))
    assert whole.isfinite().all()
    moved = []
    for i in range(len(batch)):
        keep = [j for j in range(len(batch)) if j != i]
        moved.append(float((whole - flat(e.clipped_sum(pick(batch, keep)))).norm()))
    assert max(moved) <= C * (1 + 1e-5)
    assert max(moved) > 0.9 * C  # the bound is met: patients are clipped, not lost
    assert moved[3] == pytest.approx(0, abs=1e-6) and moved[5] == pytest.approx(0, abs=1e-6)


def test_in_batch_negatives_fail_the_same_test(model, batch):
    """The negative control: rows of a coupled loss, clipped as if they were records, move by more than C."""
    settings = PretrainConfig(bank="none", image_to_text=1.0, positives="text", same_text=1.0)
    report = batch.report.clone()
    with torch.no_grad():
        image, _ = model.image_embeddings(model.encode(batch.volumes, batch.present, "liver"), batch.present)
    weight = model.text_projection.linear.weight.detach()
    report[0] = torch.linalg.lstsq(weight, image[1:, -1].mean(0)[:, None]).solution[:, 0]
    batch = replace(batch, report=report)  # a hub: near every image

    def rows_clipped(b: Batch) -> Tensor:
        total = torch.zeros_like(flat(dict(model.named_parameters())))
        for i in range(len(b)):
            model.zero_grad(set_to_none=True)
            only = replace(b, present=b.present & (torch.arange(len(b)) == i)[:, None])
            model.pretrain_loss(only, settings)["loss"].backward()
            g = flat({n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()})
            total += min(1.0, C / float(g.norm())) * g
        return total

    moved = float((rows_clipped(batch) - rows_clipped(pick(batch, [1, 2, 3, 4, 5]))).norm())
    assert moved > 1.2 * C


def test_an_empty_batch_is_zeros(model, batch):
    sums = engine(model, "finetune").clipped_sum(pick(batch, []))
    assert set(sums) == {n for n, _ in model.named_parameters()}
    assert all((v == 0).all() for v in sums.values())


def test_frozen_parameters_have_no_sum_and_do_not_share_the_clip(model, batch):
    heads = [n for n, _ in model.named_parameters() if n.startswith("heads.")]
    e = PatientGradients(model, finetune, heads, clip_norm=C, chunk=2)
    assert set(e.clipped_sum(batch)) == set(heads)


def test_running_statistics_are_refused(model):
    leaky = nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4))
    with pytest.raises(ModelError, match=r"1 \(BatchNorm3d\).*GroupNorm"):
        PatientGradients(leaky, lambda m, b: m(b.volumes).sum(), ["0.weight"], clip_norm=C, chunk=1)


def pick(batch: Batch, rows: list[int]) -> Batch:
    return batch._each(lambda t: t[rows])
