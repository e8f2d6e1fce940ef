"""Wrong names are found among a site's own volumes, and a clean site is left alone."""

from __future__ import annotations

import numpy as np

from client.qc.labels import doubts
from client.qc.limits import Labels, Outliers
from client.qc.remarks import outlying

LIMITS = Labels()


def site(*, patients: int = 30, apart: float = 6.0, seed: int = 0) -> tuple[np.ndarray, list[str], list[str]]:
    """Features of two modalities that differ in three of twelve numbers."""
    rng = np.random.default_rng(seed)
    names = ["T1", "T2"] * patients
    features = rng.normal(size=(2 * patients, 12))
    features[1::2, :3] += apart
    return features, names, [f"P{i // 2}" for i in range(2 * patients)]


def test_swapped_names_are_found_and_no_others():
    hits = 0
    for seed in range(10):
        features, names, patients = site(seed=seed)
        assert doubts(features, names, patients, LIMITS) == []
        names[10], names[11] = "T2", "T1"
        found = doubts(features, names, patients, LIMITS)
        assert {(d.place, d.looks_like, d.sure) for d in found} <= {(10, "T1", True), (11, "T2", True)}
        hits += len(found)
    assert hits >= 17  # of 20: one in twenty is less typical of its kind than it may be


def test_names_that_look_alike_or_are_few_are_never_doubted():
    for features, names, patients in (site(apart=0.7), site(patients=8)):
        swapped = list(names)
        swapped[0], swapped[1] = "T2", "T1"
        assert doubts(features, swapped, patients, LIMITS) == []
    assert doubts(*site(patients=0), LIMITS) == []
    features, _, patients = site()
    assert doubts(features, ["T1"] * len(patients), patients, LIMITS) == []


def test_a_name_is_doubted_although_a_third_modality_looks_like_it():
    """T1 and T1ce cannot be told apart; that a volume named T1 is a T2 can."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(120, 12))
    features[2::3, :3] += 6.0
    names, patients = ["T1", "T1ce", "T2"] * 40, [f"P{i // 3}" for i in range(120)]
    assert doubts(features, names, patients, LIMITS) == []
    names[30], names[32] = "T2", "T1"
    found = {d.place: (names[d.place], d.looks_like, d.sure) for d in doubts(features, names, patients, LIMITS)}
    assert found.keys() == {30, 32} and found[32] == ("T1", "T2", False)
    assert found[30][0] == "T2" and found[30][1] in ("T1", "T1ce")


def test_an_odd_volume_is_not_taken_for_another_modality():
    features, names, patients = site()
    features[10] = 40.0  # like neither
    assert doubts(features, names, patients, LIMITS) == []


def test_outliers_are_those_far_from_the_median_and_not_all_of_a_tight_group():
    limits = Outliers()
    values = [*np.random.default_rng(0).normal(10, 1, 30), 25.0]
    scores = outlying(values, limits)
    assert scores[-1] > limits.score and (np.abs(scores[:-1]) < limits.score).all()
    assert (outlying([10.0] * 20 + [10.5], limits) < limits.score).all()
    assert outlying([10.0] * 20 + [14.0], limits)[-1] > limits.score
    assert not outlying([1.0, 2.0, 900.0], limits).any()
