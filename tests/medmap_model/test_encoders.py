"""Encoders: shapes, sensitivity, what they are told of the modality, no running statistics, settings that cannot be built."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from configs.schema import EncoderConfig
from medmap_model.encoders import REGISTRY, Encoded, ModelError, build_encoder, refuse_running_statistics, summary

SIZE = 8
SMALLEST = {
    "conv": EncoderConfig(width=8, size=SIZE),
    "resnet10": EncoderConfig(kind="resnet10", width=4, size=SIZE),
    "resnet18": EncoderConfig(kind="resnet18", width=4, size=SIZE),
    "resnet50": EncoderConfig(kind="resnet50", width=4, size=SIZE),
    "swin_unetr": EncoderConfig(kind="swin_unetr", width=12, size=SIZE),
    "vit": EncoderConfig(kind="vit", width=16, size=SIZE, patch=4, depth=2, heads=2),
}


@pytest.fixture(params=SMALLEST)
def config(request: pytest.FixtureRequest) -> EncoderConfig:
    return SMALLEST[request.param]


def test_the_registry_and_the_settings_name_the_same_kinds() -> None:
    choices = next(f.metadata["choices"] for f in fields(EncoderConfig) if f.name == "kind")
    assert set(REGISTRY) == set(choices)
    assert set(SMALLEST) | {"inflated"} == set(choices)  # so that a new kind is tested too
    with pytest.raises(ModelError, match="kind=alexnet is not known: take one of conv"):
        build_encoder(EncoderConfig(kind="alexnet"))


def test_a_kind_is_a_line_in_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "mine", lambda config: build_encoder(EncoderConfig(width=config.width)))
    assert build_encoder(EncoderConfig(kind="mine", width=12)).channels == 48


@pytest.mark.parametrize("size", [8, 16, 24, 27])
@pytest.mark.parametrize("blocks", [[1], [1, 1], [2, 1, 1]])
def test_conv_shapes(size: int, blocks: list[int]) -> None:
    encoder = build_encoder(EncoderConfig(width=8, blocks=blocks))
    out = encoder(torch.randn(2, 1, size, size, size))
    assert out.tokens.shape[::2] == (2, encoder.channels)
    assert encoder.channels == 16 * 2 ** len(blocks)
    assert out.pooled.shape == (2, encoder.channels)
    assert out.pooled.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "width", "size", "positions", "channels"),
    [
        ("resnet10", 4, 16, 1, 32),
        ("resnet10", 4, 24, 8, 32),
        ("resnet18", 8, 48, 27, 64),
        ("resnet18", 4, 64, 8, 32),
        ("resnet10", 64, 64, 8, 512),
        ("resnet50", 4, 24, 8, 128),
        ("swin_unetr", 12, 16, 1, 192),
        ("swin_unetr", 12, 40, 8, 192),
        ("vit", 16, 24, 27, 16),
        ("vit", 16, 16, 8, 16),
    ],
)
def test_tokens_of_a_cube_are_a_cubic_grid(kind: str, width: int, size: int, positions: int, channels: int) -> None:
    encoder = build_encoder(EncoderConfig(kind=kind, width=width, size=size))
    with torch.no_grad():
        out = encoder(torch.randn(1, 1, size, size, size))
    assert out.tokens.shape == (1, positions, channels)
    assert out.pooled.shape == (1, encoder.channels) == (1, channels)


def test_every_parameter_learns_and_nothing_keeps_statistics(config: EncoderConfig) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(config)
    refuse_running_statistics(encoder)
    out = encoder(torch.randn(2, 1, SIZE, SIZE, SIZE), torch.randn(2, encoder.stem_channels))
    (out.tokens.square().sum() + out.pooled.square().sum()).backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_told_of_the_modality_it_sees_another_volume(config: EncoderConfig) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(config).eval()
    volume = torch.randn(1, 1, SIZE, SIZE, SIZE).expand(3, -1, -1, -1, -1)
    told = torch.randn(2, encoder.stem_channels)
    with torch.no_grad():
        plain = encoder(volume[:1]).pooled[0]
        zero, one, other = encoder(volume, torch.cat([torch.zeros_like(told[:1]), told])).pooled
    assert torch.allclose(plain, zero, atol=1e-4)
    for a, b in ((zero, one), (zero, other), (one, other)):  # each record has its own
        assert (a - b).norm() > 1e-3 * a.norm()


def test_pooled_vectors_of_different_volumes_differ(config: EncoderConfig) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(config).eval()
    volumes = torch.randn(1, 1, SIZE, SIZE, SIZE).repeat(3, 1, 1, 1, 1)
    volumes[2, :, 2:5, 2:5, 2:5] += 3
    with torch.no_grad():
        a, same, other = encoder(volumes).pooled
    assert torch.allclose(a, same, atol=1e-4)
    assert (a - other).norm() > 0.02 * a.norm()


def test_swin_is_monais_and_its_last_map_is_not_normalised() -> None:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig(kind="swin_unetr", width=12))
    volume = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        tokens, monai = encoder(volume).tokens, encoder.body(volume, normalize=False)[-1]
    assert torch.equal(tokens, monai.flatten(2).transpose(1, 2))
    assert tokens[0, 0].var().item() != pytest.approx(1, abs=1e-2)


def test_resnet_is_monais_but_for_the_norms() -> None:
    from monai.networks.nets.resnet import ResNet

    torch.manual_seed(0)
    for config, stem in ((SMALLEST["resnet18"], 3), (EncoderConfig(kind="resnet18", width=4, size=64), 7)):
        body: ResNet = build_encoder(config).body
        assert body.conv1.kernel_size == (stem,) * 3
        norms = [m for m in body.modules() if isinstance(m, nn.GroupNorm)]
        assert len(norms) == 1 + 2 * 8 + 3  # stem, two per block, three shortcuts
    volume = torch.randn(2, 1, 64, 64, 64)
    expected = body(volume)
    assert torch.allclose(build_from(body, config)(volume).pooled, expected, atol=1e-5)


def build_from(body: nn.Module, config: EncoderConfig) -> nn.Module:
    encoder = build_encoder(config)
    encoder.body.load_state_dict(body.state_dict())
    return encoder


def test_vit_knows_where_a_patch_is() -> None:
    """Without positions, moving a patch would only move its token and leave the mean as it is."""
    torch.manual_seed(0)
    encoder = build_encoder(SMALLEST["vit"]).double()
    volume = torch.zeros(2, 1, 8, 8, 8).double()
    ball = torch.randn(4, 4, 4).double()
    volume[0, 0, :4, :4, :4], volume[1, 0, 4:, 4:, 4:] = ball, ball
    a, b = encoder(volume).pooled
    assert (a - b).norm() > 1e-4
    encoder.body.patch_embedding.position_embeddings.data.zero_()
    a, b = encoder(volume).pooled
    assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("kind", SMALLEST)
def test_checkpointing_changes_no_gradient(kind: str) -> None:
    volume = torch.randn(2, 1, SIZE, SIZE, SIZE).double()

    def train(checkpointing: bool) -> tuple[int, Tensor]:
        """Numbers kept for the backward pass, and the gradient."""
        torch.manual_seed(0)
        encoder = build_encoder(replace(SMALLEST[kind], checkpointing=checkpointing)).double()
        kept: list[int] = []

        def keep(t: Tensor) -> Tensor:
            kept.append(t.numel())
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            out = encoder(volume)
        out.pooled.square().sum().backward()
        return sum(kept), torch.cat([p.grad.flatten() for p in encoder.parameters()])

    (much, plain), (little, again) = train(False), train(True)
    assert torch.allclose(plain, again, atol=1e-9, rtol=1e-7)
    assert little < much  # it did something


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EncoderConfig(kind="swin_unetr", width=16), "width=16: swin_unetr needs a multiple of 12"),
        (EncoderConfig(kind="conv", width=6), "width=6"),
        (EncoderConfig(kind="resnet18", width=6), "width=6: take a multiple of 4"),
        (EncoderConfig(kind="vit", size=20, patch=8), "patch=8 does not divide data.volumes.size=20"),
        (EncoderConfig(kind="vit", width=18, heads=4), "width=18 is not a multiple of model.encoder.heads=4"),
    ],
)
def test_settings_that_cannot_be_built_say_so(config: EncoderConfig, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        build_encoder(config)
    assert "\n" not in str(caught.value)


def test_a_volume_of_another_size_is_refused_by_a_vit() -> None:
    encoder = build_encoder(SMALLEST["vit"])
    with pytest.raises(ModelError, match=r"24 x 24 x 24 voxels, but the encoder was built for 8\^3"):
        encoder(torch.randn(1, 1, 24, 24, 24))


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
    flat: Tensor = torch.zeros(1, 5, 2, requires_grad=True)  # a dead channel
    summary(Encoded(flat, flat.mean(1))).sum().backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def test_importing_the_package_loads_nothing_heavy() -> None:
    import subprocess
    import sys

    code = (
        "import sys, medmap_model.encoders, medmap_model.model, medmap_model.initialise\n"
        "print([m for m in ('monai', 'transformers', 'flwr', 'opacus') if m in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root).stdout
    assert out.strip() == "[]"
