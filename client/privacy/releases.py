"""What a site tells of a model on its patients: noisy counts, paid from the ledger before a patient is looked at.

A score release is, per organ and class, ONE histogram (score bin x whether the patient has the class). Everything a
coordinator wants (AUROC, ROC, thresholds, calibration) is worked out from it (`server.validation`) and costs nothing more.
A patient is counted for one organ only, so organs compose in parallel; within an organ a patient is in one cell per class.
"""

from __future__ import annotations

import numpy as np

from medmap_model.accounting import Cost, noise_scale
from medmap_model.evaluation.metrics_case import build_case
from medmap_model.randomness import SecretRandom
from medmap_model.releases import released_classes

_MOST = 2.0**31  # of a scale: beyond it, noise would have no low bits to hide a count in


def score_histograms(
    labels: np.ndarray, probabilities: np.ndarray, *, bins: int, multi_label: bool = False
) -> np.ndarray:
    """Exact counts, never to leave a site: (N,) labels, (N, C) probabilities -> (classes, bins, 2) int64.

    [c, b, 1]: patients who have the class and a score in bin b. Patients whose label is not known are left out; a score
    that is not finite counts as 0.
    """
    case = build_case(labels, np.nan_to_num(probabilities, nan=0.0, posinf=1.0, neginf=0.0), multi_label=multi_label)
    classes = released_classes(probabilities.shape[1], multi_label=multi_label)
    counts = np.zeros((len(classes), bins, 2), np.int64)
    for i, c in enumerate(classes):
        cell = np.clip((case.probability[:, c] * bins).astype(np.int64), 0, bins - 1)
        np.add.at(counts[i], (cell, case.truth[:, c].astype(np.int64)), 1)
    return counts


def release_scores(
    labels: np.ndarray,
    probabilities: np.ndarray,
    *,
    cost: Cost,
    bins: int,
    secret: SecretRandom,
    multi_label: bool = False,
) -> np.ndarray:
    """Noisy (classes, bins, 2) of one organ. The caller has charged the ledger.

    Removing a patient changes one cell of every class by 1.
    """
    exact = score_histograms(labels, probabilities, bins=bins, multi_label=multi_label)
    return with_noise(exact, cost=cost, cells=len(exact), secret=secret)


def with_noise(counts: np.ndarray, *, cost: Cost, cells: int, secret: SecretRandom, unit: int = 1) -> np.ndarray:
    """Counts with the noise that `cost` pays for; one patient moves at most `cells` of them by `unit` each. int64."""
    scale = noise_scale(cost, cells=cells, unit=unit)
    if not 0 < scale < _MOST:
        raise ValueError(f"noise of scale {scale:g} cannot be drawn exactly: ask for a larger epsilon")
    if cost.epsilon:
        return counts + secret.discrete_laplace(counts.shape, scale=scale)
    return counts + secret.normal(counts.shape, std=scale).numpy().round().astype(np.int64)
