"""DHN-NCE: decoupled contrast in which hard negatives weigh more (MedCLIP-SAM, Koleilat et al. 2024, arXiv 2403.20253).

L = -log sum_P exp(s) + log sum_N w exp(s), s = cosine / temperature, over positives P and negatives N of a row;
w_n = |N| exp(beta s_n) / sum_N exp(beta s). Decoupled: no positive in the denominator (Yeh et al. 2022, arXiv 2110.06848).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from configs.stages import PretrainConfig
from medmap_model.objectives.asymmetric import Rows, contrast
from medmap_model.objectives.base import EXCLUDED, Past, Sharpness, Texts


def decoupled(logits: Tensor, positive: Tensor, candidate: Tensor, *, hardness: float) -> Tensor:
    """(..., T) -> (...): the loss of each row; beta = hardness. A row without a negative is 0: it has nothing to refuse.

    The weights carry no gradient: they say how often a negative would be drawn, and with a gradient through them easy
    negatives would be drawn towards the image. beta = 0 is decoupled InfoNCE. Negatives are masked before the
    exponential; a product with the mask instead would leave exp(0) for each of them. May be negative.
    """
    negative = candidate & ~positive
    hard = (hardness * logits.detach()).masked_fill(~negative, EXCLUDED)
    log_weight = hard - torch.logsumexp(hard, -1, keepdim=True) + negative.sum(-1, keepdim=True).clamp(min=1).log()
    push = torch.logsumexp((logits + log_weight).masked_fill(~negative, EXCLUDED), -1)
    pull = torch.logsumexp(logits.masked_fill(~positive, EXCLUDED), -1)
    return (push - pull).masked_fill(~negative.any(-1), 0.0)


def dhn_nce(
    image: Tensor,
    valid: Tensor,
    reports: Texts,
    bank: Texts | None,
    sharpness: Sharpness,
    settings: PretrainConfig,
    past: Past | None = None,
) -> dict[str, Tensor]:
    """Both directions with beta = settings.hardness, weighted and named as in `asymmetric`."""
    row = partial(decoupled, hardness=settings.hardness)
    return contrast(image, valid, reports, bank, sharpness, settings, past, Rows(row, row, row))
