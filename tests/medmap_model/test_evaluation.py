"""Scores against scikit-learn, undefined cases, and confidence intervals."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from medmap_model.evaluation import scores


def _case(classes: int, n: int, seed: int, *, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.r_[np.arange(classes), rng.integers(classes, size=n - classes)]
    logits = rng.normal(size=(n, classes)) + 1.0 * (y[:, None] == np.arange(classes))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return y, np.round(p, 1) if ties else p


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("classes", [2, 7])
def test_scores_equal_scikit_learn(classes: int, ties: bool) -> None:
    for seed in range(5):
        y, p = _case(classes, 60, seed, ties=ties)
        ours = scores(y, p)
        if classes == 2:
            auroc = roc_auc_score(y, p[:, 1])
        else:
            auroc = np.mean([roc_auc_score(y == c, p[:, c]) for c in range(classes)])
        assert ours["auroc"] == pytest.approx(auroc, abs=1e-12)
        assert ours["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y, p.argmax(1)), abs=1e-12)
        assert ours["macro_f1"] == pytest.approx(f1_score(y, p.argmax(1), average="macro"), abs=1e-12)
        assert ours["n"] == 60


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_absent_classes_are_left_out() -> None:
    y, p = _case(7, 80, 3)
    keep = ~np.isin(y, [2, 5])
    y, p = y[keep], p[keep]
    there = np.unique(y)
    ours = scores(y, p)
    assert ours["auroc"] == pytest.approx(np.mean([roc_auc_score(y == c, p[:, c]) for c in there]))
    assert ours["macro_f1"] == pytest.approx(f1_score(y, p.argmax(1), labels=there, average="macro"))
    assert ours["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y, p.argmax(1)))


def test_unknown_labels_are_dropped() -> None:
    y, p = _case(3, 40, 0)
    more = np.r_[y, [-1, -1]]
    assert scores(more, np.r_[p, p[:2]], bootstrap=20) == scores(y, p, bootstrap=20)


@pytest.mark.parametrize("labels", [[], [1, 1, 1], [-1, -1]])
def test_undefined_is_none_not_zero(labels: list[int]) -> None:
    result = scores(np.array(labels, dtype=int), np.full((len(labels), 2), 0.5), bootstrap=10)
    assert result["n"] == sum(v >= 0 for v in labels)
    for metric in ("auroc", "balanced_accuracy", "macro_f1"):
        assert result[metric] is None
        assert result[f"{metric}_ci"] is None


def test_intervals_equal_a_plain_loop() -> None:
    y, p = _case(3, 50, 1)
    ours = scores(y, p, bootstrap=40, seed=7)
    rows = np.random.default_rng(7).integers(50, size=(40, 50))
    each = [scores(y[r], p[r]) for r in rows]
    for metric in ("auroc", "balanced_accuracy", "macro_f1"):
        values = [e[metric] for e in each if e[metric] is not None]
        assert ours[f"{metric}_ci"] == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=1e-12)


def test_interval_is_seeded_and_survives_single_class_resamples() -> None:
    y, p = np.array([0, 1, 1]), np.array([[0.9, 0.1], [0.4, 0.6], [0.6, 0.4]])
    a, b = scores(y, p, bootstrap=200, seed=1), scores(y, p, bootstrap=200, seed=1)
    assert a == b
    assert a["auroc_ci"] == [1.0, 1.0]
    assert scores(*_case(2, 30, 0), bootstrap=50, seed=1) != scores(*_case(2, 30, 0), bootstrap=50, seed=2)


def test_predictions_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 predictions"):
        scores(np.array([0, 1]), np.array([[0.5, 0.5], [np.nan, 0.5]]))
