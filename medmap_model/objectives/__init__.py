"""Objectives, one small module each; every one returns named terms. `STAGE1` maps a setting to an objective."""

from __future__ import annotations

from medmap_model.objectives.asymmetric import asymmetric, image_to_text, text_to_image
from medmap_model.objectives.bank import bank_alone, bank_by_record
from medmap_model.objectives.base import (
    Objective,
    Past,
    Sharpness,
    Texts,
    bounded_temperature,
    by_slot,
    multi_positive,
    record_mean,
    slot_mean,
)
from medmap_model.objectives.dhn_nce import decoupled, dhn_nce
from medmap_model.objectives.finetune import (
    alignment,
    binary_cross_entropy,
    cross_entropy,
    focal,
    supervised,
    supervised_share,
)
from medmap_model.objectives.partial_ot import believed, partial_ot
from medmap_model.objectives.patient import consistency_by_record, label_by_record
from medmap_model.objectives.positives import Said, prompt_positives, report_positives, reports_that_fit
from medmap_model.objectives.pretrain import STAGE1, pretrain
from medmap_model.objectives.queue import Queue
from medmap_model.objectives.siglip import pairs, siglip
from medmap_model.objectives.transport import partial_plan

__all__ = [
    "STAGE1",
    "Objective",
    "Past",
    "Queue",
    "Said",
    "Sharpness",
    "Texts",
    "alignment",
    "asymmetric",
    "bank_alone",
    "bank_by_record",
    "believed",
    "binary_cross_entropy",
    "bounded_temperature",
    "by_slot",
    "consistency_by_record",
    "cross_entropy",
    "decoupled",
    "dhn_nce",
    "focal",
    "image_to_text",
    "label_by_record",
    "multi_positive",
    "pairs",
    "partial_ot",
    "partial_plan",
    "pretrain",
    "prompt_positives",
    "record_mean",
    "report_positives",
    "reports_that_fit",
    "siglip",
    "slot_mean",
    "supervised",
    "supervised_share",
    "text_to_image",
]
