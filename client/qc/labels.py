"""Volumes' features and modalities in, likely wrong labels out: a site's own volumes judge one another.

Linear discriminants with a shrunk covariance, each patient judged by the others alone. A name is doubted only where its
modality and the other one are hardly ever taken for one another: phases that look alike are never doubted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.qc.limits import Labels

_FOLDS = 10
_SHRINK = 0.1  # of the covariance towards its diagonal: a site has as many volumes as there are features
_TYPICAL = 95  # percentile of a modality's own distances, within which a volume is one of its kind

Features = NDArray[np.float64]


@dataclass(frozen=True)
class Doubt:
    """A volume (its place in the input) that looks like another modality; probability: that its name is wrong.

    sure: whether the classifier is good enough for both modalities that this is more than a hint.
    """

    place: int
    looks_like: str
    probability: float
    sure: bool


def doubts(features: Features, modalities: Sequence[str], patients: Sequence[str], limits: Labels) -> list[Doubt]:
    """features: (N, F). Modalities with too few patients are left out; fewer than two are none to be mixed up."""
    named = np.array(modalities)
    known = [
        m
        for m in dict.fromkeys(modalities)
        if len({p for p, o in zip(patients, modalities, strict=True) if o == m}) >= limits.least
    ]
    use = np.flatnonzero(np.isin(named, known) & np.isfinite(features).all(1))
    if len(known) < 2 or not len(use):
        return []
    truth = np.array([known.index(m) for m in named[use]])
    folds = np.array([_fold(patients[int(i)]) for i in use])
    distances = np.full((len(use), len(known)), np.inf)
    for fold in range(_FOLDS):
        mine, rest = folds == fold, folds != fold
        if mine.any() and all((truth[rest] == k).sum() > 1 for k in range(len(known))):
            distances[mine] = _distances(features[use][rest], truth[rest], features[use][mine], len(known))
    judged = np.isfinite(distances).all(1)
    if set(truth[judged]) != set(truth):
        return []
    best = distances.argmin(1)
    # (named, other): how often a volume is nearer to the other, whatever third one is nearest
    closer = distances < np.take_along_axis(distances, truth[:, None], 1)
    nearer = np.stack([closer[judged & (truth == k)].mean(0) for k in range(len(known))])
    right = [(best[judged & (truth == k)] == k).mean() for k in range(len(known))]
    own = [np.percentile(distances[judged & (truth == k), k], _TYPICAL) for k in range(len(known))]
    found = []
    for i in np.flatnonzero(judged & (best != truth)):
        a, b = truth[i], best[i]
        weights = np.exp(-0.5 * (distances[i] - distances[i].min()))
        wrong = 1 - float(weights[a] / weights.sum())
        told_apart = max(nearer[a, b], nearer[b, a]) <= limits.confused
        if told_apart and wrong >= limits.probability and distances[i, b] <= own[b]:
            found.append(Doubt(int(use[i]), known[b], wrong, bool(min(right[a], right[b]) >= limits.sure)))
    return found


def _fold(patient: str) -> int:
    """The same for every volume of a patient, whatever the order of the rows."""
    return hashlib.sha256(patient.encode()).digest()[0] % _FOLDS


def _distances(known: Features, truth: NDArray[np.intp], asked: Features, classes: int) -> Features:
    """Squared Mahalanobis distances to the mean of each class, (A, classes), with one covariance for all."""
    # medians: a wrong label among them matters little
    means = np.stack([np.median(known[truth == k], 0) for k in range(classes)])
    spread = known - means[truth]
    scale = np.maximum(1.4826 * np.median(np.abs(spread), 0), 1e-3 + 0.05 * known.std(0))
    kept = (spread / scale).clip(-4, 4)  # so that volumes under a wrong name do not widen the classes
    covariance = kept.T @ kept / max(1, len(kept) - classes)
    covariance = (1 - _SHRINK) * covariance + _SHRINK * np.diag(covariance.diagonal() + 1e-3)
    inverse = np.linalg.inv(covariance)
    away = (asked[:, None] - means) / scale
    return np.einsum("akf,fg,akg->ak", away, inverse, away)
