"""Stage 1 as a whole: the objective that the settings name on a batch's texts, and the terms they ask for beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from configs.stages import PretrainConfig
from medmap_model.batch import Batch
from medmap_model.objectives.asymmetric import asymmetric
from medmap_model.objectives.bank import bank_alone
from medmap_model.objectives.base import Objective, Sharpness
from medmap_model.objectives.dhn_nce import dhn_nce
from medmap_model.objectives.gather import bank_texts, report_texts
from medmap_model.objectives.partial_ot import partial_ot
from medmap_model.objectives.patient import consistency_by_record, label_by_record
from medmap_model.objectives.queue import Queue
from medmap_model.objectives.siglip import siglip

if TYPE_CHECKING:
    from medmap_model.model import MedMAP

STAGE1: dict[str, Objective] = {
    "asymmetric": asymmetric,
    "siglip": siglip,
    "dhn_nce": dhn_nce,
    "partial_ot": partial_ot,
    "bank": bank_alone,
}


def pretrain(
    model: MedMAP,
    batch: Batch,
    image: Tensor,
    valid: Tensor,
    sharpness: Sharpness,
    config: PretrainConfig,
    queue: Queue | None,
) -> dict[str, Tensor]:
    """Named terms of stage 1, among them `loss`; image (B, M + 1, D) unit norm, valid (B, M + 1) bool.

    loss = the objective's + label_weight * labels + consistency * consistency. The batch joins the queue afterwards.
    With objective=bank and positives and bank as they are, the loss is the mean of the losses of its records alone,
    whichever of these terms are on.
    """
    separable = config.objective == "bank"
    records = None if queue is None or separable else queue.records(batch.organ)
    reports, past = report_texts(model, batch, config, records)
    bank = None if config.bank == "none" else bank_texts(model, batch, valid.shape[1], config)
    terms = STAGE1[config.objective](image, valid, reports, bank, sharpness, config, past)
    if config.label_weight:
        classes, several = model.class_embeddings(batch.organ), model.vocabulary.organs[batch.organ].multi_label
        by_record = label_by_record(image, valid, classes, batch.label, sharpness.temperature, multi_label=several)
        terms["labels"] = by_record.mean()
        terms["loss"] = terms["loss"] + config.label_weight * terms["labels"]
    if config.consistency:
        terms["consistency"] = consistency_by_record(image, valid).mean()
        terms["loss"] = terms["loss"] + config.consistency * terms["consistency"]
    if queue is not None and not separable:
        queue.push(batch, image, valid)
    return terms
