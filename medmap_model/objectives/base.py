"""What the objectives of stage 1 share: who is a positive of whom, the learned sharpness, means over slots.

Shapes everywhere in this package: B records, S image slots (the modalities and, last, their mean), D shared space,
E text embedding, T texts, C classes. An objective of stage 1 has the signature of `Objective` and returns named terms,
of which `loss` alone is minimised.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from configs.schema import PretrainConfig

_EXCLUDED = -1e4  # finite: a row without any candidate must not turn the gradient into nan


class Texts(NamedTuple):
    """Texts to contrast images with.

    embedding: (T, D) unit norm. positive: (B, T) or (B, S, T) bool, whether a text says what an image shows.
    candidate: (T,) or broadcastable to (B, S, T) bool, whether a text may be compared with an image at all.
    """

    embedding: Tensor
    positive: Tensor
    candidate: Tensor


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
    ) -> dict[str, Tensor]:
        """image (B, S, D) unit norm, valid (B, S) bool. reports: the first B texts are the records' own, in order;
        more may follow (hard negatives, a queue). bank: public texts, or None. Returns terms, among them `loss`."""
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


def report_positives(label: Tensor, report: Tensor, has_report: Tensor, *, positives: str, same_text: float) -> Tensor:
    """(B, B) bool: [i, j] is whether report j says what record i shows.

    positives="abnormality": same label where both are known, else as "text"; "text": cosine of the two reports is at
    least same_text. A record's own report is always a positive; a missing report never is.
    label (B,), report (B, E) unit norm or zero, has_report (B,) bool.
    """
    both_written = has_report[:, None] & has_report[None]
    same = (report @ report.T >= same_text) & both_written
    if positives == "abnormality":
        known = label >= 0
        same = torch.where(known[:, None] & known[None], label[:, None] == label[None], same)
    own = torch.eye(len(label), dtype=torch.bool, device=label.device)
    return (same | own) & has_report[None]


def prompt_positives(
    label: Tensor,
    report: Tensor,
    has_report: Tensor,
    prompt: Tensor,
    prompt_label: Tensor,
    *,
    positives: str,
    same_text: float,
) -> Tensor:
    """(B, P) bool: whether public prompt p says what record i shows; the rule of `report_positives`.

    prompt (P, E) unit norm; prompt_label (P,): the class of a prompt of this organ, -2 for another organ's.
    """
    same = (report @ prompt.T >= same_text) & has_report[:, None]
    if positives == "abnormality":
        same = torch.where((label >= 0)[:, None], label[:, None] == prompt_label[None], same)
    return same & (prompt_label >= 0)[None]


def multi_positive(logits: Tensor, positive: Tensor, candidate: Tensor) -> Tensor:
    """-log(sum over positives of exp / sum over candidates of exp) along the last axis: (..., T) -> (...).

    Multi-positive InfoNCE (MIL-NCE, Miech et al. 2020, arXiv 1912.06430, eq. 1). Rows without a positive hold
    garbage: weigh them zero. positive and candidate broadcast to logits; a positive must be a candidate.
    """
    every = torch.logsumexp(logits.masked_fill(~candidate, _EXCLUDED), -1)
    return every - torch.logsumexp(logits.masked_fill(~positive, _EXCLUDED), -1)


def slot_mean(values: Tensor, valid: Tensor) -> Tensor:
    """(B, S) -> scalar: mean over the valid records of each slot, then over the slots that have one; 0 if none has.

    Every modality counts alike, however many records have it.
    """
    count = valid.sum(0)
    per_slot = values.masked_fill(~valid, 0.0).sum(0) / count.clamp(min=1)
    return per_slot.sum() / (count > 0).sum().clamp(min=1)


def by_slot(mask: Tensor) -> Tensor:
    """A mask of `Texts` as (B or 1, S or 1, T): (T,), (B, T) or already so."""
    return mask if mask.dim() == 3 else mask.view(-1, 1, mask.shape[-1])
