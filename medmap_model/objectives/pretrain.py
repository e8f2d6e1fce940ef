"""Stage 1 as a whole: gathers a batch's texts, calls the objective that the settings name, adds the terms they ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from configs.schema import PretrainConfig
from medmap_model.batch import Batch
from medmap_model.objectives.asymmetric import asymmetric
from medmap_model.objectives.base import Objective, Sharpness, Texts, prompt_positives, report_positives
from medmap_model.objectives.queue import Queue

if TYPE_CHECKING:
    from medmap_model.model import MedMAP

STAGE1: dict[str, Objective] = {"asymmetric": asymmetric}


def pretrain(
    model: MedMAP,
    batch: Batch,
    image: Tensor,
    valid: Tensor,
    sharpness: Sharpness,
    config: PretrainConfig,
    queue: Queue | None,
) -> dict[str, Tensor]:
    """Named terms of stage 1, among them `loss`. image (B, M + 1, D) unit norm, valid (B, M + 1) bool."""
    reports = _reports(model, batch, config)
    bank = None if config.bank == "none" else _bank(model, batch, valid.shape[1], config)
    return STAGE1[config.objective](image, valid, reports, bank, sharpness, config)


def _reports(model: MedMAP, batch: Batch, config: PretrainConfig) -> Texts:
    """The batch's own reports: (B, D)."""
    positive = report_positives(
        batch.label, batch.report, batch.has_report, positives=config.positives, same_text=config.same_text
    )
    return Texts(model.text_embeddings(batch.report), positive, batch.has_report)


def _bank(model: MedMAP, batch: Batch, slots: int, config: PretrainConfig) -> Texts:
    """The vocabulary's public texts; one that is about a modality may be compared with that modality's images alone."""
    bank = model.texts.bank(batch.organ, config.bank)
    positive = prompt_positives(
        batch.label,
        batch.report,
        batch.has_report,
        bank.embedding,
        bank.label,
        positives=config.positives,
        same_text=config.same_text,
    )
    slot = torch.arange(slots, device=bank.slot.device)[:, None]
    candidate = (bank.slot < 0) | (bank.slot == slot)  # (S, T)
    return Texts(model.text_embeddings(bank.embedding), positive, candidate[None])
