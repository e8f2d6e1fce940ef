"""Losses on embeddings: asymmetric multi-positive InfoNCE of stage 1, supervision and KL alignment of stage 2.

Shapes: B records, S image slots (the modalities and, last, their mean), D shared space, E text embedding,
T texts, P public prompts, C classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_EXCLUDED = -1e4  # finite: a row without any candidate must not turn the gradient into nan


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


class Texts(NamedTuple):
    """Texts to contrast images with: embedding (T, D) unit norm, positive (B, T) bool, candidate (T,) bool."""

    embedding: Tensor
    positive: Tensor
    candidate: Tensor


def image_to_text(image: Tensor, valid: Tensor, texts: Texts, temperature: Tensor) -> Tensor:
    """Scalar: each image picks the texts that say what it shows among all candidates.

    image (B, S, D) unit norm, valid (B, S) bool. An image without a positive among the candidates does not count.
    """
    logits = image @ texts.embedding.T / temperature
    positive = texts.positive & texts.candidate[None]
    row = multi_positive(logits, positive[:, None], texts.candidate)
    return slot_mean(row, valid & positive.any(1, keepdim=True))


def text_to_image(image: Tensor, valid: Tensor, texts: Texts, temperature: Tensor) -> Tensor:
    """Scalar: each in-batch report (T = B) picks the images of its kind, within each slot. As `image_to_text`."""
    logits = (image @ texts.embedding.T / temperature).permute(2, 1, 0)  # (T, S, B)
    there = valid.T[None]
    chosen = texts.positive.T[:, None] & there
    row = multi_positive(logits, chosen, there)
    return slot_mean(row, texts.candidate[:, None] & chosen.any(2))


def asymmetric_contrast(
    image: Tensor, valid: Tensor, reports: Texts, prompts: Texts | None, temperature: Tensor, *, share: float
) -> dict[str, Tensor]:
    """loss = share * mean of the image->text terms + (1 - share) * reports_to_image; our reading of MedMAP's stage 1.

    Only the image side learns an encoder, hence share > 0.5. image (B, S, D) unit norm, valid (B, S) bool.
    Terms: loss, image_to_reports, reports_to_image, and image_to_prompts where there are prompts.
    """
    terms = {
        "image_to_reports": image_to_text(image, valid, reports, temperature),
        "reports_to_image": text_to_image(image, valid, reports, temperature),
    }
    forward = terms["image_to_reports"]
    if prompts is not None:
        terms["image_to_prompts"] = image_to_text(image, valid, prompts, temperature)
        forward = (forward + terms["image_to_prompts"]) / 2
    return {"loss": share * forward + (1 - share) * terms["reports_to_image"], **terms}


def supervised_share(progress: float, *, floor: float) -> float:
    """Cosine ramp of the supervised weight: 1 at progress 0, floor at progress 1 (MedMAP's w(t), with a floor)."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


def cross_entropy(logits: Tensor, label: Tensor, *, smoothing: float) -> Tensor:
    """Mean cross-entropy over the records with a known label (label >= 0); 0 when there is none. (B, C), (B,)."""
    total = F.cross_entropy(logits, label, ignore_index=-1, label_smoothing=smoothing, reduction="sum")
    return total / (label >= 0).sum().clamp(min=1)


def alignment(feature: Tensor, target: Tensor, label: Tensor) -> Tensor:
    """KL(softmax(target) || softmax(feature)), mean over the records with a known label; 0 when there is none.

    feature (B, D): the fused feature, as its last layer norm leaves it. target (B, D): the projected prompt text of the
    true label, a training target only, through which no gradient flows. MedMAP's alignment term (arXiv 2602.23652). The
    target is brought to the feature's scale first: the softmax of a projection as it comes is all but uniform, and to
    align with that would only flatten the feature.
    """
    goal = F.log_softmax(F.layer_norm(target.detach(), target.shape[1:]), 1)
    row = F.kl_div(F.log_softmax(feature, 1), goal, log_target=True, reduction="none").sum(1)
    known = label >= 0
    return row.masked_fill(~known, 0.0).sum() / known.sum().clamp(min=1)
