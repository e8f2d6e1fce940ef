"""Asymmetric multi-positive InfoNCE: our reading of MedMAP's stage 1 (arXiv 2602.23652)."""

from __future__ import annotations

from torch import Tensor

from configs.schema import PretrainConfig
from medmap_model.objectives.base import Sharpness, Texts, by_slot, multi_positive, slot_mean


def image_to_text(image: Tensor, valid: Tensor, texts: Texts, temperature: Tensor) -> Tensor:
    """Scalar: each image picks the texts that say what it shows among all candidates.

    image (B, S, D) unit norm, valid (B, S) bool. An image without a positive among the candidates does not count.
    """
    logits = image @ texts.embedding.T / temperature
    candidate = by_slot(texts.candidate)
    positive = by_slot(texts.positive) & candidate
    row = multi_positive(logits, positive, candidate)
    return slot_mean(row, valid & positive.any(2))


def text_to_image(image: Tensor, valid: Tensor, texts: Texts, temperature: Tensor) -> Tensor:
    """Scalar: each in-batch report (the first B texts) picks the images of its kind, within each slot."""
    own = len(image)
    logits = (image @ texts.embedding[:own].T / temperature).permute(2, 1, 0)  # (T, S, B)
    there = valid.T[None]
    said = (by_slot(texts.positive) & by_slot(texts.candidate))[..., :own].permute(2, 1, 0)
    chosen = said & there
    row = multi_positive(logits, chosen, there)
    return slot_mean(row, chosen.any(2))


def asymmetric(
    image: Tensor, valid: Tensor, reports: Texts, bank: Texts | None, sharpness: Sharpness, settings: PretrainConfig
) -> dict[str, Tensor]:
    """loss = a * mean of the image->text terms + (1 - a) * reports_to_image, a = settings.image_to_text.

    Only the image side learns an encoder, hence a > 0.5. Terms: loss, image_to_reports, reports_to_image, and
    image_to_bank where there is a bank. A term without any positive is 0.
    """
    tau = sharpness.temperature
    terms = {
        "image_to_reports": image_to_text(image, valid, reports, tau),
        "reports_to_image": text_to_image(image, valid, reports, tau),
    }
    forward = terms["image_to_reports"]
    if bank is not None:
        terms["image_to_bank"] = image_to_text(image, valid, bank, tau)
        forward = (forward + terms["image_to_bank"]) / 2
    share = settings.image_to_text
    return {"loss": share * forward + (1 - share) * terms["reports_to_image"], **terms}
