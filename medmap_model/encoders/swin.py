"""The encoder of MONAI's SwinUNETR, as MedMAP's authors use it."""

from __future__ import annotations

import importlib.util

from torch import Tensor

from configs.schema import EncoderConfig
from medmap_model.encoders.base import Encoded, Encoder, ModelError, full_precision


class SwinEncoder(Encoder):
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
        self.channels, self.stem_channels = 16 * config.width, config.width

    def forward(self, volume: Tensor, modality: Tensor | None = None) -> Encoded:
        """(B, 1, D, H, W) -> tokens (B, N, 16 f), pooled (B, 16 f): their mean."""
        if modality is not None:
            raise ModelError("model.sharing: swin_unetr cannot be shared yet")
        tokens = self.body(volume, normalize=False)[-1].flatten(2).transpose(1, 2)
        return Encoded(tokens, full_precision(tokens).mean(1))
