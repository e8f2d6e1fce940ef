"""Operating points: from validation predictions (N, C) and labels (N,) to one threshold per class."""

from __future__ import annotations

import numpy as np

from medmap_model.evaluation.metrics_case import build_case


def operating_points(labels: np.ndarray, probabilities: np.ndarray, *, multi_label: bool = False) -> list[float | None]:
    """One threshold per class that maximises sensitivity + specificity - 1 (Youden 1950), one class against the rest.

    labels: (N,), -1 unknown; probabilities: (N, C); of VALIDATION patients: chosen on test patients the two would be
    flattered. A threshold lies midway between two neighbouring predictions; of several equally good ones the lowest is
    taken, as a missed finding costs more than a second look. None: every patient has the class, or none has, or no
    threshold is better than chance; 0.5 is then the honest choice. Two exclusive classes: those of one decision.
    """
    case = build_case(labels, probabilities, multi_label=multi_label)
    if case.binary:
        chosen = _youden(case.probability[:, 1], case.truth[:, 1])
        return [None if chosen is None else 1 - chosen, chosen]
    return [_youden(case.probability[:, c], case.truth[:, c]) for c in range(case.truth.shape[1])]


def _youden(probability: np.ndarray, truth: np.ndarray) -> float | None:
    positives = int(truth.sum())
    if not 0 < positives < len(truth):
        return None
    order = np.argsort(probability, kind="stable")
    value, here = probability[order], truth[order]
    cuts = np.flatnonzero(value[1:] > value[:-1])  # a cut after row i leaves rows 0..i below the threshold
    if not len(cuts):
        return None
    missed, cleared = here.cumsum()[cuts] / positives, (~here).cumsum()[cuts] / (len(truth) - positives)
    best = int((cleared - missed).round(9).argmax())
    if (cleared - missed)[best] < 1e-9:
        return None
    return float((value[cuts[best]] + value[cuts[best] + 1]) / 2)
