"""Encoders: shapes, sensitivity, no running statistics, and the second architecture."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from configs.schema import EncoderConfig
from medmap_model.encoders import Encoded, ModelError, build_encoder, refuse_running_statistics, summary


@pytest.mark.parametrize("size", [8, 16, 24, 27])
@pytest.mark.parametrize("blocks", [[1], [1, 1], [2, 1, 1]])
def test_conv_shapes(size: int, blocks: list[int]) -> None:
    encoder = build_encoder(EncoderConfig(width=8, blocks=blocks))
    out = encoder(torch.randn(2, 1, size, size, size))
    assert out.tokens.shape[::2] == (2, encoder.channels)
    assert encoder.channels == 16 * 2 ** len(blocks)
    assert out.pooled.shape == (2, encoder.channels)
    assert out.pooled.isfinite().all()


def test_swin_unetr_learns_and_its_last_map_is_not_normalised() -> None:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig(kind="swin_unetr", width=12))
    volume = torch.randn(1, 1, 24, 24, 24)
    out = encoder(volume)
    assert out.tokens.shape == (1, 1, 192)
    assert out.pooled.shape == (1, encoder.channels) == (1, 192)
    assert out.tokens[0, 0].var().item() != pytest.approx(1, abs=1e-2)
    out.pooled.square().sum().backward()
    without = [n for n, p in encoder.named_parameters() if p.grad is None]
    assert without == []
    refuse_running_statistics(encoder)


@pytest.mark.parametrize("kind", ["conv", "swin_unetr"])
def test_checkpointing_changes_no_gradient(kind: str) -> None:
    gradients = []
    volume = torch.randn(2, 1, 16, 16, 16)
    for checkpointing in (False, True):
        torch.manual_seed(0)
        encoder = build_encoder(EncoderConfig(kind=kind, width=12, checkpointing=checkpointing))
        encoder(volume).pooled.square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in encoder.parameters()]))
    assert torch.allclose(*gradients, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("kind", "width"), [("swin_unetr", 16), ("conv", 6)])
def test_a_width_that_cannot_be_built_says_so(kind: str, width: int) -> None:
    with pytest.raises(ModelError, match=f"width={width}"):
        build_encoder(EncoderConfig(kind=kind, width=width))


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm3d(4), nn.SyncBatchNorm(4), nn.InstanceNorm3d(4, track_running_stats=True)]
)
def test_running_statistics_are_refused(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Conv3d(1, 4, 3), nn.Sequential(layer))
    with pytest.raises(ModelError, match=rf"1\.0 \({type(layer).__name__}\).*GroupNorm"):
        refuse_running_statistics(model)
    refuse_running_statistics(nn.Sequential(nn.Conv3d(1, 4, 3), nn.GroupNorm(2, 4), nn.InstanceNorm3d(4)))


def test_pooling_by_hand() -> None:
    tokens = torch.tensor([[[1.0, 0.0], [3.0, 0.0]]])
    got = summary(Encoded(tokens, tokens.mean(1)))[0]
    assert got[:4].tolist() == [2, 0, 3, 0]
    assert got[4:].tolist() == pytest.approx([1, 0], abs=4e-3)
    flat = torch.zeros(1, 5, 2, requires_grad=True)  # a dead channel
    summary(Encoded(flat, flat.mean(1))).sum().backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def test_pooled_vectors_of_different_volumes_differ() -> None:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig(width=8))
    a = torch.randn(2, 1, 24, 24, 24)
    b = a.clone()
    b[1, :, 8:14, 8:14, 8:14] += 3
    pa, pb = encoder(a).pooled, encoder(b).pooled
    assert torch.allclose(pa[0], pb[0], atol=1e-5)
    assert (pa[1] - pb[1]).norm() > 0.05 * pa[1].norm()


def test_gradients_per_record_equal_a_loop() -> None:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig(width=8))
    weights = {n: p.detach() for n, p in encoder.named_parameters()}
    volumes = torch.randn(3, 1, 1, 16, 16, 16)

    def loss(w: dict[str, torch.Tensor], volume: torch.Tensor) -> torch.Tensor:
        return functional_call(encoder, w, (volume,)).pooled.square().sum()

    together = vmap(grad(loss), in_dims=(None, 0))(weights, volumes)
    for i in range(3):
        alone = grad(loss)(weights, volumes[i])
        for name, g in alone.items():
            assert torch.allclose(together[name][i], g, atol=1e-3, rtol=1e-3), name
