"""Which modality mattered, (N, M), and where in it, (B, M, D, H, W): what the model's answer loses when it is hidden.

N or B studies, M modality slots, C classes. The answer is the probability of the target: the true class where it is known
(and there is one: not for a multi-label organ), else the class that the model finds most probable.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medmap_model.batch import Batch
from medmap_model.encoders import full_precision
from medmap_model.evaluation.missing import Encodings, in_full_precision, subset_probabilities
from medmap_model.model import Embedded, MedMAP

_AT_ONCE = 64  # occluded volumes that are encoded together


def targets(probabilities: np.ndarray, label: np.ndarray, *, multi_label: bool) -> np.ndarray:
    """(N,) int64: the class whose probability is explained."""
    guess = probabilities.argmax(1)
    return guess if multi_label else np.where(label >= 0, label, guess)


def modality_importance(model: MedMAP, encodings: Encodings) -> np.ndarray:
    """(N, M) float: drop of the target's probability when a modality is hidden; nan where it is absent.

    A study's only modality: the drop to equal probabilities. Negative: the model does better without it. Drops do not add
    up: modalities that say the same can stand in for one another.
    """
    slots = encodings.present.shape[1]
    kept = np.concatenate([np.ones((1, slots), bool), ~np.eye(slots, dtype=bool)])
    p = subset_probabilities(model, encodings, kept)
    multi_label = model.vocabulary.organs[encodings.organ].multi_label
    target = targets(p[0], encodings.label, multi_label=multi_label)
    answer = p[:, np.arange(len(target)), target]
    return np.where(encodings.present.cpu().numpy(), (answer[0] - answer[1:]).T, np.nan)


def mean_importance(model: MedMAP, encodings: Encodings) -> dict[str, float]:
    """Modality -> mean drop over the studies that have it; a modality that nobody has is left out."""
    each = modality_importance(model, encodings)
    slots = model.slots(encodings.organ)
    return {m: float(np.nanmean(each[:, i])) for i, m in enumerate(slots) if np.isfinite(each[:, i]).any()}


@torch.no_grad()
def occlusion(model: MedMAP, batch: Batch, *, window_voxels: int, stride_voxels: int) -> Tensor:
    """(B, M, D, H, W): mean drop of the target's probability over the windows that cover a voxel; 0 in absent slots.

    Occlusion sensitivity (Zeiler and Fergus 2014, arXiv 1311.2901), one modality at a time. A window shows the mean of
    its wider surroundings instead of a constant: a patch of one grey would itself be a finding (Fong and Vedaldi 2017,
    arXiv 1704.03296). Only the occluded modality is encoded anew.
    """
    model.eval()
    embedded = in_full_precision(model.encode(batch.volumes, batch.present, batch.organ))
    p = _probabilities(model, embedded, batch.present, batch.organ)
    multi_label = model.vocabulary.organs[batch.organ].multi_label
    target = targets(p.cpu().numpy(), batch.label.cpu().numpy(), multi_label=multi_label)
    heat = torch.zeros_like(batch.volumes)
    blurred = _surroundings(batch.volumes, window_voxels)
    masks = _windows(batch.volumes.shape[2:], window_voxels, stride_voxels).to(batch.volumes.device)
    cover = masks.sum(0).clamp(min=1)
    for b, m in batch.present.nonzero().tolist():
        drops = []
        for part in masks.split(_AT_ONCE):
            hidden = torch.where(part, blurred[b, m], batch.volumes[b, m])
            answer = _one_changed(model, batch, embedded, hidden, study=b, slot=m)[:, target[b]]
            drops.append(p[b, target[b]] - answer)
        heat[b, m] = torch.einsum("p,pdhw->dhw", torch.cat(drops), masks.to(heat.dtype)) / cover
    return heat


def _one_changed(model: MedMAP, batch: Batch, embedded: Embedded, volumes: Tensor, *, study: int, slot: int) -> Tensor:
    """Probabilities (P, C) of one study when one of its modalities is each of `volumes` (P, D, H, W)."""
    count, slots = len(volumes), batch.present.shape[1]
    only = torch.zeros(count, slots, dtype=torch.bool, device=volumes.device)
    only[:, slot] = True
    # Every slot shows the same memory: only the one that is asked for is read.
    new = in_full_precision(model.encode(volumes[:, None].expand(-1, slots, -1, -1, -1), only, batch.organ))
    pooled = embedded.pooled[study].expand(count, -1, -1).clone()
    pooled[:, slot] = new.pooled[:, slot]
    tokens = None
    if embedded.tokens is not None and new.tokens is not None:
        tokens = embedded.tokens[study].expand(count, -1, -1, -1).clone()
        tokens[:, slot] = new.tokens[:, slot]
    present = batch.present[study].expand(count, -1)
    return _probabilities(model, Embedded(pooled, tokens), present, batch.organ)


def _probabilities(model: MedMAP, embedded: Embedded, present: Tensor, organ: str) -> Tensor:
    return model.probabilities(full_precision(model.classify(model.fuse(embedded, present, organ), organ)), organ)


def _windows(shape: torch.Size, window: int, stride: int) -> Tensor:
    """(P, D, H, W) bool: cubes of `window` voxels, every `stride`, the last one flush with the end."""
    marks = []
    for n in shape:
        starts = [*range(0, max(n - window, 0), stride), max(n - window, 0)]
        mark = torch.zeros(len(starts), n, dtype=torch.bool)
        for i, start in enumerate(starts):
            mark[i, start : start + window] = True
        marks.append(mark)
    d, h, w = marks
    cubes = d[:, None, None, :, None, None] & h[None, :, None, None, :, None] & w[None, None, :, None, None, :]
    return cubes.flatten(0, 2)


def _surroundings(volumes: Tensor, window: int) -> Tensor:
    """(B, M, D, H, W): the mean over a cube of about three windows around each voxel."""
    for axis in range(2, 5):  # one axis after the other: the same mean at a fraction of the cost
        edge = min(3 * window, 2 * (volumes.shape[axis] // 2) - 1) | 1
        lines = volumes.movedim(axis, -1)
        pooled = F.avg_pool1d(lines.flatten(0, -2)[:, None], edge, 1, edge // 2, count_include_pad=False)
        volumes = pooled[:, 0].unflatten(0, lines.shape[:-1]).movedim(-1, axis)
    return volumes
