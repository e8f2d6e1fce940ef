"""Inflated backbones: a volume that does not change along its depth gives the 2D network's activations, exactly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from configs.schema import EncoderConfig
from medmap_model.encoders import ModelError, build_encoder, inflation, refuse_running_statistics
from medmap_model.encoders.inflation import InflatedConv3d, fold_batch_norm, inflate_kernel
from tests.medmap_model.backbones import FAMILIES, save_backbone, slice_features

# ConvNeXt and ResNet: a last map of 2 positions per edge at 1/32; DINOv2: a grid that its positions are interpolated to.
SIZE = {"convnext": 64, "dinov2": 28, "resnet": 64}


def build(folder: Path, size: int, **settings: object) -> nn.Module:
    return build_encoder(EncoderConfig(kind="inflated", backbone=str(folder), size=size, **settings)).eval()


def misfit(encoder: nn.Module, model: nn.Module, size: int) -> float:
    """Largest difference to the 2D features, over all positions, relative to the largest feature."""
    image = torch.randn(2, 1, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = encoder(image[..., None].expand(-1, -1, -1, -1, size))
    tokens, pooled = slice_features(model, image)
    edge = round(tokens.shape[1] ** 0.5)
    grid = out.tokens.unflatten(1, (edge * edge, edge))  # depth is the last axis of the raster order
    off = torch.maximum((grid - tokens[:, :, None]).abs().max(), (out.pooled - pooled).abs().max())
    return (off / tokens.abs().max()).item()


@pytest.mark.parametrize("rule", ["average", "centre"])
@pytest.mark.parametrize("family", [*FAMILIES, "resnet bottleneck"])
def test_a_depth_constant_volume_gives_the_2d_activations(family: str, rule: str, tmp_path: Path) -> None:
    """The bottleneck has layers of three channels inside, which are no colours."""
    torch.manual_seed(0)
    name, *bottleneck = family.split()
    model = save_backbone(name, tmp_path, bottleneck=bool(bottleneck))
    encoder = build(tmp_path, SIZE[name], inflation=rule)
    assert misfit(encoder, model, SIZE[name]) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_kernel_that_is_not_divided_by_its_depth_does_not(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = save_backbone(family, tmp_path)
    right = inflate_kernel
    monkeypatch.setattr(inflation, "inflate_kernel", lambda w, rule: right(w, rule=rule) * w.shape[-1])
    assert misfit(build(tmp_path, SIZE[family]), model, SIZE[family]) > 1e-2


@pytest.mark.parametrize("family", ["convnext", "resnet"])
def test_zero_padding_along_the_depth_does_not_either(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = save_backbone(family, tmp_path)

    def zero_padded(self: InflatedConv3d, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv3d(x, self.weight, self.bias, self.stride, self.ends, self.dilation, self.groups)

    monkeypatch.setattr(InflatedConv3d, "forward", zero_padded)
    assert misfit(build(tmp_path, SIZE[family]), model, SIZE[family]) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_three_dimensional_trains_whole_and_keeps_no_statistics(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_backbone(family, tmp_path)
    size = SIZE[family]
    encoder = build(tmp_path, size).train()
    refuse_running_statistics(encoder)
    assert list(encoder.buffers()) == []
    volume = torch.randn(1, 1, size, size, size)
    out = encoder(volume, torch.zeros(1, encoder.stem_channels))
    edge = round(out.tokens.shape[1] ** (1 / 3))
    assert out.tokens.shape == (1, edge**3, encoder.channels)
    assert out.pooled.shape == (1, encoder.channels)
    (out.tokens.square().sum() + out.pooled.square().sum()).backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None or not p.requires_grad] == []
    assert not torch.allclose(encoder(volume).pooled, encoder(volume.transpose(2, 4)).pooled, atol=1e-4)
    told = torch.randn(1, encoder.stem_channels)  # a constant would be taken out by a layer norm
    assert not torch.allclose(encoder(volume).pooled, encoder(volume, told).pooled, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_changes_no_gradient(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_backbone(family, tmp_path)
    size = {"convnext": 32, "dinov2": 14, "resnet": 16}[family]
    volume, gradients = torch.randn(1, 1, size, size, size).double(), []
    for checkpointing in (False, True):
        encoder = build(tmp_path, size, checkpointing=checkpointing).double()
        encoder(volume).pooled.square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in encoder.parameters()]))
    assert torch.allclose(*gradients, atol=1e-10)


def test_dinov2_learns_where_along_the_depth_a_patch_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_backbone("dinov2", tmp_path)
    encoder = build(tmp_path, 28).double()
    volume = torch.randn(1, 1, 28, 28, 28).double()
    turned = torch.cat([volume[..., 14:], volume[..., :14]], -1)
    assert torch.allclose(encoder(volume).pooled, encoder(turned).pooled, atol=1e-12)  # at the start it does not know
    nn.init.normal_(encoder.depth)
    assert not torch.allclose(encoder(volume).pooled, encoder(turned).pooled, atol=1e-3)


@pytest.mark.parametrize("kernel", [2, 3])
def test_both_rules_keep_the_sum_over_the_depth(kernel: int) -> None:
    weight = torch.randn(4, 2, kernel, kernel)
    average, centre = (inflate_kernel(weight, rule=r) for r in ("average", "centre"))
    assert torch.allclose(average.sum(-1), weight, atol=1e-6)
    assert torch.equal(centre.sum(-1), weight)
    assert torch.allclose(average[..., 0], average[..., -1])
    assert (centre.abs().sum((0, 1, 2, 3)) > 0).sum() == 1


def test_folding_a_batch_norm_is_exact_and_another_order_is_left_alone() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.normalization = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.normalization(self.convolution(x))

    torch.manual_seed(0)
    layer = Layer()
    for _ in range(3):
        layer(torch.randn(8, 3, 6, 6) * 3 + 1)
    x = torch.randn(2, 3, 6, 6)
    expected = layer.eval()(x)
    fold_batch_norm(layer)
    assert torch.allclose(layer(x), expected, atol=1e-5)
    assert isinstance(layer.normalization, nn.Identity)


def test_what_cannot_be_had_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cases: list[tuple[EncoderConfig, str]] = [
        (EncoderConfig(kind="inflated"), "needs model.encoder.backbone"),
        (
            EncoderConfig(kind="inflated", backbone="nobody/dinov9"),
            "hf download nobody/dinov9.*set model.encoder.backbone=FOLDER",
        ),
    ]
    (tmp_path / "empty").mkdir()
    cases.append((EncoderConfig(kind="inflated", backbone=str(tmp_path / "empty")), "is no model: take one whose"))
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    cases.append((EncoderConfig(kind="inflated", backbone=str(tmp_path / "bert")), "is a bert: take one"))
    save_backbone("dinov2", tmp_path / "dino")
    save_backbone("convnext", tmp_path / "convnext")
    cases += [
        (
            EncoderConfig(kind="inflated", backbone=str(tmp_path / "dino"), size=96),
            "size=96 is not a multiple of the backbone's patch 14: take 84 or 98",
        ),
        (EncoderConfig(kind="inflated", backbone=str(tmp_path / "convnext"), size=24), "needs 32 voxels"),
    ]
    for config, message in cases:
        with pytest.raises(ModelError, match=message) as caught:
            build_encoder(config)
        assert "\n" not in str(caught.value)


def test_a_backbone_without_its_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_backbone("resnet", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    some = next(k for k in tensors if k.endswith("convolution.weight"))
    save_file({k: v for k, v in tensors.items() if k != some}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"lacks 1 weights, {some}"):
        build(tmp_path, 32)
    file.write_bytes(b"half a download")
    with pytest.raises(ModelError, match="cannot be loaded"):
        build(tmp_path, 32)
    file.unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        build(tmp_path, 32)
