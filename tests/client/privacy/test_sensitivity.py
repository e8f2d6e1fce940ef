"""For every registered encoder: gradients per patient equal a loop, and no patient moves the sum by more than C.

The whole model around each encoder, float64, both stages' losses. The negative control runs through the same helper: the
rows of an in-batch InfoNCE, clipped as if they were patients, move by more than C.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from client.privacy.gradients import PatientGradients
from configs.schema import EncoderConfig
from configs.stages import FinetuneConfig, PretrainConfig
from medmap_model.batch import Batch
from medmap_model.encoders import REGISTRY
from medmap_model.model import MedMAP
from tests.client.privacy.small import LOSSES, C, build, flat, moved, pick
from tests.medmap_model.backbones import save_backbone
from tests.medmap_model.test_encoders import SMALLEST

ORDINARY = {  # as without privacy: an absent modality is not computed at all
    "finetune": lambda m, b: m.finetune_loss(b, FinetuneConfig(modality_dropout=0.0), progress=0.5)["loss"],
    "pretrain": lambda m, b: m.pretrain_loss(b, PretrainConfig(objective="bank"))["loss"],
}
PRESENT = [[1, 1, 1], [1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 1, 0], [1, 1, 1]]
BRIGHT, NAN, INFINITE = 1, 3, 5


@pytest.fixture(scope="module", params=REGISTRY)
def model(request, tmp_path_factory) -> MedMAP:
    encoder = SMALLEST.get(request.param)
    if encoder is None:  # inflated: from a 2D backbone on disk
        folder = tmp_path_factory.mktemp("backbone")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            save_backbone("resnet", folder)
        encoder = EncoderConfig(kind=request.param, backbone=str(folder), size=16)
    return build(encoder=encoder)


@pytest.fixture
def batch(model) -> Batch:
    return patients(model.config.encoder.size)


def patients(size: int) -> Batch:
    """Six with one to three modalities; the fifth has neither label nor report."""
    g, n = torch.Generator().manual_seed(0), len(PRESENT)
    present = torch.tensor(PRESENT).bool()
    volumes = torch.randn(n, 3, size, size, size, generator=g, dtype=torch.float64) * present[..., None, None, None]
    report = F.normalize(torch.randn(n, 32, generator=g, dtype=torch.float64), dim=1)
    has_report = torch.tensor([1, 1, 1, 1, 0, 1]).bool()
    report = report * has_report[:, None]
    return Batch("liver", volumes, present, torch.tensor([0, 1, 2, 0, -1, 1]), report, has_report)


def adversarial(batch: Batch) -> Batch:
    """The same with one patient a thousand times as bright, one of NaN and one with a single infinite voxel."""
    volumes = batch.volumes.clone()
    volumes[BRIGHT] *= 1e3
    volumes[NAN, 0] = float("nan")
    volumes[INFINITE, 1, 0, 0, 0] = float("inf")
    return replace(batch, volumes=volumes)


def names(model: MedMAP) -> list[str]:
    return [n for n, _ in model.named_parameters()]


def looped(model: MedMAP, loss: Callable[[nn.Module, Batch], Tensor], batch: Batch) -> dict[str, Tensor]:
    """Parameter -> (patients, *shape) by one plain backward pass per patient."""
    rows = []
    for i in range(len(batch)):
        model.zero_grad(set_to_none=True)
        loss(model, pick(batch, [i])).backward()
        rows.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()])
    return {n: torch.stack(column) for n, column in zip(names(model), zip(*rows, strict=True), strict=True)}


def less(
    loss: Callable[[nn.Module, Batch], Tensor], expected: dict[str, Tensor]
) -> Callable[[nn.Module, Batch], Tensor]:
    """The loss minus (expected gradient of that patient) . (parameters): what is left of its gradient is the error.

    Sums are float32: a difference of 1e-10 of the gradient would be lost in them, the error by itself is not. Which
    patient it is rides in the field `negatives`, one-hot.
    """

    def rest(model: nn.Module, batch: Batch) -> Tensor:
        who = batch.negatives[0, 0]
        linear = [(torch.tensordot(who, expected[n], 1) * p).sum() for n, p in model.named_parameters()]
        return loss(model, replace(batch, negatives=None)) - torch.stack(linear).sum()

    return rest


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_per_patient_equal_a_loop_to_ten_digits(model, batch, loss):
    expected = looped(model, ORDINARY[loss], batch)
    n = len(batch)
    marked = replace(batch, negatives=torch.eye(n, dtype=torch.float64)[:, None])

    size = torch.sqrt(sum(g.square().sum() for g in expected.values()))

    def error(reference: dict[str, Tensor], rows: list[int], chunk: int) -> float:
        engine = PatientGradients(model, less(LOSSES[loss], reference), names(model), clip_norm=1e6, chunk=chunk)
        return float(flat(engine.clipped_sum(pick(marked, rows))).norm() / size)

    for chunk, rows in ((3, list(range(n))), (2, [1]), (2, [2])):  # alone: errors cannot cancel
        assert error(expected, rows, chunk) < 1e-10, (chunk, rows)
    plain = PatientGradients(model, LOSSES[loss], names(model), clip_norm=1e6, chunk=3).clipped_sum(batch)
    assert (flat(plain) - flat({k: g.sum(0) for k, g in expected.items()})).norm() < 1e-6 * size  # as float32 has it
    off = {k: g * (1 + 1e-7 * torch.eye(n, dtype=torch.float64)[2].view(-1, *[1] * (g.dim() - 1))) for k, g in expected.items()}  # fmt: skip
    assert error(off, list(range(n)), 3) > 1e-9  # the check sees a ten-millionth in one patient


@pytest.mark.parametrize("loss", LOSSES)
def test_no_patient_moves_the_sum_by_more_than_c(model, batch, loss):
    engine = PatientGradients(model, LOSSES[loss], names(model), clip_norm=C, chunk=3)
    found = moved(engine.clipped_sum, adversarial(batch))
    assert all(f <= 1 + 1e-5 for f in found)  # of NaN this is false
    assert max(found) > 0.9  # the bound is met: patients are clipped, not lost
    assert found[BRIGHT] > 0
    assert found[NAN] < 1e-5 and found[INFINITE] < 1e-5


@pytest.mark.parametrize("loss", LOSSES)
def test_a_patient_of_nan_is_exactly_nothing_and_what_is_absent_is_not_read(model, batch, loss):
    engine = PatientGradients(model, LOSSES[loss], names(model), clip_norm=C, chunk=2)
    broken = adversarial(batch)
    assert (flat(engine.clipped_sum(pick(broken, [NAN, INFINITE]))) == 0).all()
    absent = ~batch.present[..., None, None, None]
    filled = replace(batch, volumes=batch.volumes.masked_fill(absent, float("nan")))
    assert torch.equal(flat(engine.clipped_sum(filled)), flat(engine.clipped_sum(batch)))


def test_a_gradient_that_is_finite_only_in_part_is_nothing():
    """Its finite part is not taken, however large: nobody could say what its norm was."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(()))

        def forward(self, volumes: Tensor) -> Tensor:
            return (100 * self.a * volumes.sum()).sum() + (self.b * volumes.amin()).sqrt()  # at 0: slope 0 / 0

    volumes = torch.ones(3, 1, 2, 2, 2)
    volumes[1, 0, 0, 0, 0] = 0
    nobody = torch.zeros(3, dtype=torch.bool)
    batch = Batch("x", volumes, torch.ones(3, 1).bool(), torch.zeros(3).long(), torch.zeros(3, 1), nobody)
    engine = PatientGradients(Two(), lambda m, b: m(b.volumes), ["a", "b"], clip_norm=C, chunk=3)
    found = moved(engine.clipped_sum, batch)
    assert found[1] < 1e-6 and found[0] == pytest.approx(1, abs=1e-5)
    assert (flat(engine.clipped_sum(pick(batch, [1]))) == 0).all()


def in_batch_rows(model: MedMAP) -> Callable[[Batch], dict[str, Tensor]]:
    """What a clip by rows does with in-batch InfoNCE (image->text, temperature 0.1): row i is the gradient of the summed
    loss through image i alone, clipped to C as if it were patient i's. Opacus' hooks do that, and say nothing."""

    def image(b: Batch) -> Tensor:
        return model.image_embeddings(model.encode_dense(b.volumes, b.present, b.organ), b.present)[0][:, -1]

    def total(b: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            still, texts = image(b), F.normalize(model.text_projection(b.report), dim=1)
        summed = torch.zeros(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
        for i in range(len(b)):
            model.zero_grad(set_to_none=True)
            z = torch.cat([still[:i], image(pick(b, [i])), still[i + 1 :]])
            F.cross_entropy(z @ texts.T / 0.1, torch.arange(len(b)), reduction="sum").backward()
            g = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])
            summed += min(1.0, C / float(g.norm())) * g
        return {"all": summed}

    return total


@pytest.mark.parametrize("kind", ["conv", "resnet10", "vit"])
def test_in_batch_negatives_fail_the_same_test(kind):
    """The negative control. Patient 0 is a hub: a report near every image, as a general 'normal liver' would be."""
    model, batch = build(encoder=SMALLEST[kind]), patients(SMALLEST[kind].size)
    with torch.no_grad():
        embedded = model.encode_dense(batch.volumes, batch.present, batch.organ)
        images = model.image_embeddings(embedded, batch.present)[0][:, -1]
        linear = model.text_projection.linear
        hub = torch.linalg.lstsq(linear.weight, 10 * images[1:].mean(0) - linear.bias).solution
    report = torch.cat([hub[None], batch.report[1:]])
    assert max(moved(in_batch_rows(model), replace(batch, report=report))) > 1.2  # 2.5 to 2.8
