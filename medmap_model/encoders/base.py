"""What every vision encoder is: a volume (B, 1, D, H, W) becomes tokens (B, N, C) and a pooled vector (B, C).

N is the number of positions of the last feature map, in raster order, C its channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_EPSILON = 1e-5


class ModelError(ValueError):
    """A model that cannot be built or would not be safe to federate; the message says what to change."""


class Encoded(NamedTuple):
    """What an encoder says of a volume: tokens (B, N, C) in raster order and pooled (B, C).

    pooled: the mean over the tokens, or the class token of an architecture that has one.
    """

    tokens: Tensor
    pooled: Tensor


class Encoder(nn.Module):
    """Base of all encoders. A subclass sets `channels` (C) and `stem_channels`, and defines `forward`.

    One encoder may serve several modalities (`model.sharing`): it is then told which one each volume is by a vector
    (B, stem_channels) that is added to every position of its first feature map.
    """

    channels: int
    stem_channels: int
    checkpointing: bool = False
    channels_last: bool = False

    def forward(self, volume: Tensor, modality: Tensor | None = None) -> Encoded:
        """(B, 1, D, H, W), and (B, stem_channels) or None -> tokens (B, N, C), pooled (B, C)."""
        raise NotImplementedError

    def _laid_out(self, volume: Tensor) -> Tensor:
        """The same volume, on a GPU in the memory format that its convolutions are fastest in, if the settings say so."""
        if self.channels_last and volume.is_cuda:
            return volume.contiguous(memory_format=torch.channels_last_3d)
        return volume

    def _run(self, block: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
        """block(h); with `checkpointing`, its activations are computed again in the backward pass instead of kept."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, h, use_reentrant=False)
        return block(h)


def told(h: Tensor, modality: Tensor | None) -> Tensor:
    """A feature map (B, C, D, H, W) with the modality's vector (B, C), if any, added to every position."""
    return h if modality is None else h + modality[:, :, None, None, None]


def in_raster_order(h: Tensor) -> Tensor:
    """A feature map (B, C, D, H, W) -> tokens (B, N, C)."""
    return h.flatten(2).transpose(1, 2)


def full_precision(x: Tensor) -> Tensor:
    """bfloat16 and float16 as float32; what is float32 or float64 stays."""
    return x.float() if x.element_size() < 4 else x


def summary(encoded: Encoded) -> Tensor:
    """(B, 3 C): the pooled vector, and maximum and standard deviation over the positions.

    The mean alone says little of a small lesion; the standard deviation tells a spot from a shift. float32 at least, whatever
    the tokens are: a spread is a small difference of large numbers.
    """
    tokens, pooled = encoded
    variance = torch.var(full_precision(tokens), 1, correction=0)
    return torch.cat([full_precision(pooled), full_precision(tokens.max(1).values), (variance + _EPSILON).sqrt()], 1)


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
