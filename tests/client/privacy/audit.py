"""One-run audit of differential privacy (Steinke, Nasr, Jagielski 2023, arXiv 2305.08846): a lower bound on epsilon.

m canaries, each in or out by a fair coin; guess the top k in and the bottom k out; the more guesses are right, the more
the mechanism must have leaked.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats


def p_value(m: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Chance of that many right guesses if the mechanism were (epsilon, delta)-private. Theorem 5.2 there."""
    q = 1 / (1 + math.exp(-epsilon))
    beta = stats.binom.sf(right - 1, guesses, q)
    i = np.arange(1, right + 1)
    alpha = ((stats.binom.sf(right - i - 1, guesses, q) - beta) / i).max(initial=0)
    return float(min(1, beta + alpha * delta * 2 * m))


def epsilon_lower_bound(included: np.ndarray, scores: np.ndarray, *, delta: float, significance: float = 0.05) -> float:
    """The largest epsilon that the guesses refute; Bonferroni over three numbers of guesses."""
    m, order, best = len(scores), np.argsort(-scores), 0.0
    for k in (m // 20, m // 10, m // 5):
        right = int(included[order[:k]].sum() + (~included[order[-k:]]).sum())
        low, high = 0.0, 20.0
        if p_value(m, 2 * k, right, 0.0, delta) > significance / 3:
            continue
        while high - low > 1e-2:
            middle = (low + high) / 2
            refuted = p_value(m, 2 * k, right, middle, delta) <= significance / 3
            low, high = (middle, high) if refuted else (low, middle)
        best = max(best, low)
    return best
