"""Losses of stage 2: supervision on the labels, KL alignment with the label's text, and the ramp between them."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from configs.stages import FinetuneConfig
from medmap_model.text.bank import targets
from medmap_model.vocabulary import Organ


def supervised_share(progress: float, *, floor: float) -> float:
    """Cosine ramp of the supervised weight: 1 at progress 0, floor at progress 1 (MedMAP's w(t), with a floor)."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


def cross_entropy(logits: Tensor, label: Tensor, *, smoothing: float) -> Tensor:
    """Mean cross-entropy over the records with a known label (label >= 0); 0 when there is none. (B, C), (B,)."""
    total = F.cross_entropy(logits, label, ignore_index=-1, label_smoothing=smoothing, reduction="sum")
    return total / (label >= 0).sum().clamp(min=1)


def binary_cross_entropy(logits: Tensor, label: Tensor, *, smoothing: float) -> Tensor:
    """As `cross_entropy`, of a multi-label organ: (B, C), (B,) bit sets; the mean over the classes, each there or not.

    smoothing moves a target from 0 or 1 towards 1/2 by half of it.
    """
    wanted = targets(label, logits.shape[1], True).to(logits.dtype) * (1 - smoothing) + smoothing / 2
    row = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(1)
    return _known_mean(row, label)


def focal(logits: Tensor, label: Tensor, *, gamma: float, multi_label: bool = False) -> Tensor:
    """(1 - p)^gamma * -log p, p the probability of what is true (Lin et al. 2017, arXiv 1708.02002, eq. 4).

    Mean over the records with a known label, 0 when there is none; without class weights. (B, C), (B,). multi_label:
    each class is there or not, and the mean over the classes is taken, as in the paper's binary form.
    """
    wanted = targets(label, logits.shape[1], multi_label).bool()
    if multi_label:
        log_p = F.logsigmoid(logits.where(wanted, -logits))
    else:
        log_p = logits.log_softmax(1)
    easy = (1 - log_p.exp()).clamp(min=1e-6)  # at 0 a power below 1 has no finite gradient
    each = -(easy**gamma) * log_p
    row = each.mean(1) if multi_label else each.masked_fill(~wanted, 0.0).sum(1)
    return _known_mean(row, label)


def supervised(logits: Tensor, label: Tensor, organ: Organ, settings: FinetuneConfig) -> dict[str, Tensor]:
    """What the labels teach: logits (B, C), label (B,) -> terms, among them `loss`.

    settings.supervised: cross_entropy, focal, or mixed, 0.4 of the first and 0.6 of the second as in MedMAP's code. A
    multi-label organ has their binary forms. A record whose label is not known adds nothing.
    """
    terms: dict[str, Tensor] = {}
    if settings.supervised != "focal":
        function = binary_cross_entropy if organ.multi_label else cross_entropy
        terms["cross_entropy"] = function(logits, label, smoothing=settings.label_smoothing)
    if settings.supervised != "cross_entropy":
        terms["focal"] = focal(logits, label, gamma=settings.focal_gamma, multi_label=organ.multi_label)
    if settings.supervised == "mixed":
        return {"loss": 0.4 * terms["cross_entropy"] + 0.6 * terms["focal"], **terms}
    return {"loss": terms[settings.supervised], **terms}


def alignment(feature: Tensor, target: Tensor, label: Tensor) -> dict[str, Tensor]:
    """KL(softmax(target) || softmax(feature)), mean over the records with a known label; 0 when there is none.

    feature (B, D): the fused feature, as its last layer norm leaves it. target (B, D): the projected prompt text of the
    true label, a training target only, through which no gradient flows. MedMAP's alignment term (arXiv 2602.23652). The
    target is brought to the feature's scale first: the softmax of a projection as it comes is all but uniform, and to
    align with that would only flatten the feature.
    """
    goal = F.log_softmax(F.layer_norm(target.detach(), target.shape[1:]), 1)
    row = (goal.exp() * (goal - F.log_softmax(feature, 1))).sum(1)  # F.kl_div has no rule for vmap
    return {"loss": _known_mean(row, label)}


def _known_mean(row: Tensor, label: Tensor) -> Tensor:
    known = label >= 0
    return row.masked_fill(~known, 0.0).sum() / known.sum().clamp(min=1)
