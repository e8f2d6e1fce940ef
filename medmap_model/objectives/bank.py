"""Image -> public bank: the separable objective, in which no record's loss depends on another record."""

from __future__ import annotations

import torch
from torch import Tensor

from configs.schema import ConfigError, PretrainConfig
from medmap_model.objectives.base import Past, Sharpness, Texts, by_slot, multi_positive, record_mean


def bank_by_record(image: Tensor, valid: Tensor, reports: Texts, bank: Texts, temperature: Tensor) -> Tensor:
    """(B,): multi-positive InfoNCE of each record's images (B, S, D) over the public texts and the record's own report.

    The own report is a positive of its own record and no candidate of any other, so that every negative is public (or
    the own report turned, `hard_negatives`). A record without a positive has loss 0.
    """
    b, slots = valid.shape
    own = torch.eye(b, dtype=torch.bool, device=image.device)
    rest = own.new_ones(b, len(reports.embedding) - b)  # hard negatives, for their own record by their own mask
    mine = by_slot(reports.candidate) & torch.cat([own, rest], 1)[:, None]
    candidate = torch.cat([t.expand(b, slots, -1) for t in (mine, by_slot(bank.candidate))], 2)
    said = torch.cat([own, ~rest], 1)[:, None]
    positive = torch.cat([t.expand(b, slots, -1) for t in (said, by_slot(bank.positive))], 2) & candidate
    logits = image @ torch.cat([reports.embedding, bank.embedding]).T / temperature
    return record_mean(multi_positive(logits, positive, candidate), valid & positive.any(2))


def bank_alone(
    image: Tensor,
    valid: Tensor,
    reports: Texts,
    bank: Texts | None,
    sharpness: Sharpness,
    settings: PretrainConfig,
    past: Past | None = None,
) -> dict[str, Tensor]:
    """loss = image_to_bank = mean over all B records of `bank_by_record`: what clipping per patient needs.

    There is no text->image: a report would choose among the patients of the batch. The queue is not used either. The
    mean is over all records, with or without a positive, as a count of those would tie the records together. Raises
    ConfigError where there is no bank.
    """
    if bank is None:
        raise ConfigError("stage.pretrain.objective=bank needs public texts: take stage.pretrain.bank=prompts")
    loss = bank_by_record(image, valid, reports, bank, sharpness.temperature).mean()
    return {"loss": loss, "image_to_bank": loss}
