"""What a site tells of its validation and its cohort: noisy counts, each paid from the ledger before it is counted.

A score release is, per organ and class, ONE histogram (score bin x whether the patient has the class). Everything a
coordinator wants (AUROC, ROC, thresholds, calibration) is worked out from it (`server.validation`) and costs nothing more.
A patient is counted for one organ only, so organs compose in parallel; within an organ a patient is in one cell per class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from client.privacy.randomness import SecretRandom
from medmap_model.accounting import Cost


@dataclass(frozen=True)
class ScoreRelease:
    """Noisy counts (classes, bins, 2) of an organ: [c, b, 1] patients who have class c and a score in bin b.

    A binary organ has one class, the second. scale: of the discrete Laplace noise on every cell.
    """

    organ: str
    classes: tuple[int, ...]
    counts: np.ndarray
    scale: float


def released_classes(classes: int) -> tuple[int, ...]:
    """Of two classes the second tells all; of more, every one."""
    return (1,) if classes == 2 else tuple(range(classes))


def cost_of_release(epsilon: float) -> Cost:
    """What one score release is charged, whatever the number of organs, classes and bins."""
    return Cost(steps=1, epsilon=epsilon)


def score_histograms(labels: np.ndarray, probabilities: np.ndarray, *, bins: int) -> np.ndarray:
    """Exact counts, never to leave a site: (N,) labels, (N, C) probabilities -> (classes, bins, 2) int64.

    Patients whose label is not known are left out.
    """
    known = labels >= 0
    labels, probabilities = labels[known], probabilities[known]
    classes = released_classes(probabilities.shape[1])
    counts = np.zeros((len(classes), bins, 2), np.int64)
    for i, c in enumerate(classes):
        cell = np.minimum((probabilities[:, c] * bins).astype(np.int64), bins - 1)
        np.add.at(counts[i], (cell, (labels == c).astype(np.int64)), 1)
    return counts


def release_scores(
    organ: str, labels: np.ndarray, probabilities: np.ndarray, *, epsilon: float, bins: int, secret: SecretRandom
) -> ScoreRelease:
    """epsilon-DP counts of one organ. The caller has charged the ledger (`cost_of_release`).

    Removing a patient changes one cell of every class by 1: L1 sensitivity = number of classes, so the noise on each
    cell has scale classes / epsilon (geometric mechanism, Ghosh et al. 2009, arXiv 0811.2841).
    """
    classes = released_classes(probabilities.shape[1])
    exact = score_histograms(labels, probabilities, bins=bins)
    scale = len(classes) / epsilon
    return ScoreRelease(organ, classes, exact + secret.discrete_laplace(exact.shape, scale=scale), scale)


def release_counts(counts: np.ndarray, *, sensitivity: int, epsilon: float, secret: SecretRandom) -> np.ndarray:
    """epsilon-DP version of a table of counts; one patient changes it by at most `sensitivity` in L1 norm."""
    return counts + secret.discrete_laplace(counts.shape, scale=sensitivity / epsilon)
