"""Partial optimal transport that ignores mismatched reports: a plan says which pairs to believe, the contrast does the rest.

Inspired by Med3DInsight (arXiv 2509.09064), no reproduction: its loss -sum_i log pi_ii pulls hardest at exactly the pairs
that the plan leaves out. Here the plan has no gradient and multiplies, so that a pair without mass has no gradient either.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from configs.stages import PretrainConfig
from medmap_model.objectives.asymmetric import Row, Rows, contrast
from medmap_model.objectives.base import EXCLUDED, Past, Sharpness, Texts, by_slot, multi_positive
from medmap_model.objectives.transport import partial_plan


class Believed(NamedTuple):
    """What the plan sends along declared pairs (a text and an image that it is said to describe).

    pair (S, B + Q, T): mass in units of one image's capacity. image (B + Q, S), report (B, S): summed over the texts, over
    the images. Those with a share in the plan: of_image (B + Q, S) bool, of_report (B, S) bool.
    """

    pair: Tensor
    image: Tensor
    report: Tensor
    of_image: Tensor
    of_report: Tensor


@torch.no_grad()
def believed(image: Tensor, valid: Tensor, texts: Texts, past: Past | None, *, mass: float, epsilon: float) -> Believed:
    """The plan between the images and the reports of each slot, on cosine distance.

    Every image that has a declared text and every report have the capacity 1 / n, n such images in the slot, and the plan
    is free to send an image's mass to any report. Only what goes along declared pairs is believed: an image whose report
    is another patient's sends its mass to a report that fits, or, there being none, to nobody. With several positives
    the mass of all of them counts, as each says what the image shows. past: rows of past images. A text that may be
    compared with one record alone (a hard negative) takes no mass.
    """
    own = len(image)
    declared = (by_slot(texts.positive) & by_slot(texts.candidate)).expand(-1, image.shape[1], -1)
    if past is not None:
        image, valid = torch.cat([image, past.image]), torch.cat([valid, past.valid])
        declared = torch.cat([declared, past.positive[:, None].expand(-1, image.shape[1], -1)])
    declared = declared & valid[..., None]
    share = declared.any(2)
    count = share.sum(0).clamp(min=1)[:, None]  # (S, 1)
    shared = by_slot(texts.candidate).all(0).expand(image.shape[1], -1)  # (S, T)
    cost = 1 - (image @ texts.embedding.T).transpose(0, 1)
    plan = partial_plan(cost, share.T / count, shared / count, mass=mass, epsilon=epsilon)
    pair = plan * declared.transpose(0, 1) * count[..., None]
    told = pair[..., :own]
    return Believed(pair, pair.sum(2).T, told.sum(1).T, share, declared[..., :own].any(0).T)


def partial_ot(
    image: Tensor,
    valid: Tensor,
    reports: Texts,
    bank: Texts | None,
    sharpness: Sharpness,
    settings: PretrainConfig,
    past: Past | None = None,
) -> dict[str, Tensor]:
    """The terms of `asymmetric`, of believed pairs; with `ot_believed`, the share of the mass that declared pairs got.

    ot_form="weights": each row of InfoNCE times its believed mass. "cost": the transported cost, sum of pi * c over
    declared pairs, with c the surprise -log softmax of that one pair; the distance that the plan is made of would, as a
    loss, draw all images to one point. Either is scaled so that the mean weight is ot_mass (at most 1 each): while nothing
    is learned and the plan is flat, the loss is ot_mass * InfoNCE. The plan needs texts to choose from: B = 2 works and
    means little, take a queue. A batch in which most pairs are wrong cannot be told from one with none.
    """
    plan = believed(image, valid, reports, past, mass=settings.ot_mass, epsilon=settings.ot_epsilon)
    own = len(image)
    of_image = _scaled(plan.image, plan.of_image, settings.ot_mass)[:own]
    of_report = _scaled(plan.report, plan.of_report, settings.ot_mass)
    # By the words of reports, the bank's positives are no better than the reports; by the labels, they are.
    of_bank = (
        torch.where(plan.of_image[:own], of_image, 1.0) if settings.positives == "text" else torch.ones_like(of_image)
    )
    to_report: Row = multi_positive
    to_image: Row = multi_positive
    if settings.ot_form == "cost":
        to_report = _transported(plan.pair[:, :own].transpose(0, 1))  # (B, S, T)
        to_image = _transported(plan.pair[..., :own].permute(2, 0, 1))  # (B, S, B + Q)
    rows = Rows(_weighted(to_report, of_image), _weighted(to_image, of_report), _weighted(multi_positive, of_bank))
    terms = contrast(image, valid, reports, bank, sharpness, settings, past, rows)
    return terms | {"ot_believed": plan.image.sum() / plan.of_image.sum().clamp(min=1)}


def _weighted(row: Row, weight: Tensor) -> Row:
    return lambda logits, positive, candidate: row(logits, positive, candidate) * weight


def _transported(pair: Tensor) -> Row:
    """Rows whose loss is the mean surprise of their declared pairs, by mass; pair (..., T)."""
    by_mass = pair / pair.sum(-1, keepdim=True).clamp(min=1e-12)

    def row(logits: Tensor, positive: Tensor, candidate: Tensor) -> Tensor:
        every = torch.logsumexp(logits.masked_fill(~candidate, EXCLUDED), -1, keepdim=True)
        return (by_mass * (every - logits)).sum(-1)

    return row


def _scaled(mass: Tensor, part: Tensor, mean: float) -> Tensor:
    """Masses (R, S) as weights with the given mean over each slot's rows that have a part, none above 1."""
    average = (mass * part).sum(0) / part.sum(0).clamp(min=1)
    return (mean * mass / average.clamp(min=1e-12)).clamp(max=1.0)
