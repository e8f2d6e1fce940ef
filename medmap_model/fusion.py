"""Text-guided fusion: embeddings (B, M, D) of any subset of modalities and a query (D,) -> feature (B, D)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmap_model.encoders import ModelError


class FusionLayer(nn.Module):
    """Pre-norm transformer layer over T tokens with a mask: (B, T, D) -> (B, T, D)."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, 2 * dim)
        self.down = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor, attend: Tensor) -> Tensor:
        """attend: (B, T) bool, which tokens may be looked at."""
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=attend[:, None, None], dropout_p=self.dropout if self.training else 0.0
        )
        x = x + self._drop(self.out(mixed.transpose(1, 2).reshape(b, t, d)))
        return x + self._drop(self.down(self._drop(F.relu(self.up(self.norm2(x))))))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class Fusion(nn.Module):
    """The query text gates every modality, then query and modalities attend to one another.

    The seam for richer fusions: embeddings, mask and query in, one feature out.
    """

    def __init__(self, *, dim: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        if dim % heads:
            raise ModelError(f"model.embed_dim={dim} is not a multiple of model.fusion_heads={heads}")
        self.norm_in = nn.LayerNorm(dim)
        self.gate = nn.Sequential(nn.Linear(2 * dim, dim // 2), nn.ReLU(), nn.Linear(dim // 2, 1))
        self.layers = nn.ModuleList(FusionLayer(dim, heads, dropout) for _ in range(layers))
        self.norm_out = nn.LayerNorm(dim)

    def forward(self, embeddings: Tensor, present: Tensor, modality: Tensor, query: Tensor) -> Tensor:
        """(B, M, D), (B, M) bool, (M, D) learned modality embeddings, (D,) -> (B, D).

        What an absent slot holds does not matter, as long as it is finite.
        """
        b, m, _ = embeddings.shape
        tokens = self.norm_in(embeddings) + modality
        asked = query.expand(b, 1, -1)
        tokens = tokens * (2 * torch.sigmoid(self.gate(torch.cat([tokens, asked.expand(-1, m, -1)], 2))))
        x = torch.cat([asked, tokens], 1)
        attend = F.pad(present, (1, 0), value=True)
        for layer in self.layers:
            x = layer(x, attend)
        weight = present.to(x.dtype)[..., None]
        mean = (x[:, 1:] * weight).sum(1) / weight.sum(1).clamp(min=1)
        return self.norm_out(x[:, 0] + mean)


def drop_modalities(present: Tensor, *, rate: float) -> Tensor:
    """(B, M) bool -> (B, M) bool: hides present modalities at random, never all of a record's.

    Draws from torch's global RNG.
    """
    if rate == 0:
        return present
    kept = present & (torch.rand(present.shape, device=present.device) >= rate)
    return torch.where(kept.any(1, keepdim=True), kept, present)
