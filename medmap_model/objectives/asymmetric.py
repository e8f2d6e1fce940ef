"""Asymmetric multi-positive InfoNCE: our reading of MedMAP's stage 1 (arXiv 2602.23652)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from configs.stages import PretrainConfig
from medmap_model.objectives.base import Past, Sharpness, Texts, by_slot, multi_positive, slot_mean

# logits, positive, candidate (..., T) -> the loss of each row (...); `multi_positive` is one.
Row = Callable[[Tensor, Tensor, Tensor], Tensor]


class Rows(NamedTuple):
    """The loss of a row in each term: an image among reports, a report among images, an image in the bank."""

    image: Row
    report: Row
    bank: Row


def image_to_text(
    image: Tensor,
    valid: Tensor,
    texts: Texts,
    temperature: Tensor,
    *,
    row: Row = multi_positive,
) -> Tensor:
    """Scalar: each image picks the texts that say what it shows among all candidates.

    image (B, S, D) unit norm, valid (B, S) bool. An image without a positive among the candidates does not count.
    """
    logits = image @ texts.embedding.T / temperature
    candidate = by_slot(texts.candidate)
    positive = by_slot(texts.positive) & candidate
    return slot_mean(row(logits, positive, candidate), valid & positive.any(2))


def text_to_image(
    image: Tensor,
    valid: Tensor,
    texts: Texts,
    temperature: Tensor,
    *,
    past: Past | None = None,
    row: Row = multi_positive,
) -> Tensor:
    """Scalar: each in-batch report (the first B texts) picks the images of its kind, within each slot.

    past: further images to pick from.
    """
    own = len(image)
    said = (by_slot(texts.positive) & by_slot(texts.candidate))[..., :own]
    if past is not None:
        image, valid = torch.cat([image, past.image]), torch.cat([valid, past.valid])
        said = torch.cat([said, past.positive[:, None, :own].expand(-1, said.shape[1], -1)])
    logits = (image @ texts.embedding[:own].T / temperature).permute(2, 1, 0)  # (B reports, S, B + Q images)
    there = valid.T[None]
    chosen = said.permute(2, 1, 0) & there
    return slot_mean(row(logits, chosen, there), chosen.any(2))


def contrast(
    image: Tensor,
    valid: Tensor,
    reports: Texts,
    bank: Texts | None,
    sharpness: Sharpness,
    settings: PretrainConfig,
    past: Past | None,
    rows: Rows,
) -> dict[str, Tensor]:
    """Both directions of a contrast that `rows` defines; the terms of `asymmetric`."""
    tau = sharpness.temperature
    terms = {
        "image_to_reports": image_to_text(image, valid, reports, tau, row=rows.image),
        "reports_to_image": text_to_image(image, valid, reports, tau, past=past, row=rows.report),
    }
    forward = terms["image_to_reports"]
    if bank is not None:
        terms["image_to_bank"] = image_to_text(image, valid, bank, tau, row=rows.bank)
        forward = (forward + terms["image_to_bank"]) / 2
    share = settings.image_to_text
    return {"loss": share * forward + (1 - share) * terms["reports_to_image"], **terms}


def asymmetric(
    image: Tensor,
    valid: Tensor,
    reports: Texts,
    bank: Texts | None,
    sharpness: Sharpness,
    settings: PretrainConfig,
    past: Past | None = None,
) -> dict[str, Tensor]:
    """loss = a * mean of the image->text terms + (1 - a) * reports_to_image, a = settings.image_to_text.

    Only the image side learns an encoder, hence a > 0.5. Terms: loss, image_to_reports, reports_to_image, and
    image_to_bank where there is a bank. A term without any positive is 0.
    """
    return contrast(
        image, valid, reports, bank, sharpness, settings, past, Rows(multi_positive, multi_positive, multi_positive)
    )
