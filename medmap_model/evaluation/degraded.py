"""How a model bears degraded modalities: lost signal in every subset of them, and noise in all -> AUROC per level.

Formulas: RMM and NM of arXiv 2503.18445 (docs/evaluation.md).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medmap_model.batch import Batch
from medmap_model.evaluation.metrics import scores
from medmap_model.evaluation.missing import METRICS, MOST, Change, Encodings, encode_all, subset_probabilities, subsets
from medmap_model.model import MedMAP

LOST = (0.25, 0.5, 0.75)  # share of voxels without signal
NOISE = {"low": (0.05, 0.1), "mid": (0.1, 0.2), "high": (0.2, 0.5)}  # salt-and-pepper density, Gaussian deviation

Batches = Callable[[], Iterable[Batch]]


def lost_signal(
    model: MedMAP, clean: Encodings, batches: Batches, *, known: Collection[str] | None = None, seed: int
) -> dict[str, Any]:
    """Random-missing modality (RMM): share of voxels lost -> mean and worst AUROC over every subset of the modalities.

    The modalities of a subset lose that share of their voxels, the others none. Encoded once per share; the fusion is run
    anew per subset. None, with a reason, where the scores are undefined or the subsets too many.
    """
    names, usable = model.slots(clean.organ), clean.present.any(0).cpu().numpy()
    multi_label = model.vocabulary.organs[clean.organ].multi_label
    if usable.sum() > MOST:
        reason = f"{usable.sum()} modalities have too many subsets; {MOST} is the most"
        return {f"{rate:g}": {"mean": None, "worst": None, "reason": reason} for rate in LOST}
    hit, result = subsets(usable), {}
    for rate in LOST:
        damaged = encode_all(model, batches(), known=known, change=_losing(rate, seed))
        probabilities = subset_probabilities(model, clean, ~hit, degraded=damaged.embedded)
        found = [scores(clean.label, p, multi_label=multi_label, metrics=METRICS) for p in probabilities]
        values = [f["auroc"] for f in found]
        if not values or None in values:
            reason = found[0].get("reasons", {}).get("auroc") if found else "there is no volume"
            result[f"{rate:g}"] = {"mean": None, "worst": None, "reason": reason}
            continue
        worst = int(np.argmin(values))
        result[f"{rate:g}"] = {
            "mean": float(np.mean(values)),
            "all": values[0],
            "worst": {"value": values[worst], "lost": [m for m, h in zip(names, hit[worst], strict=True) if h]},
        }
    return result


def noisy(
    model: MedMAP, batches: Batches, *, known: Collection[str] | None = None, seed: int
) -> dict[str, float | None]:
    """Noisy modality (NM): level -> AUROC with noise in all modalities. Every level encodes the studies anew."""
    result: dict[str, float | None] = {}
    for level, how in NOISE.items():
        encodings = encode_all(model, batches(), known=known, change=_adding(*how, seed))
        p = subset_probabilities(model, encodings, np.ones((1, encodings.present.shape[1]), bool))[0]
        multi_label = model.vocabulary.organs[encodings.organ].multi_label
        result[level] = scores(encodings.label, p, multi_label=multi_label, metrics=METRICS)["auroc"]
    return result


def _losing(rate: float, seed: int) -> Change:
    return lambda batch, at: lose_voxels(batch, rate=rate, seed=seed + at)


def _adding(density: float, deviation: float, seed: int) -> Change:
    return lambda batch, at: add_noise(batch, density=density, deviation=deviation, seed=seed + at)


def lose_voxels(batch: Batch, *, rate: float, seed: int) -> Tensor:
    """Volumes in which each voxel has lost its signal with chance `rate`: it has the volume's lowest value, as air has.

    Our reading of RMM: of a z-scored volume the published 0 would be average tissue.
    """
    low, _ = _range(batch.volumes)
    lost = torch.rand(batch.volumes.shape, generator=torch.Generator().manual_seed(seed)) < rate
    return torch.where(lost & _shown(batch), low, batch.volumes)


def add_noise(batch: Batch, *, density: float, deviation: float, seed: int) -> Tensor:
    """Volumes with Gaussian noise, then salt and pepper (a share `density` of the voxels, half each).

    deviation: as a share of the volume's range of intensities.
    """
    generator = torch.Generator().manual_seed(seed)
    low, high = _range(batch.volumes)
    noise = torch.randn(batch.volumes.shape, generator=generator) * deviation * (high - low)
    draw = torch.rand(batch.volumes.shape, generator=generator)
    volumes = torch.where(draw < density / 2, low, batch.volumes + noise)
    volumes = torch.where(draw > 1 - density / 2, high, volumes)
    return torch.where(_shown(batch), volumes, batch.volumes)


def _range(volumes: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of each volume, (B, M, 1, 1, 1) both."""
    return volumes.amin((2, 3, 4), keepdim=True), volumes.amax((2, 3, 4), keepdim=True)


def _shown(batch: Batch) -> Tensor:
    return batch.present[:, :, None, None, None]
