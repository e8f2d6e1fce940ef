"""Objectives, one small module each; every one returns named terms. `STAGE1` maps a setting to an objective."""

from __future__ import annotations

from medmap_model.objectives.asymmetric import asymmetric, image_to_text, text_to_image
from medmap_model.objectives.base import (
    Objective,
    Sharpness,
    Texts,
    bounded_temperature,
    by_slot,
    multi_positive,
    prompt_positives,
    report_positives,
    slot_mean,
)
from medmap_model.objectives.finetune import alignment, cross_entropy, supervised, supervised_share
from medmap_model.objectives.pretrain import STAGE1, pretrain
from medmap_model.objectives.queue import Queue

__all__ = [
    "STAGE1",
    "Objective",
    "Queue",
    "Sharpness",
    "Texts",
    "alignment",
    "asymmetric",
    "bounded_temperature",
    "by_slot",
    "cross_entropy",
    "image_to_text",
    "multi_positive",
    "pretrain",
    "prompt_positives",
    "report_positives",
    "slot_mean",
    "supervised",
    "supervised_share",
    "text_to_image",
]
