"""Cross-Modal Semantic Aggregation: tokens (B, M, N, W) of a study, its texts (M, D) -> vision-language tokens, same shape.

arXiv 2602.23652 says: a dual stream of convolutional (local) and transformer (global) features, guided by text embeddings.
What is gated by which text is our reading (docs/method.md). B records, M modality slots, N grid positions, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.schema import FusionConfig
from medmap_model.fusion.layers import EncoderLayer


class LocalStream(nn.Module):
    """Convolutional stream: a depthwise 3^3 and a pointwise convolution over each modality's token grid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.depthwise = nn.Conv3d(width, width, 3, padding=1, groups=width)
        self.pointwise = nn.Linear(width, width)

    def forward(self, grid: Tensor) -> Tensor:
        """(B, M, N, W), N a cube in raster order -> (B, M, N, W); modalities do not mix, nor positions two apart."""
        b, m, n, w = grid.shape
        edge = round(n ** (1 / 3))
        cube = self.norm(grid).reshape(b * m, edge, edge, edge, w).permute(0, 4, 1, 2, 3)
        seen = self.depthwise(cube).permute(0, 2, 3, 4, 1).reshape(b, m, n, w)
        return self.pointwise(F.relu(seen))


class CSA(nn.Module):
    """Cross-Modal Semantic Aggregation: each modality's text decides how much of which stream passes, per channel.

    out = tokens + gate_local(text) * local(tokens) + gate_global(text) * global(tokens), gates in (0, 1). A modality's last
    token is its summary, which has no place in the grid: the local stream leaves it out.
    """

    def __init__(self, config: FusionConfig, *, dim: int, width: int) -> None:
        super().__init__()
        self.local_stream = LocalStream(width)
        self.global_stream = nn.ModuleList(
            EncoderLayer(width, config.heads, config.dropout) for _ in range(config.csa_layers)
        )
        self.gates = nn.Linear(dim, 2 * width)

    def forward(self, tokens: Tensor, present: Tensor, text: Tensor) -> Tensor:
        """(B, M, N + 1, W), (B, M) bool, (M, D) -> (B, M, N + 1, W)."""
        b, m, n, w = tokens.shape
        attend = present.repeat_interleave(n, 1)
        x = tokens.reshape(b, m * n, w)
        for layer in self.global_stream:
            x = layer(x, attend)
        near, far = torch.sigmoid(self.gates(text))[:, None].chunk(2, -1)  # (M, 1, W) each
        grid = F.pad(self.local_stream(tokens[:, :, :-1]), (0, 0, 0, 1))
        return tokens + near * grid + far * (x.view(b, m, n, w) - tokens)
