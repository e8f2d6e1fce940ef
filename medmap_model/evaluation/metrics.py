"""Scores of predicted probabilities (N, C) against labels (N,), with percentile-bootstrap confidence intervals.

The one evaluator: a hospital's validation, the simulation's comparison and every robustness test use it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from medmap_model.evaluation.metrics_case import Threshold, build_case, undefined
from medmap_model.evaluation.metrics_resampled import on_resamples

METRICS = ("auroc", "balanced_accuracy", "macro_f1", "sensitivity", "specificity", "mcc", "kappa", "ece")
_DECIMALS = 6


def scores(
    labels: np.ndarray,
    probabilities: np.ndarray,
    *,
    bootstrap: int = 0,
    seed: int = 0,
    threshold: Threshold = None,
    multi_label: bool = False,
    metrics: Collection[str] = METRICS,
    classes: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Every metric and n; None, with a line in `reasons`, where a metric is undefined for these patients.

    labels: (N,) int, the class or (multi_label) the bit set of classes; -1 (unknown) is left out. probabilities: (N, C).
    threshold: operating point of sensitivity and specificity, one for all classes or one each, as `operating_points`
    gives them; None: 0.5. classes: their names, for the reasons. With bootstrap > 0 also `<metric>_ci`: [low, high],
    95 %, percentiles over resampled patients; resamples in which a metric is undefined are dropped.

    Two classes: AUROC, sensitivity and specificity are class 1's. More: the mean over the one-versus-rest problems. A
    class that no patient has is left out of every mean. multi_label: means over the labels that some patients have and
    others lack, decided at 0.5 (but for sensitivity and specificity). kappa: Cohen's, unweighted. mcc: Matthews'
    (Gorodkin 2004 for more classes); 0 when everybody is given one class. ece: expected calibration error of the
    likeliest class in 15 bins; small sets read high, so compare it on the same number of patients only; its interval is
    the spread of the resamples around the value. Raises ValueError for predictions that are not finite.
    """
    case = build_case(labels, probabilities, threshold=threshold, multi_label=multi_label)
    once = on_resamples(case, np.ones((1, len(case))), metrics) if len(case) else {}
    values = {m: float(once[m][0]) if m in once else np.nan for m in metrics}
    result: dict[str, Any] = {m: None if np.isnan(v) else round(v, _DECIMALS) for m, v in values.items()}
    result["n"] = len(case)
    if bootstrap > 0:
        spread = resampled(
            labels, probabilities, bootstrap=bootstrap, seed=seed, threshold=threshold, multi_label=multi_label,
            metrics=metrics,
        )  # fmt: skip
        result |= {f"{m}_ci": None if result[m] is None else interval(s) for m, s in spread.items()}
    if missing := [m for m in metrics if result[m] is None]:
        result["reasons"] = dict.fromkeys(missing, undefined(case, classes))
    return result


def resampled(
    labels: np.ndarray,
    probabilities: np.ndarray,
    *,
    bootstrap: int,
    seed: int,
    threshold: Threshold = None,
    multi_label: bool = False,
    metrics: Collection[str] = METRICS,
) -> dict[str, np.ndarray]:
    """metric -> (bootstrap,) scores over patients drawn with replacement; nan where a draw leaves it undefined.

    The draws depend on the number of patients and the seed alone, so that models scored on the same patients are
    resampled alike: the mean or the difference of two such arrays is a paired bootstrap.
    """
    case = build_case(labels, probabilities, threshold=threshold, multi_label=multi_label)
    n = len(case)
    if not n:
        return {m: np.full(bootstrap, np.nan) for m in metrics}
    rows = np.random.default_rng(seed).integers(n, size=(bootstrap, n))
    flat = (rows + n * np.arange(bootstrap)[:, None]).ravel()
    counts = np.bincount(flat, minlength=bootstrap * n).reshape(bootstrap, n)
    draws = on_resamples(case, counts, metrics)
    if "ece" in draws and bootstrap:
        # A patient drawn twice fills a bin with copies: every resample looks worse calibrated than the set itself, and the
        # interval could leave out the value. Only the spread is kept.
        value = on_resamples(case, np.ones((1, n)), ("ece",))["ece"]
        draws["ece"] = (draws["ece"] - draws["ece"].mean() + value).clip(0, 1)
    return draws


def interval(spread: np.ndarray) -> list[float] | None:
    """[low, high]: 95 % percentile interval of resampled scores, None when there are none."""
    known = spread[~np.isnan(spread)]
    return [float(v) for v in np.percentile(known, [2.5, 97.5])] if len(known) else None
