"""MedMAP's fusion: tokens and pooled vectors of any subset of modalities, through CSA and CCT, -> feature (B, D).

arXiv 2602.23652; which part is the paper's, its code's or our reading: docs/method.md.

Shapes: B records, M modality slots, N tokens per modality (a cubic grid), W width, D shared space, T = M (N + 1).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.schema import FusionConfig
from medmap_model.fusion.cct import CCT
from medmap_model.fusion.csa import CSA
from medmap_model.fusion.inputs import FusionInput
from medmap_model.fusion.layers import masked_mean


class MedMAPFusion(nn.Module):
    """CSA and CCT over the tokens of whatever modalities are present; either can be left out (ablation).

    Besides its grid each modality has a summary token, made of its pooled embedding: that is what stage 1 aligned with
    text, so the fusion starts from pre-trained vectors rather than from a new projection alone. The mean of the pooled
    embeddings is added to the result for the same reason.
    """

    def __init__(self, config: FusionConfig, *, dim: int, width: int) -> None:
        super().__init__()
        self.csa = CSA(config, dim=dim, width=width) if config.csa else None
        self.cct = CCT(config, width=width) if config.cct else None
        self.norm_pooled, self.norm_text, self.norm_tokens = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(width)
        self.summary, self.modality, self.text = nn.Linear(dim, width), nn.Linear(dim, width), nn.Linear(dim, width)
        self.norm_out, self.out, self.norm_feature = (
            nn.LayerNorm(2 * width),
            nn.Linear(2 * width, dim),
            nn.LayerNorm(dim),
        )

    def forward(self, given: FusionInput) -> Tensor:
        """(B, D). What an absent slot holds does not matter. Raises ValueError without tokens."""
        if given.tokens is None:
            raise ValueError("the medmap fusion needs tokens (B, M, N, W), not pooled vectors alone")
        pooled, tokens, present, modality, modality_text, query = given.blanked()
        assert tokens is not None
        b, m, w = len(tokens), tokens.shape[1], tokens.shape[3]
        n = tokens.shape[2] + 1
        pooled = self.norm_pooled(pooled)
        vision = torch.cat([self.norm_tokens(tokens), self.summary(pooled)[:, :, None]], 2)
        vision = vision + self.modality(modality)[:, None]
        text = self.norm_text(torch.cat([query[None], modality_text]))
        language = vision if self.csa is None else self.csa(vision, present, text[1:])
        # The texts join the vision-language tokens: the organ's query, always there, and each present modality's own.
        language = torch.cat([self.text(text).expand(b, -1, -1), language.reshape(b, m * n, w)], 1)
        vision, seen = vision.reshape(b, m * n, w), present.repeat_interleave(n, 1)
        attend = torch.cat([F.pad(present, (1, 0), value=True), seen], 1)
        if self.cct is not None:
            vision, language = self.cct(vision, seen, language, attend)
        both = torch.cat([masked_mean(vision, seen), masked_mean(language, attend)], 1)
        return self.norm_feature(self.out(self.norm_out(both)) + masked_mean(pooled, present))


def pool_tokens(tokens: Tensor, most: int) -> Tensor:
    """(B, N, C), a cubic grid in raster order -> (B, N', C): averaged to the largest cube of at most `most` positions."""
    n = tokens.shape[1]
    edge = round(n ** (1 / 3))
    smaller = min(edge, int(most ** (1 / 3) + 1e-9))
    if smaller == edge:
        return tokens
    grid = tokens.transpose(1, 2).unflatten(2, (edge, edge, edge))
    return F.adaptive_avg_pool3d(grid, smaller).flatten(2).transpose(1, 2)
