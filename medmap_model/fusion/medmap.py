"""MedMAP's fusion: Cross-Modal Semantic Aggregation (CSA), then the Cross-Cognition Transformer (CCT).

arXiv 2602.23652 says: CSA is a dual stream of convolutional (local) and transformer (global) features guided by text; in
CCT vision queries vision-language and back, deep; both are concatenated for the head. Where it is silent (what is gated by
which text, how tokens are made) this is our reading; docs/method.md says which is which.

Shapes: B records, M modality slots, N tokens per modality (a cubic grid), W width, D shared space, T = M N.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.schema import FusionConfig
from medmap_model.fusion.inputs import FusionInput
from medmap_model.fusion.layers import DecoderLayer, EncoderLayer


class LocalStream(nn.Module):
    """Convolutional stream: a depthwise 3^3 and a pointwise convolution over each modality's token grid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.depthwise = nn.Conv3d(width, width, 3, padding=1, groups=width)
        self.pointwise = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, M, N, W) -> (B, M, N, W); modalities do not mix."""
        b, m, n, w = tokens.shape
        edge = round(n ** (1 / 3))
        grid = self.norm(tokens).reshape(b * m, edge, edge, edge, w).permute(0, 4, 1, 2, 3)
        seen = self.depthwise(grid).permute(0, 2, 3, 4, 1).reshape(b, m, n, w)
        return self.pointwise(F.relu(seen))


class CSA(nn.Module):
    """Cross-Modal Semantic Aggregation: each modality's text decides how much of which stream passes, per channel.

    out = tokens + gate_local(text) * local(tokens) + gate_global(text) * global(tokens), gates in (0, 1).
    """

    def __init__(self, config: FusionConfig, *, dim: int, width: int) -> None:
        super().__init__()
        self.local_stream = LocalStream(width)
        self.global_stream = nn.ModuleList(
            EncoderLayer(width, config.heads, config.dropout) for _ in range(config.csa_layers)
        )
        self.gates = nn.Linear(dim, 2 * width)

    def forward(self, tokens: Tensor, present: Tensor, text: Tensor) -> Tensor:
        """(B, M, N, W), (B, M) bool, (M, D) -> (B, M, N, W)."""
        b, m, n, w = tokens.shape
        attend = _seen(present.repeat_interleave(n, 1))
        x = tokens.reshape(b, m * n, w)
        for layer in self.global_stream:
            x = layer(x, attend)
        near, far = torch.sigmoid(self.gates(text))[:, None].chunk(2, -1)  # (M, 1, W) each
        return tokens + near * self.local_stream(tokens) + far * (x.view(b, m, n, w) - tokens)


class CCT(nn.Module):
    """Cross-Cognition Transformer: two stacks of decoders that read each other, layer by layer; (B, T, W) twice in and out."""

    def __init__(self, config: FusionConfig, *, width: int) -> None:
        super().__init__()

        def stack() -> nn.ModuleList:
            return nn.ModuleList(DecoderLayer(width, config.heads, config.dropout) for _ in range(config.layers))

        self.vision, self.language = stack(), stack()

    def forward(
        self, vision: Tensor, attend_vision: Tensor, language: Tensor, attend_language: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Vision queries vision-language and the reverse, both from the layer below."""
        for see, say in zip(self.vision, self.language, strict=True):
            vision, language = (
                see(vision, attend_vision, language, attend_language),
                say(language, attend_language, vision, attend_vision),
            )
        return vision, language


class MedMAPFusion(nn.Module):
    """CSA and CCT over the tokens of whatever modalities are present; either can be left out (ablation)."""

    def __init__(self, config: FusionConfig, *, dim: int, width: int) -> None:
        super().__init__()
        self.csa = CSA(config, dim=dim, width=width) if config.csa else None
        self.cct = CCT(config, width=width) if config.cct else None
        self.modality, self.text = nn.Linear(dim, width), nn.Linear(dim, width)
        self.norm_in, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(2 * width)
        self.out, self.norm_feature = nn.Linear(2 * width, dim), nn.LayerNorm(dim)

    def forward(self, given: FusionInput) -> Tensor:
        """(B, D). What an absent slot holds does not matter, as long as it is finite."""
        assert given.tokens is not None
        b, m, n, w = given.tokens.shape
        vision = self.norm_in(given.tokens) + self.modality(given.modality)[:, None]
        language = vision if self.csa is None else self.csa(vision, given.present, given.modality_text)
        # The texts join the vision-language tokens: the organ's query, always there, and each present modality's own.
        words = self.text(torch.cat([given.query[None], given.modality_text])).expand(b, -1, -1)
        seen = given.present.repeat_interleave(n, 1)
        vision, language = vision.reshape(b, m * n, w), torch.cat([words, language.reshape(b, m * n, w)], 1)
        attend = torch.cat([F.pad(given.present, (1, 0), value=True), seen], 1)
        if self.cct is not None:
            vision, language = self.cct(vision, _seen(seen), language, attend)
        pooled = torch.cat([_mean(vision, seen), _mean(language, attend)], 1)
        return self.norm_feature(self.out(self.norm_out(pooled)))


def _seen(attend: Tensor) -> Tensor:
    """The mask, but all True in a row with nothing to look at: attention over nothing is not a number.

    Such a row's tokens are never read: the mean leaves them out.
    """
    return attend | ~attend.any(1, keepdim=True)


def _mean(tokens: Tensor, there: Tensor) -> Tensor:
    """(B, T, W), (B, T) bool -> (B, W): mean over the tokens that are there; 0 where none is."""
    weight = there.to(tokens.dtype)[..., None]
    return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)


def pool_tokens(tokens: Tensor, most: int) -> Tensor:
    """(B, N, C), a cubic grid in raster order -> (B, N', C): averaged to the largest cube of at most `most` positions."""
    n = tokens.shape[1]
    edge = round(n ** (1 / 3))
    smaller = min(edge, int(most ** (1 / 3) + 1e-9))
    if smaller == edge:
        return tokens
    grid = tokens.transpose(1, 2).unflatten(2, (edge, edge, edge))
    return F.adaptive_avg_pool3d(grid, smaller).flatten(2).transpose(1, 2)
