"""Cross-Cognition Transformer: vision tokens (B, T, W) and vision-language tokens (B, U, W) read each other, layer by layer.

arXiv 2602.23652 says: vision queries vision-language and back, deep; its code has two pre-norm decoders over pooled vectors.
Here they run over token sequences (docs/method.md).
"""

from __future__ import annotations

from torch import Tensor, nn

from configs.schema import FusionConfig
from medmap_model.fusion.layers import DecoderLayer


class CCT(nn.Module):
    """Two stacks of decoders; each layer of either attends to the other's tokens of the layer below."""

    def __init__(self, config: FusionConfig, *, width: int) -> None:
        super().__init__()

        def stack() -> nn.ModuleList:
            return nn.ModuleList(DecoderLayer(width, config.heads, config.dropout) for _ in range(config.layers))

        self.vision, self.language = stack(), stack()

    def forward(
        self, vision: Tensor, attend_vision: Tensor, language: Tensor, attend_language: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(B, T, W), (B, T) bool, (B, U, W), (B, U) bool -> both token sequences."""
        for see, say in zip(self.vision, self.language, strict=True):
            vision, language = (
                see(vision, attend_vision, language, attend_language),
                say(language, attend_language, vision, attend_vision),
            )
        return vision, language
