"""How a model bears missing and degraded modalities: encoded once (N, M, ..), fused anew for every subset -> (S, N, C).

N studies, M modality slots, S subsets, C classes. Formulas: EMM, RMM and NM of arXiv 2503.18445 (docs/evaluation.md).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from medmap_model.batch import Batch
from medmap_model.encoders import full_precision
from medmap_model.evaluation.metrics import scores
from medmap_model.fusion import FusionInput
from medmap_model.model import Embedded, MedMAP

METRICS = ("auroc", "balanced_accuracy")
RATES = (0.05, 0.1, 0.2)  # chance of each modality to be missing
ZEROED = (0.25, 0.5, 0.75)  # share of voxels without signal
NOISE = {"low": (0.05, 0.1), "mid": (0.1, 0.2), "high": (0.2, 0.5)}  # salt-and-pepper density, Gaussian deviation
MOST = 10  # modalities; their 1,023 subsets are the most that are all tried
_ROWS = 16  # studies fused at a time: what they need stays in a core's cache

Change = Callable[[Batch, int], Tensor]


def in_full_precision(embedded: Embedded) -> Embedded:
    """float32 at least, whatever the encoders ran in."""
    tokens = None if embedded.tokens is None else full_precision(embedded.tokens)
    return Embedded(full_precision(embedded.pooled), tokens)


class Encodings(NamedTuple):
    """The studies of one organ after their encoders: all that fusion, zero-shot detection and retrieval need of them.

    embedded: pooled (N, M, D) and tokens, float32 at least. present: (N, M) bool. label: (N,) int64, -1 unknown.
    """

    organ: str
    embedded: Embedded
    present: Tensor
    label: np.ndarray


@torch.no_grad()
def encode_all(
    model: MedMAP, batches: Iterable[Batch], *, known: Collection[str] | None = None, change: Change | None = None
) -> Encodings:
    """Encode studies of one organ on the model's device. Raises ValueError when there is none.

    known: modalities that the model was trained on (None: all); others are hidden from it. change: (batch, number of
    studies before it) -> other volumes of the same shape.
    """
    model.eval()
    device = next(model.parameters()).device
    parts: list[Embedded] = []
    present: list[Tensor] = []
    label: list[Tensor] = []
    organ, done = "", 0
    for batch in batches:
        organ = batch.organ
        keep = torch.tensor([known is None or m in known for m in model.slots(organ)])
        volumes = batch.volumes if change is None else change(batch, done)
        there = (batch.present & keep).to(device)
        part = model.encode(volumes.to(device), there, organ)
        parts.append(in_full_precision(part))
        present.append(there)
        label.append(batch.label)
        done += len(batch)
    if not parts:
        raise ValueError("there is no study to encode")
    tokens = None
    if parts[0].tokens is not None:
        most = max(p.tokens.shape[2] for p in parts if p.tokens is not None)
        # A batch in which nothing is present has one token per slot; what an absent slot holds does not matter.
        padded = [p.tokens.expand(-1, -1, most, -1) for p in parts if p.tokens is not None]
        tokens = torch.cat(padded)
    embedded = Embedded(torch.cat([p.pooled for p in parts]), tokens)
    return Encodings(organ, embedded, torch.cat(present), torch.cat(label).cpu().numpy())


@torch.no_grad()
def subset_probabilities(model: MedMAP, encodings: Encodings, kept: np.ndarray) -> np.ndarray:
    """(S, M) bool, which slots may be looked at -> (S, N, C) probabilities.

    A study counts with what it has of the kept slots; with nothing left every class gets 1 / C. The fusion is given the
    kept slots alone: the same as hiding the others, at half the cost.
    """
    model.eval()
    organ, (pooled, tokens), present = encodings.organ, encodings.embedded, encodings.present
    slots = model.slots(organ)
    modality = torch.stack([getattr(model.projections[m], "embedding") for m in slots])  # noqa: B009
    texts = model.text_projection(torch.cat([model.texts.query(organ)[None], model.texts.modalities(organ)]))
    n, classes = len(present), len(model.vocabulary.organs[organ].abnormalities)
    out = np.full((len(kept), n, classes), 1 / classes, np.float32)
    for s, chosen in enumerate(kept):
        at = torch.from_numpy(np.flatnonzero(chosen)).to(present.device)
        rows = present[:, at].any(1).nonzero()[:, 0] if len(at) else at
        for part in rows.split(_ROWS):
            given = FusionInput(
                pooled[part][:, at],
                None if tokens is None else tokens[part][:, at],
                present[part][:, at],
                modality[at],
                texts[1:][at],
                texts[0],
            )
            p = model.probabilities(full_precision(model.classify(model.fusion(given), organ)), organ)
            out[s, part.cpu().numpy()] = p.float().cpu().numpy()
    return out


def subsets(usable: np.ndarray) -> np.ndarray:
    """(M,) bool, modalities to combine -> (2^k - 1, M) bool: every non-empty set to keep, the whole one first."""
    slots = np.flatnonzero(usable)
    codes = np.arange(2 ** len(slots) - 1, 0, -1)
    kept = np.zeros((len(codes), len(usable)), bool)
    kept[:, slots] = (codes[:, None] >> np.arange(len(slots))) & 1
    return kept[np.argsort(-kept.sum(1), kind="stable")]


def expected(missing: np.ndarray, score: np.ndarray, *, rate: float, modalities: int) -> float:
    """Expected score when every modality is missing with chance `rate`, independently, and never all of them.

    EMM_E(p) = sum_S p^|S| (1 - p)^(N - |S|) score(S) / (1 - p^N), S the missing set. missing: (S,) |S|; score: (S,).
    """
    weight = rate**missing * (1 - rate) ** (modalities - missing)
    return float((weight * score).sum() / (1 - rate**modalities))


def missing_modalities(model: MedMAP, encodings: Encodings) -> dict[str, Any]:
    """Scores of every subset of the modalities that are present at all; mean, expected and worst.

    Keys: modalities, n, metric, full, mean, expected, worst, subsets. Scores are None where undefined, with `reason`.
    """
    names = model.slots(encodings.organ)
    usable = encodings.present.any(0).cpu().numpy()
    told = [m for m, u in zip(names, usable, strict=True) if u]
    result: dict[str, Any] = {
        "modalities": told,
        "n": int((encodings.label >= 0).sum()),
        "metric": "auroc",
        "full": None,
        "mean": None,
        "expected": {f"{r:g}": None for r in RATES},
        "worst": None,
        "subsets": [],
    }
    if len(told) > MOST:
        return result | {"reason": f"{len(told)} modalities have too many subsets; {MOST} is the most"}
    kept, multi_label = subsets(usable), model.vocabulary.organs[encodings.organ].multi_label
    reason = "there is no volume"
    for chosen, p in zip(kept, subset_probabilities(model, encodings, kept), strict=True):
        found = scores(encodings.label, p, multi_label=multi_label, metrics=METRICS)
        reason = found.get("reasons", {}).get("auroc", "")
        hidden = [m for m, u, c in zip(names, usable, chosen, strict=True) if u and not c]
        result["subsets"].append({"missing": hidden} | {m: found[m] for m in METRICS})
    values = [row["auroc"] for row in result["subsets"]]
    if not values or any(v is None for v in values):
        return result | {"reason": reason}
    count, score = np.array([len(row["missing"]) for row in result["subsets"]]), np.array(values)
    worst = result["subsets"][int(score.argmin())]
    return result | {
        "full": values[0],
        "mean": float(score.mean()),
        "expected": {f"{r:g}": expected(count, score, rate=r, modalities=len(told)) for r in RATES},
        "worst": {"value": worst["auroc"], "missing": worst["missing"]},
    }


def degraded_modalities(
    model: MedMAP, batches: Callable[[], Iterable[Batch]], *, known: Collection[str] | None = None, seed: int
) -> dict[str, Any]:
    """AUROC with all modalities degraded at once: `random` (share of voxels without signal), `noisy` (level).

    Every level encodes the studies anew.
    """

    def auroc(change: Change) -> float | None:
        encodings = encode_all(model, batches(), known=known, change=change)
        every = np.ones((1, encodings.present.shape[1]), bool)
        p = subset_probabilities(model, encodings, every)[0]
        multi_label = model.vocabulary.organs[encodings.organ].multi_label
        value: float | None = scores(encodings.label, p, multi_label=multi_label, metrics=METRICS)["auroc"]
        return value

    def zeroed(rate: float) -> Change:
        return lambda batch, at: lose_voxels(batch, rate=rate, seed=seed + at)

    def noisy(density: float, deviation: float) -> Change:
        return lambda batch, at: add_noise(batch, density=density, deviation=deviation, seed=seed + at)

    return {
        "random": {f"{rate:g}": auroc(zeroed(rate)) for rate in ZEROED},
        "noisy": {level: auroc(noisy(*how)) for level, how in NOISE.items()},
    }


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
