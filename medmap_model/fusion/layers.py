"""Building blocks of the fusions: pre-norm attention over tokens (B, T, W) with a mask, masked means, and modality dropout."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head attention of queries (B, T, W) over a memory (B, U, W); what the mask hides has no say.

    Written out, since torch's fused attention has no batching rule: under `vmap` it would run record by record.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor, attend: Tensor) -> Tensor:
        """attend: (B, U) bool, which positions of the memory may be looked at. With none, only the output's bias is left."""
        b, t, w = x.shape
        size = w // self.heads
        q = (self.query(x) / math.sqrt(size)).view(b, t, self.heads, size).transpose(1, 2)
        k, v = self.key_value(memory).view(b, memory.shape[1], 2, self.heads, size).permute(2, 0, 3, 1, 4)
        # A low number, not -inf: where nothing is seen, -inf would make the softmax and its gradient not a number.
        unseen = torch.zeros_like(attend, dtype=x.dtype).masked_fill(~attend, torch.finfo(x.dtype).min / 2)
        weight = (q @ k.transpose(2, 3) + unseen[:, None, None]).softmax(3)
        mixed = F.dropout(weight, self.dropout, self.training) @ v
        told = mixed.transpose(1, 2).reshape(b, t, w) * attend.any(1)[:, None, None]
        return self.out(told)


class FeedForward(nn.Module):
    """Two linear layers with a non-linearity between: (..., W) -> (..., W)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.up, self.down, self.dropout = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), dropout

    def forward(self, x: Tensor) -> Tensor:
        """(..., W) -> (..., W)."""
        return self.down(F.dropout(F.relu(self.up(x)), self.dropout, self.training))


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer (Xiong et al. 2020, arXiv 2002.04745): self-attention, then feed-forward."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads, dropout)
        self.norm2, self.feed = nn.LayerNorm(width), FeedForward(width, dropout)
        self.dropout = dropout

    def forward(self, x: Tensor, attend: Tensor) -> Tensor:
        """(B, T, W) and (B, T) bool, which tokens may be looked at -> (B, T, W)."""
        h = self.norm1(x)
        x = x + F.dropout(self.attention(h, h, attend), self.dropout, self.training)
        return x + F.dropout(self.feed(self.norm2(x)), self.dropout, self.training)


class DecoderLayer(nn.Module):
    """Pre-norm transformer decoder layer without a causal mask: self-attention, attention over a memory, feed-forward."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.own = nn.LayerNorm(width), Attention(width, heads, dropout)
        self.norm2, self.norm_memory = nn.LayerNorm(width), nn.LayerNorm(width)
        self.cross = Attention(width, heads, dropout)
        self.norm3, self.feed = nn.LayerNorm(width), FeedForward(width, dropout)
        self.dropout = dropout

    def forward(self, x: Tensor, attend: Tensor, memory: Tensor, attend_memory: Tensor) -> Tensor:
        """(B, T, W), (B, T) bool, memory (B, U, W), (B, U) bool -> (B, T, W)."""
        h = self.norm1(x)
        x = x + F.dropout(self.own(h, h, attend), self.dropout, self.training)
        told = self.cross(self.norm2(x), self.norm_memory(memory), attend_memory)
        x = x + F.dropout(told, self.dropout, self.training)
        return x + F.dropout(self.feed(self.norm3(x)), self.dropout, self.training)


def masked_mean(tokens: Tensor, there: Tensor) -> Tensor:
    """(B, T, W), (B, T) bool -> (B, W): mean over the tokens that are there; 0 where none is."""
    weight = there.to(tokens.dtype)[..., None]
    return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)


def drop_modalities(present: Tensor, *, rate: float) -> Tensor:
    """(B, M) bool -> (B, M) bool: hides present modalities at random, never all of a record's.

    Draws from torch's global RNG.
    """
    if rate == 0:
        return present
    kept = present & (torch.rand(present.shape, device=present.device) >= rate)
    return torch.where(kept.any(1, keepdim=True), kept, present)
