"""Image -> public bank: the separable objective, in which no record's loss depends on another record."""

from __future__ import annotations

import torch
from torch import Tensor

from configs.setting import ConfigError
from configs.stages import PretrainConfig
from medmap_model.objectives.base import Past, Sharpness, Texts, by_slot, multi_positive, record_mean


def bank_by_record(image: Tensor, valid: Tensor, reports: Texts, bank: Texts, temperature: Tensor) -> Tensor:
    """(B,): the loss of each record's images (B, S, D): mean of what can be asked of two questions, 0 if neither can.

    Which public texts say what the image shows: multi-positive InfoNCE over the bank. Whether the own report fits
    better than public texts that do not (and than itself turned, `hard_negatives`). Two questions, not one row: a
    report is easily told from a prompt by its style, and as one more positive of the row it would answer for the class.
    The own report is no candidate of any other record.
    """
    b, slots = valid.shape
    own = torch.eye(b, dtype=torch.bool, device=image.device)
    rest = own.new_ones(b, len(reports.embedding) - b)  # hard negatives, for their own record by their own mask
    mine = by_slot(reports.candidate) & torch.cat([own, rest], 1)[:, None]
    said = mine & torch.cat([own, ~rest], 1)[:, None]
    public = by_slot(bank.candidate).expand(b, slots, -1)
    fitting = by_slot(bank.positive) & public
    to_reports, to_bank = (image @ t.embedding.T / temperature for t in (reports, bank))
    asked_bank = fitting.any(2) & valid
    by_bank = multi_positive(to_bank, fitting, public)
    parts = [t.expand(b, slots, -1) for t in (said, mine)]
    positive = torch.cat([parts[0], torch.zeros_like(fitting)], 2)
    candidate = torch.cat([parts[1], public & ~fitting], 2)
    asked_own = positive.any(2) & valid
    by_own = multi_positive(torch.cat([to_reports, to_bank], 2), positive, candidate)
    return record_mean(torch.cat([by_bank, by_own], 1), torch.cat([asked_bank, asked_own], 1))


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
