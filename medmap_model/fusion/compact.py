"""The compact fusion: pooled embeddings (B, M, D) of any subset of modalities and a query (D,) -> feature (B, D)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.schema import FusionConfig
from medmap_model.fusion.inputs import FusionInput
from medmap_model.fusion.layers import EncoderLayer, masked_mean


class CompactFusion(nn.Module):
    """The query text gates every modality, then query and modalities attend to one another."""

    def __init__(self, config: FusionConfig, *, dim: int) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(dim)
        self.gate = nn.Sequential(nn.Linear(2 * dim, dim // 2), nn.ReLU(), nn.Linear(dim // 2, 1))
        self.layers = nn.ModuleList(EncoderLayer(dim, config.heads, config.dropout) for _ in range(config.layers))
        self.norm_out = nn.LayerNorm(dim)

    def forward(self, given: FusionInput) -> Tensor:
        """(B, D). What an absent slot holds does not matter."""
        given = given.blanked()
        b, m, _ = given.pooled.shape
        tokens = self.norm_in(given.pooled) + given.modality
        asked = given.query.expand(b, 1, -1)
        tokens = tokens * (2 * torch.sigmoid(self.gate(torch.cat([tokens, asked.expand(-1, m, -1)], 2))))
        x = torch.cat([asked, tokens], 1)
        attend = F.pad(given.present, (1, 0), value=True)
        for layer in self.layers:
            x = layer(x, attend)
        return self.norm_out(x[:, 0] + masked_mean(x[:, 1:], given.present))
