"""What a fusion is given. B records, M modality slots, N tokens per modality, D shared space, W width of the fusion."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class FusionInput(NamedTuple):
    """pooled (B, M, D) · tokens (B, M, N, W) in raster order of a cubic grid, None where the fusion takes none ·
    present (B, M) bool · modality (M, D) learned embeddings · modality_text (M, D) and query (D,) projected
    class-independent texts. What an absent slot holds is finite and must not matter.
    """

    pooled: Tensor
    tokens: Tensor | None
    present: Tensor
    modality: Tensor
    modality_text: Tensor
    query: Tensor
