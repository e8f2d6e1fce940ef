"""Operating points chosen on validation patients, and scores by class and by group of patients."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from medmap_model.evaluation import by_class, by_group, curves, operating_points, scores


def _drawn(classes: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(classes, size=n)
    p = rng.dirichlet(np.ones(classes), n) + (y[:, None] == np.arange(classes)) * 0.4
    return y, p / p.sum(1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 7])
def test_a_threshold_has_the_greatest_youden_index_there_is(classes):
    for seed in range(5):
        y, p = _drawn(classes, 80, seed)
        chosen = operating_points(y, p.round(2))
        for c in range(1 if classes == 2 else 0, classes):
            false, true, _ = roc_curve(y == c, p[:, c].round(2))
            above = p[:, c].round(2) >= chosen[c]
            youden = above[y == c].mean() - above[y != c].mean()
            assert youden == pytest.approx((true - false).max())


def test_two_exclusive_classes_share_one_decision():
    no, yes = operating_points(*_drawn(2, 60, 0))
    assert no == pytest.approx(1 - yes)


def test_a_threshold_lies_between_predictions_and_ties_go_to_sensitivity():
    p = np.array([0.1, 0.2, 0.4, 0.8])
    y = np.array([0, 1, 0, 1])  # the cuts after 0.1 and after 0.4 are equally good
    assert operating_points(y, np.stack([1 - p, p], 1))[1] == pytest.approx(0.15)


def test_no_threshold_where_validation_patients_tell_nothing():
    constant = np.full((6, 2), 0.5)
    assert operating_points(np.array([0, 1] * 3), constant) == [None, None]
    assert operating_points(np.zeros(6, int), constant) == [None, None]
    assert operating_points(np.zeros(0, int), np.zeros((0, 3))) == [None] * 3
    worse = np.array([0.9, 0.8, 0.2, 0.1])  # every cut is worse than chance
    assert operating_points(np.array([0, 0, 1, 1]), np.stack([1 - worse, worse], 1)) == [None, None]
    assert operating_points(np.array([0, 0, 1, 1]), np.stack([worse, 1 - worse], 1)) == [0.5, 0.5]  # turned: perfect
    y, p = _drawn(3, 40, 0)
    chosen = operating_points(np.minimum(y, 1), p)  # nobody has the last class
    assert chosen[2] is None and chosen[0] is not None
    assert scores(y, p, threshold=chosen)["sensitivity"] == scores(y, p, threshold=[*chosen[:2], 0.5])["sensitivity"]


def test_multi_label_thresholds_are_each_labels_own():
    rng = np.random.default_rng(0)
    truth = rng.random((50, 3)) < 0.4
    p = np.where(truth, 0.3, 0.2) * [1, 2, 3]
    chosen = operating_points(truth @ np.array([1, 2, 4]), p, multi_label=True)
    assert chosen == pytest.approx([0.25, 0.5, 0.75])
    assert scores(truth @ np.array([1, 2, 4]), p, threshold=chosen, multi_label=True)["sensitivity"] == 1
    assert scores(truth @ np.array([1, 2, 4]), p, multi_label=True)["sensitivity"] < 1, "0.5 would miss some"


def test_each_class_is_scored_against_the_rest():
    y, p = _drawn(3, 60, 1)
    y[y == 2] = 0
    table = by_class(y, p, classes=("cyst", "abscess", "hcc"), threshold=[0.3, None, 0.2], bootstrap=20)
    assert list(table) == ["cyst", "abscess", "hcc"]
    cyst, hcc = table["cyst"], table["hcc"]
    assert cyst["auroc"] == pytest.approx(roc_auc_score(y == 0, p[:, 0]), abs=1e-6)
    assert cyst["sensitivity"] == pytest.approx((p[y == 0, 0] >= 0.3).mean(), abs=1e-6)
    assert cyst["specificity"] == pytest.approx((p[y != 0, 0] < 0.3).mean(), abs=1e-6)
    assert cyst["auroc_ci"][0] <= cyst["auroc"] <= cyst["auroc_ci"][1]
    assert (cyst["n"], cyst["of"], cyst["threshold"]) == ((y == 0).sum(), 60, 0.3)
    assert table["abscess"]["threshold"] == 0.5
    assert (hcc["n"], hcc["auroc"], hcc["sensitivity"]) == (0, None, None)
    assert hcc["specificity"] == pytest.approx((p[:, 2] < 0.2).mean(), abs=1e-6)
    assert hcc["reasons"]["auroc"] == "one class only: without hcc (60 patients)"


def test_groups_hold_their_own_patients_and_no_others():
    y, p = _drawn(2, 60, 2)
    groups = np.repeat([4, 1, 2], 20)
    y[groups == 1] = 1
    table = by_group(y, p, groups, classes=("no_tumour", "tumour"), bootstrap=10)
    assert list(table) == ["1", "2", "4"]
    assert table["4"] == scores(y[:20], p[:20], bootstrap=10)
    assert table["1"]["auroc"] is None
    assert table["1"]["reasons"]["auroc"] == "one class only: tumour (20 patients)"


def test_curves_have_the_area_the_operating_point_and_the_calibration_error_of_the_scores():
    y, p = _drawn(3, 300, 4)
    y[y == 2] = 0
    drawn = curves(y, p, classes=("cyst", "abscess", "hcc"), threshold=[0.3, 0.4, 0.5])
    assert list(drawn["roc"]) == ["cyst", "abscess"], "nobody has hcc: no curve"
    table = by_class(y, p, classes=("cyst", "abscess", "hcc"), threshold=[0.3, 0.4, 0.5])
    for name, curve in drawn["roc"].items():
        false, true = np.array(curve["points"]).T
        assert len(false) <= 100 and curve["points"][0] == [0, 0] and curve["points"][-1] == [1, 1]
        assert np.trapezoid(true, false) == pytest.approx(table[name]["auroc"], abs=0.01)
        assert 1 - curve["at"][0] == pytest.approx(table[name]["specificity"], abs=1e-6)
        assert curve["at"][1] == pytest.approx(table[name]["sensitivity"], abs=1e-6)
    bins = drawn["reliability"]
    assert sum(b["n"] for b in bins) == 300
    error = sum(b["n"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / 300
    assert error == pytest.approx(scores(y, p)["ece"], abs=1e-6)


def test_a_short_curve_has_scikit_learns_points_and_ties_are_one():
    y, p = _drawn(2, 80, 5)
    p = p.round(1)
    drawn = curves(y, p, classes=("no_tumour", "tumour"))["roc"]["tumour"]["points"]
    assert drawn == np.stack(roc_curve(y, p[:, 1], drop_intermediate=False)[:2], 1).round(4).tolist()
    assert len(drawn) == len(np.unique(p[:, 1])) + 1 < 20


def test_curves_of_two_classes_of_several_labels_and_of_nobody():
    assert list(curves(*_drawn(2, 40, 0), classes=("no_tumour", "tumour"))["roc"]) == ["tumour"]
    several = curves(np.array([1, 2, 3, 0]), np.full((4, 2), 0.3), classes=("a", "b"), multi_label=True)
    assert list(several["roc"]) == ["a", "b"]
    assert [b["n"] for b in several["reliability"]] == [8]
    assert curves(np.zeros(0, int), np.zeros((0, 2)), classes=("a", "b")) == {"roc": {}, "reliability": []}
