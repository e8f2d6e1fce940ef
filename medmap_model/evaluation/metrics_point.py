"""The value of every metric on all patients of a `Case`, from torchmetrics: (N, C) -> metric -> float, nan if undefined.

torchmetrics counts a class that no patient has as 0 in a macro mean; here it is left out, since a hospital that never
saw a cyst is no worse at finding one. It works in float32, so six decimals are kept.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medmap_model.evaluation.metrics_case import Case

BINS = 15  # of the calibration error, as Guo et al. 2017 (arXiv 1706.04599)
DECIMALS = 6


def point(case: Case, metrics: Collection[str]) -> dict[str, float]:
    """metric -> its value. Importing torchmetrics takes two seconds, once."""
    from torchmetrics.functional import classification as tm

    if not len(case):
        return dict.fromkeys(metrics, np.nan)
    wanted = set(metrics)
    values = _ranked(case, wanted & {"auroc", "sensitivity", "specificity"}, tm)
    if decisions := wanted - {"auroc", "sensitivity", "specificity"}:
        values |= _labels(case, decisions, tm) if case.multi_label else _classes(case, decisions, tm)
    return {m: round(values.get(m, np.nan), DECIMALS) for m in metrics}


def _ranked(case: Case, metrics: Collection[str], tm: Any) -> dict[str, float]:
    """Class 1's, or the mean over the one-versus-rest problems of the classes that are there."""
    count = case.truth.shape[1]
    positives = case.truth.sum(0)
    there, rest = positives > 0, positives < len(case)
    asked = np.isin(np.arange(count), case.ranked())
    truth, above = _tensor(case.truth), _tensor(case.above)
    values: dict[str, float] = {}
    if "auroc" in metrics and (both := np.flatnonzero(asked & there & rest)).size:
        areas = [tm.binary_auroc(_tensor(case.probability[:, c]), truth[:, c], validate_args=False) for c in both]
        values["auroc"] = float(np.mean([float(area) for area in areas]))
    if "sensitivity" in metrics and (asked & there).any():
        each = tm.multilabel_recall(above, truth, count, average="none", validate_args=False)
        values["sensitivity"] = float(each[_tensor(asked & there) > 0].mean())
    negatives = asked & rest & (there | case.binary)
    if "specificity" in metrics and negatives.any():
        each = tm.multilabel_specificity(above, truth, count, average="none", validate_args=False)
        values["specificity"] = float(each[_tensor(negatives) > 0].mean())
    return values


def _classes(case: Case, metrics: Collection[str], tm: Any) -> dict[str, float]:
    """Of the likeliest class, where classes exclude each other."""
    count = case.truth.shape[1]
    truth, guess = _tensor(case.truth.argmax(1)), _tensor(case.chosen.argmax(1))
    there = torch.from_numpy(case.truth.any(0))
    values: dict[str, float] = {}
    if "ece" in metrics:
        probability = _tensor(case.probability)
        values["ece"] = float(
            tm.multiclass_calibration_error(probability, truth, count, n_bins=BINS, validate_args=False)
        )
    if int(there.sum()) < 2:
        return values
    for name, function in (("balanced_accuracy", tm.multiclass_recall), ("macro_f1", tm.multiclass_f1_score)):
        if name in metrics:
            each = function(guess, truth, count, average="none", validate_args=False)
            values[name] = float(each[there].mean())
    if "kappa" in metrics:
        values["kappa"] = float(tm.multiclass_cohen_kappa(guess, truth, count, validate_args=False))
    if "mcc" in metrics:
        # One guess for everybody is 0/0: 0, as in scikit-learn. torchmetrics gives a small number of either sign.
        constant = bool((guess == guess[0]).all())
        values["mcc"] = (
            0.0 if constant else float(tm.multiclass_matthews_corrcoef(guess, truth, count, validate_args=False))
        )
    return values


def _labels(case: Case, metrics: Collection[str], tm: Any) -> dict[str, float]:
    """Means over the labels that some patients have and others lack; the calibration error over all labels."""
    rows: dict[str, list[float]] = {m: [] for m in metrics}
    for c in range(case.truth.shape[1]):
        truth, guess = _tensor(case.truth[:, c]), _tensor(case.chosen[:, c])
        if "ece" in metrics:
            probability = _tensor(case.probability[:, c])
            rows["ece"].append(float(tm.binary_calibration_error(probability, truth, n_bins=BINS, validate_args=False)))
        if case.truth[:, c].all() or not case.truth[:, c].any():
            continue
        if "balanced_accuracy" in metrics:
            both = (tm.binary_recall(guess, truth), tm.binary_specificity(guess, truth))
            rows["balanced_accuracy"].append(float(sum(both)) / 2)
        if "macro_f1" in metrics:
            rows["macro_f1"].append(float(tm.binary_f1_score(guess, truth)))
        if "kappa" in metrics:
            rows["kappa"].append(float(tm.binary_cohen_kappa(guess, truth)))
        if "mcc" in metrics:
            constant = bool((guess == guess[0]).all())
            rows["mcc"].append(0.0 if constant else float(tm.binary_matthews_corrcoef(guess, truth)))
    return {m: float(np.mean(found)) for m, found in rows.items() if found}


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values.astype(np.int64) if values.dtype == bool else values))
