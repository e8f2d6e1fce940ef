"""The comparison of models from saved predictions: which patients count where, and missing is null."""

from __future__ import annotations

import numpy as np
import pytest

from client.site import SiteEntry
from configs import load_vocabulary
from medmap_model.evaluation import METRICS, operating_points, scores
from simulation.comparison import compare
from simulation.conditions import Hospital, load_predictions

VOCABULARY = load_vocabulary("medmom")
HOSPITALS = [
    Hospital(SiteEntry("a", ()), False),
    Hospital(SiteEntry("b", ()), False),
    Hospital(SiteEntry("x", ()), True),
]
LABELS = np.array([0, 1] * 10)


def predictions(quality: float, seed: int) -> np.ndarray:
    """Probabilities that rank the tumour patients first in a share of the pairs that grows with quality."""
    p = 1 / (1 + np.exp(-(quality * (LABELS - 0.5) + np.random.default_rng(seed).normal(size=20))))
    return np.stack([1 - p, p], 1)


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "predictions").mkdir()
    for number, (model, quality) in enumerate({"federated": 4, "naive": 2, "local-a": 1, "local-b": 0}.items()):
        arrays = {}
        keys = ["a/test/brain", "a/common/brain", "b/test/brain", "b/common/brain", "x/test/brain"]
        keys += [f"{s}/val/brain" for s in "ab" if model in ("federated", "naive", f"local-{s}")]
        for k, key in enumerate(keys):
            arrays[f"{key}/labels"], arrays[f"{key}/probabilities"] = LABELS, predictions(quality, 10 * number + k)
            arrays[f"{key}/modalities"] = np.repeat([4, 2 if key[0] == "a" else 3], 10)
        np.savez(tmp_path / "predictions" / f"{model}.npz", **arrays)
    return tmp_path


def test_each_model_is_scored_on_the_patients_it_should_be(run_dir):
    models = ["federated", "naive", "local-a", "local-b"]
    r = compare(run_dir, models, HOSPITALS, VOCABULARY, bootstrap=100, seed=0)
    assert r["metrics"]["pooled"] is None
    assert "liver" not in r["metrics"]["federated"]
    assert r["metrics"]["federated"]["brain"]["n"] == 40  # both hospitals' common patients, pooled
    assert r["metrics_external"]["federated"]["brain"]["n"] == 20
    assert (
        r["metrics"]["federated"]["brain"]["auroc"]
        > r["metrics"]["naive"]["brain"]["auroc"]
        > r["metrics"]["local"]["brain"]["auroc"]
    )
    matrix = r["cross_site"]["organ"]["brain"]
    assert r["cross_site"]["sites"] == ["a", "b", "x"]
    # Local own: each at home, on the diagonal of the matrix.
    own = r["metrics_own"]["local"]["brain"]
    assert own["auroc"] == pytest.approx(np.mean([matrix[2][0], matrix[3][1]]))
    assert own["auroc_range"] == sorted([matrix[2][0], matrix[3][1]])
    assert r["metrics_own"]["federated"]["brain"]["auroc"] == pytest.approx(np.mean(matrix[0][:2]))
    assert r["cross_site"]["organ"]["liver"] == [[None] * 3] * 4
    for condition in ("federated", "local", "naive"):
        for test_set in ("metrics", "metrics_own", "metrics_external"):
            row = r[test_set][condition]["brain"]
            assert row["auroc_ci"][0] <= row["auroc"] <= row["auroc_ci"][1]
    assert r["cross_site"]["macro_f1"]["brain"][0][2] == pytest.approx(
        r["metrics_external"]["federated"]["brain"]["macro_f1"]
    )


def test_without_resamples_there_are_no_intervals(run_dir):
    r = compare(run_dir, ["federated"], HOSPITALS, VOCABULARY, bootstrap=0, seed=0)
    assert r["metrics"]["federated"]["brain"]["auroc_ci"] is None
    assert r["metrics"]["local"] is None


def test_the_operating_point_is_chosen_on_validation_patients_alone(run_dir):
    models = ["federated", "local-a"]
    r = compare(run_dir, models, HOSPITALS, VOCABULARY, bootstrap=0, seed=0)
    saved = {m: load_predictions(run_dir, m) for m in models}
    val = [saved["federated"][(s, "val", "brain")] for s in "ab"]
    expected = operating_points(np.r_[val[0].labels, val[1].labels], np.r_[val[0].probabilities, val[1].probabilities])
    told = r["operating_points"]["brain"]
    assert (told["rule"], told["patients"]) == ("validation", 40)
    assert list(told["thresholds"].values()) == expected
    assert list(told["thresholds"]) == ["no_tumour", "tumour"]
    # A local model chooses on its own hospital's, and is scored at its own threshold.
    home, test = saved["local-a"][("a", "val", "brain")], saved["local-a"][("a", "test", "brain")]
    at = operating_points(home.labels, home.probabilities)
    own = r["metrics_own"]["local"]["brain"]["sensitivity"]
    assert own == scores(test.labels, test.probabilities, threshold=at)["sensitivity"]
    half = compare(run_dir, models, HOSPITALS, VOCABULARY, bootstrap=0, seed=0, operating_point="half")
    assert half["operating_points"]["brain"]["thresholds"] == {"no_tumour": 0.5, "tumour": 0.5}
    assert half["metrics"]["federated"]["brain"]["auroc"] == r["metrics"]["federated"]["brain"]["auroc"]
    one, other = (x["metrics_own"]["local"]["brain"] for x in (r, half))
    assert (one["sensitivity"], one["specificity"]) != (other["sensitivity"], other["specificity"])


def test_without_validation_patients_the_operating_point_is_half_and_says_why(run_dir):
    path = run_dir / "predictions" / "federated.npz"
    with np.load(path) as z:
        np.savez(path, **{k: z[k] for k in z.files if "/val/" not in k})
    told = compare(run_dir, ["federated"], HOSPITALS, VOCABULARY, bootstrap=0, seed=0)["operating_points"]["brain"]
    assert told["thresholds"]["tumour"] == 0.5
    assert told["reasons"]["tumour"] == "no validation patients: 0.5"


def test_subgroups_are_the_federated_models_by_class_modalities_and_site(run_dir):
    r = compare(run_dir, ["naive", "federated"], HOSPITALS, VOCABULARY, bootstrap=20, seed=0)
    assert set(r["subgroups"]) == {"common", "own", "external"}
    common = r["subgroups"]["common"]["brain"]
    assert common["classes"]["tumour"]["auroc"] == r["metrics"]["federated"]["brain"]["auroc"]
    assert (common["classes"]["tumour"]["n"], common["classes"]["tumour"]["of"]) == (20, 40)
    assert {k: v["n"] for k, v in common["modalities"].items()} == {"2": 10, "3": 10, "4": 20}
    assert {k: v["n"] for k, v in common["sites"].items()} == {"a": 20, "b": 20}
    assert list(r["subgroups"]["external"]["brain"]["sites"]) == ["x"]
    own = r["subgroups"]["own"]["brain"]["sites"]
    assert own["b"]["auroc"] == r["cross_site"]["organ"]["brain"][1][1]
    assert set(METRICS) | {f"{m}_ci" for m in METRICS} | {"n"} == set(own["b"])
    assert "liver" not in r["subgroups"]["common"]
    assert list(r["curves"]) == ["brain"]
    at = r["curves"]["brain"]["roc"]["tumour"]["at"]
    assert at[1] == pytest.approx(r["metrics"]["federated"]["brain"]["sensitivity"], abs=1e-6)


def test_a_site_of_one_class_is_null_with_a_reason_and_does_not_spoil_the_mean(run_dir):
    path = run_dir / "predictions" / "federated.npz"
    with np.load(path) as z:
        arrays = {k: z[k] for k in z.files}
    arrays["b/test/brain/labels"] = np.ones(20, int)
    np.savez(path, **arrays)
    r = compare(run_dir, ["federated"], HOSPITALS, VOCABULARY, bootstrap=20, seed=0)
    reason = "one class only: tumour (20 patients)"
    assert r["subgroups"]["own"]["brain"]["sites"]["b"]["auroc"] is None
    assert r["subgroups"]["own"]["brain"]["sites"]["b"]["reasons"]["auroc"] == reason
    assert r["cross_site"]["organ"]["brain"][0][1] is None
    assert r["metrics_own"]["federated"]["brain"]["auroc"] == r["cross_site"]["organ"]["brain"][0][0]
    arrays["a/test/brain/labels"] = np.ones(20, int)
    np.savez(path, **arrays)
    everywhere = compare(run_dir, ["federated"], HOSPITALS, VOCABULARY, bootstrap=20, seed=0)["metrics_own"]
    assert everywhere["federated"]["brain"]["auroc"] is None
    assert everywhere["federated"]["brain"]["reasons"]["auroc"] == reason


def test_a_multi_label_organ_is_scored_by_its_labels(run_dir):
    spec = VOCABULARY.to_dict()
    spec["organs"]["brain"]["multi_label"] = True
    vocabulary = type(VOCABULARY).from_dict(spec)
    path = run_dir / "predictions" / "federated.npz"
    with np.load(path) as z:
        arrays = {k: z[k] for k in z.files}
    for k in [k for k in arrays if k.endswith("labels")]:
        arrays[k] = np.array([1, 2, 3, 0] * 5)  # either, both, none
    np.savez(path, **arrays)
    r = compare(run_dir, ["federated"], HOSPITALS, vocabulary, bootstrap=0, seed=0)
    p = np.concatenate([arrays[f"{s}/common/brain/probabilities"] for s in "ab"])
    expected = scores(np.array([1, 2, 3, 0] * 10), p, multi_label=True)
    assert r["metrics"]["federated"]["brain"]["auroc"] == expected["auroc"]
    assert r["subgroups"]["common"]["brain"]["classes"]["tumour"]["n"] == 20
