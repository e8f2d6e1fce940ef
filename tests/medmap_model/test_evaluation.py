"""Every metric against scikit-learn and torchmetrics; undefined cases; confidence intervals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, f1_score, matthews_corrcoef, roc_auc_score

from medmap_model.evaluation import METRICS, resampled, scores
from medmap_model.evaluation.metrics_case import build_case
from medmap_model.evaluation.metrics_resampled import on_resamples

pytestmark = [
    pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true"),
    pytest.mark.filterwarnings("ignore:The number of unique classes"),
]


def _case(classes: int, n: int, seed: int, *, ties: bool = False, absent: tuple[int, ...] = ()):
    """Labels and probabilities that know something; ties: rounded to tenths; absent: classes that nobody has."""
    rng = np.random.default_rng(seed)
    there = np.setdiff1d(np.arange(classes), absent)
    y = np.r_[there, rng.choice(there, size=n - len(there))]
    logits = rng.normal(size=(n, classes)) + 1.0 * (y[:, None] == np.arange(classes))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return y, np.round(p, 1) if ties else p


def _bits(n: int, seed: int, *, ties: bool = False):
    """Bit sets of four labels; the last is nobody's."""
    rng = np.random.default_rng(seed)
    truth = rng.random((n, 4)) < [0.5, 0.3, 0.15, 0.0]
    truth[0, :3] = True
    p = 1 / (1 + np.exp(-(rng.normal(size=(n, 4)) + 2 * truth - 1)))
    return truth @ (1 << np.arange(4)), np.round(p, 1) if ties else p, truth


def torchmetrics():
    """Its functions; loading it takes two seconds."""
    from torchmetrics.functional import classification

    return classification


def _calibration(confidence: np.ndarray, right: np.ndarray) -> float:
    """Guo et al. 2017, eq. 3, in words: 15 equal bins, |accuracy - confidence| weighed by the bin's patients."""
    bins = np.minimum((confidence.astype(np.float32) * np.float32(15)).astype(int), 14)
    gaps = [abs(right[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    return float(np.sum(gaps))


def _rates(truth: np.ndarray, above: np.ndarray) -> tuple[float, float]:
    return above[truth].mean(), (~above[~truth]).mean()


def by_scikit_learn(y: np.ndarray, p: np.ndarray, threshold: list[float]) -> dict[str, float]:
    classes, guess, there = p.shape[1], p.argmax(1), np.unique(y)
    columns = [1] if classes == 2 else there
    rates = np.array([_rates(y == c, p[:, c] >= threshold[c]) for c in columns]).mean(0)
    return {
        "auroc": float(np.mean([roc_auc_score(y == c, p[:, c]) for c in columns])),
        "balanced_accuracy": balanced_accuracy_score(y, guess),
        "macro_f1": f1_score(y, guess, labels=there, average="macro"),
        "sensitivity": rates[0],
        "specificity": rates[1],
        "mcc": matthews_corrcoef(y, guess),
        "kappa": cohen_kappa_score(y, guess),
        "ece": _calibration(p.max(1), guess == y),
    }


@pytest.mark.parametrize(("classes", "absent"), [(2, ()), (7, ()), (7, (2, 5))])
@pytest.mark.parametrize("ties", [False, True])
def test_every_metric_equals_scikit_learn_and_so_does_its_resampled_form(classes, absent, ties):
    threshold = [0.3] * classes
    for seed in range(4):
        y, p = _case(classes, 60, seed, ties=ties, absent=absent)
        expected = by_scikit_learn(y, p, threshold)
        assert set(expected) == set(METRICS)
        ours = scores(y, p, threshold=threshold)
        assert ours.pop("n") == 60 and "reasons" not in ours
        if ties:  # a tenth may lie on the edge of a bin, where scikit-learn has no say
            theirs = torchmetrics().multiclass_calibration_error(
                torch.from_numpy(p), torch.from_numpy(y), classes, n_bins=15
            )
            assert ours.pop("ece") == pytest.approx(float(theirs), abs=1e-6)
            expected.pop("ece")
        assert ours == pytest.approx(expected, abs=1e-6)
        again = {m: v for m, v in _once(y, p, threshold).items() if m in expected}
        assert again == pytest.approx(expected, abs=1e-7 if "ece" in expected else 1e-12)


def _once(y, p, threshold, multi_label=False):
    """The resampled form on the one resample that draws everybody once."""
    case = build_case(y, p, threshold=threshold, multi_label=multi_label)
    return {m: float(v[0]) for m, v in on_resamples(case, np.ones((1, len(case))), METRICS).items()}


@pytest.mark.parametrize("ties", [False, True])
def test_multi_label_metrics_are_means_over_the_labels_that_are_there(ties):
    for seed in range(4):
        labels, p, truth = _bits(60, seed, ties=ties)
        guess, there = p >= 0.5, [0, 1, 2]
        rates = np.array([_rates(truth[:, c], p[:, c] >= 0.4) for c in there]).mean(0)
        expected = {
            "auroc": np.mean([roc_auc_score(truth[:, c], p[:, c]) for c in there]),
            "balanced_accuracy": np.mean([balanced_accuracy_score(truth[:, c], guess[:, c]) for c in there]),
            "macro_f1": np.mean([f1_score(truth[:, c], guess[:, c]) for c in there]),
            "sensitivity": rates[0],
            "specificity": rates[1],
            "mcc": np.mean([matthews_corrcoef(truth[:, c], guess[:, c]) for c in there]),
            "kappa": np.mean([cohen_kappa_score(truth[:, c], guess[:, c]) for c in there]),
        }
        ours = scores(labels, p, threshold=[0.4] * 4, multi_label=True)
        again = _once(labels, p, [0.4] * 4, multi_label=True)
        each = [
            torchmetrics().binary_calibration_error(
                torch.from_numpy(p[:, c].copy()), torch.from_numpy(truth[:, c]).long(), n_bins=15
            )
            for c in range(4)
        ]
        assert ours["ece"] == pytest.approx(float(np.mean(each)), abs=1e-6)
        if not ties:
            assert ours["ece"] == pytest.approx(
                np.mean([_calibration(p[:, c], truth[:, c]) for c in range(4)]), abs=1e-6
            )
        assert {m: ours[m] for m in expected} == pytest.approx(expected, abs=1e-6)
        assert {m: again[m] for m in expected} == pytest.approx(expected, abs=1e-12)


def test_bit_sets_are_not_class_numbers():
    labels, p, _ = _bits(40, 0)
    assert scores(labels, p, multi_label=True)["auroc"] != scores(labels % 4, p)["auroc"]


def test_torchmetrics_counts_an_absent_class_as_0_and_we_leave_it_out():
    y, p = _case(7, 80, 3, absent=(2, 5))
    ours = scores(y, p)
    with pytest.warns(UserWarning, match="No positive samples"):
        theirs = torchmetrics().multiclass_auroc(torch.from_numpy(p), torch.from_numpy(y), 7)
    assert float(theirs) < ours["auroc"]
    recall = torchmetrics().multiclass_recall(torch.from_numpy(p), torch.from_numpy(y), 7)
    assert float(recall) < ours["balanced_accuracy"]


def test_unknown_labels_are_dropped():
    y, p = _case(3, 40, 0)
    more = np.r_[y, [-1, -1]]
    assert scores(more, np.r_[p, p[:2]], bootstrap=20) == scores(y, p, bootstrap=20)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([], "no patient with a known label"),
        ([-1, -1], "no patient with a known label"),
        ([1, 1, 1], "one class only: tumour (3 patients)"),
        ([0], "one class only: no_tumour (1 patient)"),
    ],
)
def test_undefined_is_none_with_a_reason_never_0(labels, reason):
    p = np.full((len(labels), 2), 0.5)
    result = scores(np.array(labels, dtype=int), p, bootstrap=10, classes=("no_tumour", "tumour"))
    assert result["n"] == sum(v >= 0 for v in labels)
    for metric in ("auroc", "balanced_accuracy", "macro_f1", "mcc", "kappa"):
        assert result[metric] is None
        assert result[f"{metric}_ci"] is None
        assert result["reasons"][metric] == reason
    # What one class can still tell is told.
    assert (result["sensitivity"] is not None) == (1 in labels)
    assert (result["specificity"] is not None) == (0 in labels)
    assert (result["ece"] is not None) == (result["n"] > 0)
    assert set(result["reasons"]) == {m for m in METRICS if result[m] is None}


def test_a_multi_label_set_where_all_have_the_same_labels_is_undefined():
    result = scores(np.array([3, 3, 3]), np.full((3, 3), 0.4), multi_label=True)
    assert result["auroc"] is None
    assert result["reasons"]["mcc"] == "no abnormality that some of them have and others lack (3 patients)"


def test_one_guess_for_everybody_is_chance_not_undefined():
    y, p = np.array([0, 0, 1, 1, 1]), np.tile([0.2, 0.8], (5, 1))
    result = scores(y, p)
    assert (result["auroc"], result["balanced_accuracy"], result["mcc"], result["kappa"]) == (0.5, 0.5, 0.0, 0.0)
    assert _once(y, p, [0.5, 0.5])["mcc"] == 0 == matthews_corrcoef(y, p.argmax(1))


def test_only_the_metrics_asked_for_are_computed():
    y, p = _case(3, 40, 0)
    assert set(scores(y, p, metrics=("auroc",), bootstrap=5)) == {"auroc", "auroc_ci", "n"}


@pytest.mark.parametrize("multi_label", [False, True])
def test_intervals_equal_a_plain_loop(multi_label):
    y, p = _bits(50, 1)[:2] if multi_label else _case(3, 50, 1, ties=True)
    ours = scores(y, p, bootstrap=40, seed=7, threshold=0.3, multi_label=multi_label)
    rows = np.random.default_rng(7).integers(50, size=(40, 50))
    each = [scores(y[r], p[r], threshold=0.3, multi_label=multi_label) for r in rows]
    for metric in METRICS:
        values = np.array([e[metric] for e in each if e[metric] is not None])
        if metric == "ece":  # resamples of it are biased upwards: only their spread counts
            values = values - values.mean() + ours["ece"]
        assert ours[f"{metric}_ci"] == pytest.approx(list(np.percentile(values, [2.5, 97.5])), abs=2e-6), metric


def test_the_interval_of_the_calibration_error_holds_its_value():
    left_out = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        p = rng.uniform(0.5, 1, 60)
        y = (rng.random(60) < p).astype(int)  # calibrated: what is left is noise, and resampling adds to it
        both = np.stack([1 - p, p], 1)
        result = scores(y, both, bootstrap=200, metrics=("ece",))
        assert result["ece_ci"][0] < result["ece"] < result["ece_ci"][1]
        counts = np.stack([np.bincount(rng.integers(60, size=60), minlength=60) for _ in range(200)])
        plain = on_resamples(build_case(y, both), counts, ("ece",))["ece"]
        left_out += result["ece"] < np.percentile(plain, 2.5)
    assert left_out > 0, "plain percentiles would leave the value out"


def test_resamples_of_two_models_are_paired_and_a_long_set_in_parts_is_the_same(monkeypatch):
    y, p = _case(2, 30, 0)
    whole = resampled(y, p, bootstrap=50, seed=3)
    assert np.abs(whole["auroc"] - resampled(y, p**2, bootstrap=50, seed=3)["auroc"]).max() == 0  # the same ranking
    monkeypatch.setattr("medmap_model.evaluation.metrics_resampled._CELLS", 30 * 4 * 7)
    for metric, values in resampled(y, p, bootstrap=50, seed=3).items():
        np.testing.assert_allclose(values, whole[metric], atol=1e-12)
    assert len(resampled(y, p, bootstrap=0, seed=3)["auroc"]) == 0


def test_interval_is_seeded_and_survives_single_class_resamples():
    y, p = np.array([0, 1, 1]), np.array([[0.9, 0.1], [0.4, 0.6], [0.6, 0.4]])
    a, b = scores(y, p, bootstrap=200, seed=1), scores(y, p, bootstrap=200, seed=1)
    assert a == b
    assert a["auroc_ci"] == [1.0, 1.0]
    assert scores(*_case(2, 30, 0), bootstrap=50, seed=1) != scores(*_case(2, 30, 0), bootstrap=50, seed=2)


def test_predictions_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="1 of 2 predictions"):
        scores(np.array([0, 1]), np.array([[0.5, 0.5], [np.nan, 0.5]]))


def test_a_threshold_too_few_is_refused():
    with pytest.raises(ValueError, match="2 thresholds for 3 classes"):
        scores(*_case(3, 10, 0), threshold=[0.5, 0.5])
