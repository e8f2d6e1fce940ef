"""An organ whose patients may have several abnormalities: from the manifest through both stages to a prediction."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from client.app import app
from client.manifest import ManifestError, read_manifest
from client.site import open_records
from client.training import Trainer
from configs import load_vocabulary, to_json
from medmap_model.evaluation import scores
from medmap_model.groups import unpack
from medmap_model.model import build_model
from medmap_model.text import build_text_encoder
from server.app import federate
from simulation.engines import InProcessGrid
from tests.conftest import small_config, write_hospital

SPEC = {
    "name": "several",
    "organs": {
        "brain": {
            "modalities": ["T1", "FLAIR"],
            "query": "Brain MRI.",
            "multi_label": True,
            "prompts": {"bright": ["A bright lesion."], "mass": ["A mass."], "atrophy": ["Atrophy."]},
        }
    },
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A hospital in which whoever has a ball is bright and has a mass; the vocabulary's path."""
    root = tmp_path_factory.mktemp("several")
    (root / "several.yaml").write_text(yaml.safe_dump(SPEC, sort_keys=False))
    manifest = write_hospital(root / "north", ["T1", "FLAIR"], patients=16)
    text = manifest.read_text().replace(",no_tumour,", ",none,").replace(",tumour,", ",mass; bright,")
    manifest.write_text(text)
    return manifest, root / "several.yaml"


def test_labels_are_sets_and_a_wrong_name_among_several_is_named(world, tmp_path):
    manifest, path = world
    vocabulary = load_vocabulary(str(path))
    brain = vocabulary.organs["brain"]
    assert [brain.label(t) for t in ("mass; bright", "atrophy", "none", "", None)] == [3, 4, 0, -1, -1]
    assert {s.abnormality for s in read_manifest(manifest, vocabulary).studies} == {"mass; bright", "none"}
    wrong = manifest.with_name("wrong.csv")
    wrong.write_text(manifest.read_text().replace("mass; bright", "mass; brigth", 1))
    with pytest.raises(ManifestError, match=r"'brigth' is not an abnormality of the brain.*bright"):
        read_manifest(wrong, vocabulary)


def test_it_trains_and_tells_each_abnormality_by_itself(world, tmp_path):
    manifest, path = world
    config = small_config(
        f"data.vocabulary={path}", "stage.finetune.rounds=4", "stage.finetune.epochs=6", "stage.finetune.lr=3e-3",
        "stage.pretrain.label_weight=0.5", "stage.finetune.supervised=mixed",
    )  # fmt: skip
    sites = tmp_path / "sites.json"
    sites.write_text(json.dumps([{"name": "north", "manifests": [str(manifest)]}]))
    values = {"config": to_json(config), "sites-file": str(sites), "cache-dir": str(tmp_path / "cache")}
    federation = federate(InProcessGrid(app, 1, values), values["config"], folder=tmp_path, sites=1)
    assert all(line["loss"] is not None for line in federation.history)
    vocabulary = load_vocabulary(str(path))
    model = build_model(config.model, vocabulary, build_text_encoder(config.text), seed=0)
    unpack(model, federation.vectors)
    records = open_records(config, (manifest,), tmp_path / "cache")
    labels, p = Trainer(model, config).predict(records, split="common", organ="brain")
    ball = labels == 3
    assert set(labels.tolist()) == {0, 3}
    assert p[ball, :2].min() > p[~ball, :2].max()  # bright and mass, told at once
    assert (p.sum(1) > 1.2).any()  # probabilities of each, not shares of one
    assert p[:, 2].max() < 0.5  # nobody has atrophy
    found = scores(labels, p, multi_label=True)
    assert found["auroc"] == 1.0
    np.testing.assert_allclose(p, np.clip(p, 0, 1))
