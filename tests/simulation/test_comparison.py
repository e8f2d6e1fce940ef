"""The comparison of models from saved predictions: which patients count where, and missing is null."""

from __future__ import annotations

import numpy as np
import pytest

from client.site import SiteEntry
from configs import load_vocabulary
from simulation.comparison import compare
from simulation.conditions import Hospital

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
        for k, key in enumerate(("a/test/brain", "a/common/brain", "b/test/brain", "b/common/brain", "x/test/brain")):
            arrays[f"{key}/labels"], arrays[f"{key}/probabilities"] = LABELS, predictions(quality, 10 * number + k)
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
