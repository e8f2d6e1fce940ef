"""How a model bears missing modalities: encoded once (N, M, ..), fused anew for every subset of them -> (S, N, C).

N studies, M modality slots, S subsets, C classes. Formulas: EMM of arXiv 2503.18445 (docs/evaluation.md). Degraded modalities
are next door (`degraded`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
MOST = 10  # modalities; their 1,023 subsets are the most that are all tried
_ROWS = 50  # studies fused at a time: what they need stays in a core's cache

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


def subset_probabilities(
    model: MedMAP, encodings: Encodings, kept: np.ndarray, *, degraded: Embedded | None = None
) -> np.ndarray:
    """(S, M) bool, which slots may be looked at -> (S, N, C) probabilities.

    A study counts with what it has of the kept slots; with nothing left every class gets 1 / C. The fusion is given the
    kept slots alone: the same as hiding the others, at half the cost. degraded: embeddings of the same studies after
    damage; then nothing is hidden, and the slots that are not kept are looked at in these. The subsets are shared out among
    as many threads as torch has; the result does not depend on how many.
    """
    model.eval()
    fuse = _Fuse(model, encodings, degraded)
    out = np.full((len(kept), len(encodings.present), fuse.classes), 1 / fuse.classes, np.float32)
    with _one_thread_each() as pool:
        for found, (rows, p) in zip(out, pool.map(fuse, kept), strict=True):
            found[rows] = p
    return out


class _Fuse:
    """(M,) bool, the kept slots -> rows that have something left, and their probabilities. Threads may share it."""

    def __init__(self, model: MedMAP, encodings: Encodings, degraded: Embedded | None) -> None:
        self.model, self.encodings, self.degraded = model, encodings, degraded
        slots, organ = model.slots(encodings.organ), encodings.organ
        self.device, self.classes = encodings.present.device.type, len(model.vocabulary.organs[organ].abnormalities)
        # A thread starts without the caller's autocast: it is told.
        self.autocast = torch.is_autocast_enabled(self.device), torch.get_autocast_dtype(self.device)
        with torch.no_grad():
            self.modality = torch.stack([getattr(model.projections[m], "embedding") for m in slots])  # noqa: B009
            self.texts = model.text_projection(
                torch.cat([model.texts.query(organ)[None], model.texts.modalities(organ)])
            )

    def __call__(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (pooled, tokens), present = self.encodings.embedded, self.encodings.present
        looked_at = present.any(0).cpu().numpy() if self.degraded is not None else chosen
        at = torch.from_numpy(np.flatnonzero(looked_at)).to(present.device)
        rows = present[:, at].any(1).nonzero()[:, 0] if len(at) else at
        enabled, dtype = self.autocast
        found = []
        with torch.no_grad(), torch.autocast(self.device, dtype=dtype, enabled=enabled):
            for part in rows.split(_ROWS):
                given = Embedded(pooled[part][:, at], None if tokens is None else tokens[part][:, at])
                if self.degraded is not None:
                    given = _mixed(given, self.degraded, part, at, torch.from_numpy(chosen).to(present.device)[at])
                found.append(self._probabilities(given, present[part][:, at], at))
        return rows.cpu().numpy(), torch.cat(found).cpu().numpy() if found else np.empty((0, self.classes), np.float32)

    def _probabilities(self, given: Embedded, present: Tensor, at: Tensor) -> Tensor:
        model, organ = self.model, self.encodings.organ
        fused = model.fusion(FusionInput(*given, present, self.modality[at], self.texts[1:][at], self.texts[0]))
        return model.probabilities(full_precision(model.classify(fused, organ)), organ).float()


def _mixed(clean: Embedded, degraded: Embedded, rows: Tensor, at: Tensor, kept: Tensor) -> Embedded:
    """The kept slots clean, the others degraded."""
    pooled = torch.where(kept[:, None], clean.pooled, degraded.pooled[rows][:, at])
    if clean.tokens is None or degraded.tokens is None:
        return Embedded(pooled, None)
    return Embedded(pooled, torch.where(kept[:, None, None], clean.tokens, degraded.tokens[rows][:, at]))


@contextmanager
def _one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """As many workers as torch has threads, each computing on one: small matrices gain little from being split."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


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
