"""MONAI's 3D ResNet-10, -18 and -50 with GroupNorm: (B, 1, D, H, W) -> tokens (B, N, C)."""

from __future__ import annotations

from torch import Tensor, nn

from configs.schema import EncoderConfig
from medmap_model.encoders.base import Encoded, Encoder, ModelError, full_precision, in_raster_order, told

_LAYERS = {"resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}
_LARGE = 64  # voxels per edge from which the stem also pools


class ResNetEncoder(Encoder):
    """3D ResNet (He et al. 2016, arXiv 1512.03385; in 3D: Hara et al. 2018, arXiv 1711.09577), from MONAI.

    Widths w, 2w, 4w, 8w; C = 8 w, with bottlenecks (ResNet-50) 32 w. Cubes of 64 voxels or more meet the usual stem, a
    kernel of 7 and a max-pool, and end at 1/32; in smaller ones such a stem would leave nothing to look at: they meet a
    kernel of 3, no pooling, and end at 1/16.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.width
        if width % 4:
            raise ModelError(f"model.encoder.width={width}: take a multiple of 4 (GroupNorm)")
        from monai.networks.nets.resnet import ResNet

        bottleneck, large = config.kind == "resnet50", config.size >= _LARGE
        self.checkpointing, self.channels_last = config.checkpointing, config.channels_last
        self.body = ResNet(
            block="bottleneck" if bottleneck else "basic",
            layers=list(_LAYERS[config.kind]),
            block_inplanes=[width, 2 * width, 4 * width, 8 * width],
            n_input_channels=1,
            conv1_t_size=7 if large else 3,
            conv1_t_stride=2,
            no_max_pool=not large,
            bias_downsample=False,
            feed_forward=False,
        )
        # 32 groups as in GroupNorm's paper; narrow nets take 4, or a group would be a single channel.
        _group_norm(self.body, groups=32 if width % 64 == 0 else 4)
        self.channels, self.stem_channels = 8 * width * (4 if bottleneck else 1), width

    def forward(self, volume: Tensor, modality: Tensor | None = None) -> Encoded:
        """(B, 1, D, H, W), 8 voxels or more along each edge -> tokens (B, N, C), pooled (B, C): their mean.

        The modality enters after the first norm, which would take a part of it out again.
        """
        body = self.body
        h = body.act(told(body.bn1(body.conv1(self._laid_out(volume))), modality))
        if not body.no_max_pool:
            h = body.maxpool(h)
        for layer in (body.layer1, body.layer2, body.layer3, body.layer4):
            for block in layer:
                h = self._run(block, h)
        tokens = in_raster_order(h)
        return Encoded(tokens, full_precision(tokens).mean(1))


def _group_norm(body: nn.Module, *, groups: int) -> None:
    """GroupNorm for every BatchNorm, in place: MONAI's own `norm` argument reaches the stem alone (1.6)."""
    for parent in list(body.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm3d):
                setattr(parent, name, nn.GroupNorm(groups, child.num_features))
