"""Vision encoders, one per modality: a volume (B, 1, D, H, W) becomes tokens (B, N, C) and a pooled vector (B, P).

N is the number of positions of the last feature map, C its channels, P = 3 C (mean, maximum, standard deviation).
"""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from configs.schema import EncoderConfig

_EPSILON = 1e-5
_GROUPS = 4


class ModelError(ValueError):
    """A model that cannot be built or would not be safe to federate; the message says what to change."""


class Encoded(NamedTuple):
    """What an encoder says of a volume: tokens (B, N, C) in raster order and pooled (B, 3 C)."""

    tokens: Tensor
    pooled: Tensor


def pool(tokens: Tensor) -> Tensor:
    """(B, N, C) -> (B, 3 C): mean, maximum and standard deviation over the positions.

    The mean alone says little of a small lesion; the standard deviation tells a spot from a shift. float32 whatever
    the tokens are: a spread is a small difference of large numbers.
    """
    variance, mean = torch.var_mean(tokens.float(), 1, correction=0)
    return torch.cat([mean, tokens.max(1).values.float(), (variance + _EPSILON).sqrt()], 1)


class ResidualBlock(nn.Module):
    """Pre-activation residual block (He et al. 2016, arXiv 1603.05027): (B, I, D..) -> (B, O, D / stride..).

    Both norms sit before a convolution, so what leaves the block is not normalised. A network whose last map is
    normalised over space before global pooling collapses to a constant: every pooled mean is the same.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(_GROUPS, inputs)
        self.conv1 = nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(_GROUPS, outputs)
        self.conv2 = nn.Conv3d(outputs, outputs, 3, padding=1, bias=False)
        self.skip = nn.Conv3d(inputs, outputs, 1, stride=stride, bias=False) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, D, H, W) -> (B, O, ceil(D / stride), ...)."""
        h = F.relu(self.norm1(x))
        change = self.conv2(F.relu(self.norm2(self.conv1(h))))
        return change + (x if self.skip is None else self.skip(h))


class ConvEncoder(nn.Module):
    """Compact residual 3D network: a stem down to 1/4 of the resolution, then stages that halve it each.

    A stem in two steps with one non-linearity at half resolution costs little more than one in a single step, and
    small lesions need it. Residual blocks at half resolution would cost as much as all the rest.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.width
        if width % _GROUPS:
            raise ModelError(f"model.encoder.width={width}: take a multiple of {_GROUPS} (GroupNorm)")
        self.checkpointing, self.channels_last = config.checkpointing, config.channels_last
        self.stem = nn.Conv3d(1, width, 3, stride=2, padding=1)
        self.down = nn.Conv3d(width, 2 * width, 2, stride=2, bias=False)
        width *= 2
        self.blocks = nn.ModuleList()
        for count in config.blocks:
            self.blocks.append(ResidualBlock(width, 2 * width, stride=2))
            width *= 2
            self.blocks.extend(ResidualBlock(width, width, stride=1) for _ in range(count - 1))
        self.channels = width
        self.pooled_dim = 3 * width

    def forward(self, volume: Tensor) -> Encoded:
        """(B, 1, D, H, W), 8 voxels or more along each edge -> tokens (B, N, C), pooled (B, 3 C)."""
        if self.channels_last and volume.is_cuda:
            volume = volume.contiguous(memory_format=torch.channels_last_3d)
        h = self.down(F.relu(self.stem(volume)))
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                h = checkpoint(block, h, use_reentrant=False)
            else:
                h = block(h)
        tokens = F.relu(h).flatten(2).transpose(1, 2)
        return Encoded(tokens, pool(tokens))


class SwinEncoder(nn.Module):
    """The encoder of MONAI's SwinUNETR (Hatamizadeh et al. 2022, arXiv 2201.01266), as MedMAP's authors use it.

    Four Swin stages at feature sizes f, 2f, 4f, 8f; the last map has 16 f channels at 1/32 of the resolution. It is
    taken without MONAI's final layer norm.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        if config.width % 12:
            raise ModelError(f"model.encoder.width={config.width}: swin_unetr needs a multiple of 12")
        if importlib.util.find_spec("einops") is None:  # MONAI imports it at the first forward pass only
            raise ModelError("model.encoder.kind=swin_unetr needs einops: run `pip install einops`")
        from monai.networks.nets.swin_unetr import SwinTransformer

        self.body = SwinTransformer(
            in_chans=1,
            embed_dim=config.width,
            window_size=(7, 7, 7),
            patch_size=(2, 2, 2),
            depths=(2, 2, 2, 2),
            num_heads=(3, 6, 12, 24),
            use_checkpoint=config.checkpointing,
        )
        self.channels = 16 * config.width
        self.pooled_dim = 3 * self.channels

    def forward(self, volume: Tensor) -> Encoded:
        """(B, 1, D, H, W) -> tokens (B, N, 16 f), pooled (B, 48 f)."""
        tokens = self.body(volume, normalize=False)[-1].flatten(2).transpose(1, 2)
        return Encoded(tokens, pool(tokens))


def build_encoder(config: EncoderConfig) -> ConvEncoder | SwinEncoder:
    """The encoder that a configuration names."""
    return SwinEncoder(config) if config.kind == "swin_unetr" else ConvEncoder(config)


def refuse_running_statistics(model: nn.Module) -> None:
    """Raise ModelError for the first layer that keeps running statistics (BatchNorm and its kin).

    They are averages over a site's patients: they differ by scanner, do not average across sites, and leak.
    """
    for name, module in model.named_modules():
        batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if batch_norm or getattr(module, "running_mean", None) is not None:
            raise ModelError(
                f"{name or 'the model'} ({type(module).__name__}) keeps running statistics of patients: "
                "use GroupNorm, LayerNorm or InstanceNorm3d(track_running_stats=False) instead"
            )
