"""From 2D to 3D: a convolution over images (B, C, rows, columns) becomes one over volumes (B, C, rows, columns, depth).

The 2D plane is the axial one: volumes are RAS (left-right, back-front, feet-head), so the first two spatial axes are the
image's and the last is its depth. A volume that does not change along its depth then gives what the 2D network gives for one
of its slices, everywhere: also at the ends, where the first and the last slice are repeated instead of padding with zeros.
Inflation: Carreira & Zisserman 2017 (arXiv 1705.07750), section 2.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from medmap_model.encoders.base import ModelError


class InflatedConv3d(nn.Conv3d):
    """A 3D convolution with zero padding in the plane, as the 2D one had, and repeated end slices along the depth."""

    def __init__(self, flat: nn.Conv2d, weight: Tensor) -> None:
        kernel, stride, dilation = flat.kernel_size[0], flat.stride[0], flat.dilation[0]
        if isinstance(flat.padding, str) or len({*flat.padding}) > 1 or len({*flat.kernel_size}) > 1:
            raise ModelError(f"model.encoder.backbone: {flat} cannot be inflated; only square convolutions can")
        self.ends = flat.padding[0]
        super().__init__(
            weight.shape[1] * flat.groups,
            flat.out_channels,
            kernel,
            stride=stride,
            padding=(self.ends, self.ends, 0),
            dilation=dilation,
            groups=flat.groups,
            bias=flat.bias is not None,
        )
        with torch.no_grad():
            self.weight.copy_(weight)
            if self.bias is not None and flat.bias is not None:
                self.bias.copy_(flat.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W, D) -> (B, O, H', W', D')."""
        if self.ends:
            first, last = x[..., :1], x[..., -1:]
            x = torch.cat([*[first] * self.ends, x, *[last] * self.ends], -1)
        return super().forward(x)


def inflate_kernel(weight: Tensor, *, rule: str) -> Tensor:
    """(O, I, k, k) -> (O, I, k, k, k). average: spread evenly over the depth; centre: in the middle slice, zero elsewhere.

    Either way the sum over the depth is the 2D kernel.
    """
    depth = weight.shape[-1]
    if rule == "average":
        return weight[..., None].repeat(1, 1, 1, 1, depth) / depth
    inflated = weight.new_zeros(*weight.shape, depth)
    inflated[..., depth // 2] = weight
    return inflated


def inflate(body: nn.Module, stem: nn.Conv2d, *, rule: str) -> None:
    """Every convolution and max-pool of a 2D network to 3D, in place, after `fold_batch_norm`.

    stem: the convolution that sees the image's three colours. It takes one channel: 2D networks are shown a grey image
    three times, so its kernels add up.
    """
    for parent in list(body.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d):
                weight = child.weight.detach()
                if child is stem:
                    weight = weight.sum(1, keepdim=True)
                parent.register_module(name, InflatedConv3d(child, inflate_kernel(weight, rule=rule)))
            elif isinstance(child, nn.MaxPool2d):  # its padding never wins: nothing to do at the ends
                parent.register_module(name, nn.MaxPool3d(child.kernel_size, child.stride, child.padding))


def fold_batch_norm(body: nn.Module) -> None:
    """Each `convolution` and the BatchNorm `normalization` behind it become one convolution, in place.

    Exactly what the two compute in evaluation. The statistics are the pre-training images', not of any patient here, but a
    layer that keeps them would go on collecting.
    """
    for parent in list(body.modules()):
        convolution, norm = getattr(parent, "convolution", None), getattr(parent, "normalization", None)
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            fused = fuse_conv_bn_eval(convolution.eval(), norm.eval())
            parent.register_module("convolution", fused)
            parent.register_module("normalization", nn.Identity())
