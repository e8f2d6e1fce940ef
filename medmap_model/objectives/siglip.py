"""SigLIP: every pair of an image and a text is a question of its own, do they match (Zhai et al. 2023, arXiv 2303.15343)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from configs.stages import PretrainConfig
from medmap_model.objectives.base import Past, Sharpness, Texts, by_slot, slot_mean


def pairs(image: Tensor, valid: Tensor, texts: Texts, sharpness: Sharpness) -> Tensor:
    """Scalar: -log sigmoid(y * (cosine / temperature + b)), summed over an image's candidates, mean over images.

    image (B, S, D) unit norm, valid (B, S) bool. y is 1 for every positive of the image and -1 for its other candidates.
    b = sharpness.bias + log(positives / negatives) of the image: at cosine 0 its positives pull as hard together as its
    negatives push. The paper starts at b = -10, which is this for its batch (one positive among 2^15 texts); for a batch
    of eight, -10 would leave the negatives without a say for thousands of steps. An image without a positive does
    not count: that nothing said matches it is not known.
    """
    candidate = by_slot(texts.candidate)
    positive = by_slot(texts.positive) & candidate
    negative = candidate & ~positive
    prior = (positive.sum(2).clamp(min=1) / negative.sum(2).clamp(min=1)).log()[..., None]
    logits = image @ texts.embedding.T / sharpness.temperature + prior + sharpness.bias
    wrong = F.softplus(torch.where(positive, -logits, logits)).masked_fill(~candidate, 0.0)
    return slot_mean(wrong.sum(2), valid & positive.any(2))


def siglip(
    image: Tensor,
    valid: Tensor,
    reports: Texts,
    bank: Texts | None,
    sharpness: Sharpness,
    settings: PretrainConfig,
    past: Past | None = None,
) -> dict[str, Tensor]:
    """loss = mean of the terms; a pair has no direction, so `image_to_text` and past images play no part.

    Terms: loss, image_to_reports, and image_to_bank where there is a bank.
    """
    terms = {"image_to_reports": pairs(image, valid, reports, sharpness)}
    if bank is not None:
        terms["image_to_bank"] = pairs(image, valid, bank, sharpness)
    return {"loss": torch.stack(list(terms.values())).mean(), **terms}
