"""Gradients per record by `torch.func.vmap(grad)` over the whole encoder: what privacy needs of every architecture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from configs.schema import EncoderConfig
from medmap_model.encoders import build_encoder
from tests.medmap_model.backbones import FAMILIES, save_backbone
from tests.medmap_model.test_encoders import SIZE, SMALLEST


def disagreement(encoder: nn.Module, stem_channels: int, size: int) -> float:
    """Largest relative difference, over records and parameters, between vmap and one record at a time; float64.

    Each record is told its own modality, so that the path of a shared encoder is the one under test.
    """
    encoder = encoder.double().eval()
    weights = {n: p.detach() for n, p in encoder.named_parameters()}
    volumes, told = torch.randn(2, 1, 1, size, size, size).double(), torch.randn(2, 1, stem_channels).double()

    def loss(w: dict[str, Tensor], volume: Tensor, modality: Tensor) -> Tensor:
        out = functional_call(encoder, w, (volume, modality))
        return out.pooled.square().sum() + out.tokens.sin().sum()

    together = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")(weights, volumes, told)
    worst = 0.0
    for i in range(2):
        encoder.zero_grad(set_to_none=True)
        loss(dict(encoder.named_parameters()), volumes[i], told[i]).backward()
        scale = torch.cat([p.grad.flatten() for p in encoder.parameters()]).norm() / sum(1 for _ in weights) ** 0.5
        for name, p in encoder.named_parameters():
            off = (together[name][i] - p.grad).norm() / torch.maximum(p.grad.norm(), 1e-6 * scale)
            worst = max(worst, off.item())
    return worst


@pytest.mark.parametrize("kind", SMALLEST)
def test_gradients_per_record_equal_a_loop(kind: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(SMALLEST[kind])
    assert disagreement(encoder, encoder.stem_channels, SIZE) < 1e-10


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_per_record_of_an_inflated_backbone_equal_a_loop(family: str, tmp_path: Path) -> None:
    size = {"convnext": 32, "dinov2": 14, "resnet": 16}[family]
    save_backbone(family, tmp_path)
    encoder = build_encoder(EncoderConfig(kind="inflated", backbone=str(tmp_path), size=size))
    assert disagreement(encoder, encoder.stem_channels, size) < 1e-10


def test_the_check_notices_a_difference() -> None:
    """The negative control: an encoder that answers otherwise the second time does not pass."""

    class Restless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = build_encoder(SMALLEST["conv"])

        def forward(self, volume: Tensor, modality: Tensor) -> Tensor:
            out = self.encoder(volume, modality)
            return out._replace(pooled=out.pooled * (1 + 1e-6 * torch.rand_like(out.pooled)))

    torch.manual_seed(0)
    restless = Restless()
    assert disagreement(restless, restless.encoder.stem_channels, SIZE) > 1e-8
