"""Terms of one patient alone, beside the contrast: classification by class prompts, agreement of modalities. Separable."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from medmap_model.objectives.base import record_mean
from medmap_model.text.bank import targets


def label_by_record(
    image: Tensor, valid: Tensor, classes: Tensor, label: Tensor, temperature: Tensor, *, multi_label: bool
) -> Tensor:
    """(B,): cross-entropy of the mean image over the classes; of a multi-label organ the mean binary one per class.

    image (B, S, D) unit norm, whose last slot is the mean image; valid (B, S) bool; classes (C, D) unit norm, the
    classes' prompt embeddings; label (B,), -1 unknown: 0. The label half of Merlin's joint label + report training
    (Blankemeier et al. 2024, arXiv 2406.06512), with text embeddings for a head: what it learns serves zero-shot detection.
    """
    logits = image[:, -1] @ classes.T / temperature
    wanted = targets(label, len(classes), multi_label).to(logits.dtype)
    if multi_label:
        row = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(1)
    else:
        row = -(logits.log_softmax(1) * wanted).sum(1)
    return row.masked_fill(~((label >= 0) & valid[:, -1]), 0.0)


def consistency_by_record(image: Tensor, valid: Tensor) -> Tensor:
    """(B,): mean over a patient's modalities of 1 - cosine with the mean of its OTHER modalities; 0 with fewer than two.

    image (B, S, D) unit norm, whose last slot, the mean image, is left out; valid (B, S) bool. No gradient flows into
    the target, and no statistic of the batch enters (arXiv 2011.10566 without predictor; VICReg's variance term would
    couple patients). Alone it would collapse: an encoder that gives every volume the same vector has loss 0, and the
    stopped gradient does not forbid that. It is a term beside a contrast with texts, for which a constant image
    embedding is the worst: the texts of different patients differ, and the constant cannot be near them all. Keep
    its weight below the contrast's.
    """
    here = valid[:, :-1]
    modality = image[:, :-1] * here[..., None]
    others = F.normalize((modality.sum(1, keepdim=True) - modality).detach(), dim=2)
    apart = 1 - (modality * others).sum(2)
    return record_mean(apart, here & (here.sum(1, keepdim=True) > 1))
