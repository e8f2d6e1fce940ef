"""What a fusion is given. B records, M modality slots, N tokens per modality, D shared space, W width of the fusion."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class FusionInput(NamedTuple):
    """pooled (B, M, D) · tokens (B, M, N, W) in raster order of a cubic grid, None where the fusion takes none ·
    present (B, M) bool · modality (M, D) learned embeddings · modality_text (M, D) and query (D,) projected
    class-independent texts. What an absent slot holds must not matter.
    """

    pooled: Tensor
    tokens: Tensor | None
    present: Tensor
    modality: Tensor
    modality_text: Tensor
    query: Tensor

    def blanked(self) -> FusionInput:
        """The same with zeros in the absent slots: their content, finite or not, reaches neither result nor gradient."""
        here = self.present[..., None]
        pooled = torch.where(here, self.pooled, torch.zeros_like(self.pooled))  # not a product: 0 * nan is nan
        if self.tokens is None:
            return self._replace(pooled=pooled)
        return self._replace(
            pooled=pooled, tokens=torch.where(here[..., None], self.tokens, torch.zeros_like(self.tokens))
        )
