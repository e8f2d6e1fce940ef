"""MONAI's 3D vision transformer: (B, 1, S, S, S) -> tokens (B, (S / patch)^3, width)."""

from __future__ import annotations

from torch import Tensor, nn

from configs.schema import EncoderConfig
from medmap_model.encoders.base import Encoded, Encoder, ModelError, full_precision


class ViTEncoder(Encoder):
    """ViT (Dosovitskiy et al. 2021, arXiv 2010.11929) on cubic patches, from MONAI: one token per patch, C = width.

    Without a class token: the mean over the tokens does as well (Beyer et al. 2022, arXiv 2205.01580). Position
    embeddings are learned, so the size of the volume is fixed.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        if config.size % config.patch:
            raise ModelError(
                f"model.encoder.patch={config.patch} does not divide data.volumes.size={config.size}: change either"
            )
        if config.width % config.heads:
            raise ModelError(
                f"model.encoder.width={config.width} is not a multiple of model.encoder.heads={config.heads}"
            )
        from monai.networks.nets.vit import ViT

        self.checkpointing, self.size = config.checkpointing, config.size
        self.body = ViT(
            in_channels=1,
            img_size=config.size,
            patch_size=config.patch,
            hidden_size=config.width,
            mlp_dim=4 * config.width,
            num_layers=config.depth,
            num_heads=config.heads,
        )
        for block in self.body.blocks:  # MONAI builds this norm for cross-attention, which an encoder has none of
            block.norm_cross_attn = nn.Identity()
        self.channels = self.stem_channels = config.width

    def forward(self, volume: Tensor, modality: Tensor | None = None) -> Encoded:
        """(B, 1, S, S, S) -> tokens (B, N, C), pooled (B, C): their mean. Raises ModelError for another size."""
        refuse_other_size(volume, self.size)
        h = self.body.patch_embedding(volume)
        if modality is not None:
            h = h + modality[:, None]
        for block in self.body.blocks:
            h = self._run(block, h)
        tokens = self.body.norm(h)
        return Encoded(tokens, full_precision(tokens).mean(1))


def refuse_other_size(volume: Tensor, size: int) -> None:
    """Raise ModelError unless the volume is a cube of that size: position embeddings are learned for one grid."""
    if tuple(volume.shape[2:]) != (size,) * 3:
        raise ModelError(
            f"a volume of {' x '.join(map(str, volume.shape[2:]))} voxels, but the encoder was built for {size}^3: "
            f"set data.volumes.size={size}"
        )
