"""Losses of stage 2: supervision on the labels, KL alignment with the label's text, and the ramp between them."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from configs.schema import FinetuneConfig
from medmap_model.vocabulary import Organ


def supervised_share(progress: float, *, floor: float) -> float:
    """Cosine ramp of the supervised weight: 1 at progress 0, floor at progress 1 (MedMAP's w(t), with a floor)."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


def cross_entropy(logits: Tensor, label: Tensor, *, smoothing: float) -> Tensor:
    """Mean cross-entropy over the records with a known label (label >= 0); 0 when there is none. (B, C), (B,)."""
    total = F.cross_entropy(logits, label, ignore_index=-1, label_smoothing=smoothing, reduction="sum")
    return total / (label >= 0).sum().clamp(min=1)


def supervised(logits: Tensor, label: Tensor, organ: Organ, settings: FinetuneConfig) -> dict[str, Tensor]:
    """What the labels teach, as `settings.supervised` says: (B, C), (B,) -> terms, among them `loss`."""
    return {"loss": cross_entropy(logits, label, smoothing=settings.label_smoothing)}


def alignment(feature: Tensor, target: Tensor, label: Tensor) -> dict[str, Tensor]:
    """KL(softmax(target) || softmax(feature)), mean over the records with a known label; 0 when there is none.

    feature (B, D): the fused feature, as its last layer norm leaves it. target (B, D): the projected prompt text of the
    true label, a training target only, through which no gradient flows. MedMAP's alignment term (arXiv 2602.23652). The
    target is brought to the feature's scale first: the softmax of a projection as it comes is all but uniform, and to
    align with that would only flatten the feature.
    """
    goal = F.log_softmax(F.layer_norm(target.detach(), target.shape[1:]), 1)
    row = F.kl_div(F.log_softmax(feature, 1), goal, log_target=True, reduction="none").sum(1)
    known = label >= 0
    return {"loss": row.masked_fill(~known, 0.0).sum() / known.sum().clamp(min=1)}
