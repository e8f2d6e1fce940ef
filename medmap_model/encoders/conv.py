"""Ours: a compact residual 3D network with GroupNorm, for small volumes and CPUs."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from configs.schema import EncoderConfig
from medmap_model.encoders.base import Encoded, Encoder, ModelError, full_precision, in_raster_order, told

_GROUPS = 4


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


class ConvEncoder(Encoder):
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
        self.channels, self.stem_channels = width, config.width

    def forward(self, volume: Tensor, modality: Tensor | None = None) -> Encoded:
        """(B, 1, D, H, W), 8 voxels or more along each edge -> tokens (B, N, C), pooled (B, C): their mean."""
        h = told(self.stem(self._laid_out(volume)), modality)
        h = self.down(F.relu(h))
        for block in self.blocks:
            h = self._run(block, h)
        tokens = in_raster_order(F.relu(h))
        return Encoded(tokens, full_precision(tokens).mean(1))
