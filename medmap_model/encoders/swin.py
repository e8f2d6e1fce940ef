"""The encoder of MONAI's SwinUNETR, as MedMAP's authors use it: (B, 1, D, H, W) -> tokens (B, N, 16 f)."""

from __future__ import annotations

import importlib.util

from torch import Tensor

from configs.schema import EncoderConfig
from medmap_model.encoders.base import Encoded, Encoder, ModelError, full_precision, in_raster_order, told


class SwinEncoder(Encoder):
    """The encoder of MONAI's SwinUNETR (Hatamizadeh et al. 2022, arXiv 2201.01266), as MedMAP's authors use it.

    Four Swin stages at feature sizes f, 2f, 4f, 8f; the last map has 16 f channels at 1/32 of the resolution. It is
    taken without MONAI's final layer norm. MONAI's published self-supervised weights fit f = 48 (`model.init`).
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
        self.channels, self.stem_channels = 16 * config.width, config.width

    def forward(self, volume: Tensor, modality: Tensor | None = None) -> Encoded:
        """(B, 1, D, H, W) -> tokens (B, N, 16 f), pooled (B, 16 f): their mean.

        The stages are run from here, as MONAI runs them, because the modality enters after the patch embedding.
        """
        h = told(self.body.patch_embed(volume), modality)
        for stage in (self.body.layers1, self.body.layers2, self.body.layers3, self.body.layers4):
            h = stage[0](h.contiguous())
        tokens = in_raster_order(h)
        return Encoded(tokens, full_precision(tokens).mean(1))
