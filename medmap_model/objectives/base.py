"""What the objectives of stage 1 share: their texts and images, the learned sharpness, InfoNCE, means over slots.

Shapes everywhere in this package: B records, S image slots (the modalities and, last, their mean), D shared space,
E text embedding, T texts, C classes. An objective of stage 1 has the signature of `Objective` and returns named terms,
of which `loss` alone is minimised.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from configs.stages import PretrainConfig

EXCLUDED = -1e4  # finite: a row without any candidate must not turn the gradient into nan


class Texts(NamedTuple):
    """Texts to contrast images with.

    embedding: (T, D) unit norm. positive: (B, T) or (B, S, T) bool, whether a text says what an image shows.
    candidate: (T,) or broadcastable to (B, S, T) bool, whether a text may be compared with an image at all.
    """

    embedding: Tensor
    positive: Tensor
    candidate: Tensor


class Past(NamedTuple):
    """Images of past records of the round, without gradient: what a report, or a transport plan, may choose as well.

    image: (Q, S, D) unit norm. valid: (Q, S) bool. positive: (Q, T) bool, over the T reports of `Texts`.
    """

    image: Tensor
    valid: Tensor
    positive: Tensor


class Sharpness(NamedTuple):
    """Learned scalars: temperature divides a cosine; bias is added to a logit (SigLIP alone)."""

    temperature: Tensor
    bias: Tensor


class Objective(Protocol):
    """An objective of stage 1."""

    def __call__(
        self,
        image: Tensor,
        valid: Tensor,
        reports: Texts,
        bank: Texts | None,
        sharpness: Sharpness,
        settings: PretrainConfig,
        past: Past | None = None,
    ) -> dict[str, Tensor]:
        """image (B, S, D) unit norm, valid (B, S) bool. reports: the first B texts are the records' own, in order;
        more may follow (past reports, hard negatives). bank: public texts, or None. past: images of the past reports.
        Returns terms, among them `loss`."""
        ...


def bounded_temperature(position: Tensor, *, start: float, bounds: tuple[float, float]) -> Tensor:
    """Learned temperature: `start` where position is 0, and always strictly between the bounds.

    A sigmoid on the logarithmic scale. Clamping would stop learning at a bound; CLIP (arXiv 2103.00020) clamps
    after each step. position: scalar, any value. Raises ValueError for impossible bounds.
    """
    low, high = bounds
    if not 0 < low < high or not low <= start <= high:
        raise ValueError(
            f"temperature={start} with temperature_bounds=[{low}, {high}]: need 0 < low <= temperature <= high"
        )
    share = (math.log(start) - math.log(low)) / (math.log(high) - math.log(low))
    share = min(max(share, 1e-3), 1 - 1e-3)  # a start on a bound would leave no gradient
    unit = torch.sigmoid(position + math.log(share / (1 - share)))
    return torch.exp(math.log(low) + (math.log(high) - math.log(low)) * unit)


def multi_positive(logits: Tensor, positive: Tensor, candidate: Tensor) -> Tensor:
    """-log(sum over positives of exp / sum over candidates of exp) along the last axis: (..., T) -> (...).

    Multi-positive InfoNCE (MIL-NCE, Miech et al. 2020, arXiv 1912.06430, eq. 1). Rows without a positive hold
    garbage: weigh them zero. positive and candidate broadcast to logits; a positive must be a candidate.
    """
    every = torch.logsumexp(logits.masked_fill(~candidate, EXCLUDED), -1)
    return every - torch.logsumexp(logits.masked_fill(~positive, EXCLUDED), -1)


def slot_mean(values: Tensor, valid: Tensor) -> Tensor:
    """(B, S) -> scalar: mean over the valid records of each slot, then over the slots that have one; 0 if none has.

    Every modality counts alike, however many records have it.
    """
    count = valid.sum(0)
    per_slot = values.masked_fill(~valid, 0.0).sum(0) / count.clamp(min=1)
    return per_slot.sum() / (count > 0).sum().clamp(min=1)


def record_mean(values: Tensor, valid: Tensor) -> Tensor:
    """(B, S) -> (B,): each record's mean over its own valid slots, 0 if it has none; no record sees another."""
    return values.masked_fill(~valid, 0.0).sum(1) / valid.sum(1).clamp(min=1)


def by_slot(mask: Tensor) -> Tensor:
    """A mask of `Texts` as (B or 1, S or 1, T): (T,), (B, T) or already so."""
    return mask if mask.dim() == 3 else mask.view(-1, 1, mask.shape[-1])
