"""Negative log-likelihood of labels (N,) under predicted probabilities (N, C): the loss that validation reports."""

from __future__ import annotations

import numpy as np

_LEAST = 1e-7  # one sure mistake must not make the mean infinite


def negative_log_likelihood(labels: np.ndarray, probabilities: np.ndarray, *, multi_label: bool = False) -> np.ndarray:
    """Each patient's, (N,) in nats; of a multi-label organ the mean over the labels.

    labels: (N,) known ones (>= 0), the class or (multi_label) the bit set of classes. probabilities: (N, C).
    """
    if not multi_label:
        return -np.log(probabilities[np.arange(len(labels)), labels].clip(_LEAST))
    there = (labels[:, None] >> np.arange(probabilities.shape[1])) & 1 == 1
    return -np.log(np.where(there, probabilities, 1 - probabilities).clip(_LEAST)).mean(1)
