"""Checkpoints that describe themselves: loaded from anywhere, with the trained weights, refused where they do not fit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from configs import load_vocabulary
from configs.schema import Config, ModelConfig, TextConfig
from medmap_model import checkpoint, load
from medmap_model.checkpoint import CheckpointError, Companions
from medmap_model.model import build_model
from medmap_model.text import TextTable, build_text_encoder
from medmap_model.vocabulary import Vocabulary
from tests.server.test_rounds import Hospitals, federation
from tests.trained import config, trained_run


@pytest.fixture(scope="module")
def run() -> Path:
    return trained_run()


@pytest.fixture
def mine(run, tmp_path) -> Path:
    """A checkpoint of one's own to spoil."""
    return Path(shutil.copytree(checkpoint.find(run), tmp_path / "mine"))


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text())
    for key, value in changes.items():
        *where, last = key.split("__")
        inner = content
        for part in where:
            inner = inner[part]
        inner[last] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "inside", ["", "checkpoints", "checkpoints/finetune-0002", "checkpoints/finetune-0002/model.safetensors"]
)
def test_a_run_its_checkpoints_or_one_of_them_give_the_trained_weights_in_eval_mode(run, inside):
    model = load(run / inside)
    assert not model.training
    saved = load_file(run / "checkpoints" / "finetune-0002" / "model.safetensors")
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(parameter.detach().numpy(), saved[name])
    fresh = build_model(model.config, model.vocabulary, build_text_encoder(config().text), seed=3)
    assert (fresh.fusion.norm_in.weight != model.fusion.norm_in.weight).any(), "or equality would say nothing"


def test_it_predicts_as_the_model_that_was_trained(run):
    """Frozen texts included: they are part of the forward pass, and come from the file."""
    loaded = load(run)
    built = build_model(loaded.config, loaded.vocabulary, build_text_encoder(config().text), seed=9).eval()
    built.load_state_dict(loaded.state_dict())
    volumes, present = torch.randn(3, 4, 16, 16, 16), torch.tensor([[1, 0, 0, 1], [1, 1, 1, 1], [0, 0, 1, 0]]).bool()
    with torch.no_grad():
        one, two = (m.fuse(m.encode(volumes, present, "brain"), present, "brain") for m in (loaded, built))
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    torch.testing.assert_close(loaded.class_embeddings("liver"), built.class_embeddings("liver"), rtol=0, atol=0)


def test_it_says_what_it_was_trained_on(run):
    info = load(run).info
    assert (info["sites"], info["modalities"], info["organs"]) == (2, ["T1", "T2", "FLAIR"], ["brain"])
    assert (info["stage"], info["rounds"], info["seed"], info["data"], info["privacy"]) == (
        "finetune",
        3,
        3,
        "phantom",
        "none",
    )
    plain = {
        "skull_strip": "none",
        "bias_correction": "none",
        "register": "none",
        "standardise": "zscore",
        "landmarks": {},
    }
    assert info["volumes"] == {"spacing_mm": 4, "size": 16, "crop": "centre", "clip_percentiles": [0.5, 99.5]} | plain
    assert info["vocabulary"]["hash"] == load_vocabulary("medmom").hash
    assert set(info["operating_points"]["brain"]["thresholds"]) == {"no_tumour", "tumour"}


def test_operating_points_are_those_of_the_latest_model_alone(run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    assert load(copy / "checkpoints" / "pretrain-0001").info["operating_points"] is None
    edit(copy / "checkpoints" / "finetune-0002" / "state.json", condition="pooled")
    assert load(copy).info["operating_points"] is None


def test_it_is_loaded_where_the_text_encoder_is_not_installed(mine):
    """The encoder's name is changed to one that this machine has not got; the hash of the texts stays."""
    edit(mine / "model.json", text__kind="transformers", text__model="nobody/has-this")
    before = load(mine).texts.embedding
    assert before.abs().sum() > 0


def test_another_vocabulary_is_refused_with_both_hashes(run):
    ours = load_vocabulary("medmom")
    load(run, vocabulary=ours)
    spec = ours.to_dict()
    spec["organs"]["brain"]["query"] = "Another question."
    other = Vocabulary.from_dict(spec)
    with pytest.raises(CheckpointError, match=f"vocabulary {ours.hash}, yours is {other.hash}"):
        load(run, vocabulary=other)


def test_another_text_encoder_is_refused_with_both_hashes(run):
    trained, other = (build_text_encoder(TextConfig(kind="hash", dim=d)) for d in (64, 32))
    load(run, text=trained)
    with pytest.raises(CheckpointError, match=f"text encoder {trained.hash} .*the one here is {other.hash}"):
        load(run, text=other)


def test_the_encoder_that_the_checkpoint_names_is_compared_where_it_is_here(mine):
    """The name now means an encoder of another hash, as an updated package would."""
    edit(mine / "model.json", text__dim=32)
    with pytest.raises(CheckpointError, match=r"text encoder e\w+ .*the one here is \w+: install the version"):
        load(mine)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            lambda c: (c / "model.json").unlink(),
            "has no model.json: it was written by a version that .* train it again",
        ),
        (lambda c: (c / "model.json").write_text("{"), "model.json is missing or damaged: copy the checkpoint again"),
        (lambda c: (c / "texts.safetensors").unlink(), "texts.safetensors is missing or damaged"),
        (lambda c: (c / "model.safetensors").write_bytes(b"short"), "model.safetensors is missing or damaged"),
        (lambda c: edit(c / "model.json", format=99), "has format 99, this version reads 1"),
        (lambda c: edit(c / "model.json", model__embed_dim=64), "does not fit the model that model.json describes"),
        (lambda c: edit(c / "model.json", model__encoder__width=6), "cannot be built here: model.encoder.width=6"),
        (lambda c: edit(c / "model.json", model__colour="red"), "does not describe a model"),
        (
            lambda c: edit(c / "model.json", vocabulary__organs__brain__query="?"),
            "names vocabulary .* but what it holds is",
        ),
        (lambda c: edit(c / "model.json", text__hash="0" * 16), "names text 0000000000000000, but what it holds is"),
    ],
)
def test_what_does_not_fit_is_one_sentence(mine, spoil, sentence):
    spoil(mine)
    with pytest.raises(CheckpointError, match=sentence) as raised:
        load(mine)
    assert "\n" not in str(raised.value)


def test_a_folder_without_a_checkpoint_is_one_sentence(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint: give a run's folder"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="is not there"):
        load(tmp_path / "nowhere")


def test_a_text_that_was_not_stored_is_refused_not_guessed():
    encoder = build_text_encoder(TextConfig(kind="hash", dim=8))
    table = TextTable.of(encoder)
    table.embed(["a mass", "no mass"])
    stored = TextTable(table.hash, table.dim, table.rows)
    torch.testing.assert_close(stored.embed(["no mass"]), encoder.embed(["no mass"]), rtol=0, atol=0)
    with pytest.raises(ValueError, match="'oedema' is not among the texts"):
        stored.embed(["a mass", "oedema"])


def test_a_round_writes_the_description_anew_only_when_a_site_brings_something(vocabulary, text):
    table = TextTable.of(text)
    table.embed(["x"])
    companions = Companions(Config(model=ModelConfig()), vocabulary, table, data="phantom")
    first = companions.files({"sites": ["a"], "modalities": ["FLAIR"], "organs": ["brain"]})
    again = companions.files({"sites": ["a"], "modalities": ["FLAIR"], "organs": ["brain"]})
    assert first["model.json"] is again["model.json"] and first["texts.safetensors"] is again["texts.safetensors"]
    more = json.loads(
        companions.files({"sites": ["a", "b"], "modalities": ["T1", "FLAIR"], "organs": ["brain"]})["model.json"]
    )
    assert (more["sites"], more["modalities"]) == (2, ["T1", "FLAIR"])


def test_a_folder_on_the_coordinators_machine_is_not_told(vocabulary, text, tmp_path):
    table = TextTable.of(text)
    table.embed(["x"])
    named = Config(text=TextConfig(model=str(tmp_path / "bert")))
    about = Companions(named, vocabulary, table, data="manifest").files({"sites": [], "modalities": [], "organs": []})
    assert str(tmp_path) not in about["model.json"].decode() and '"bert"' in about["model.json"].decode()


def test_the_package_is_imported_without_torch():
    code = "import sys, medmap_model; from medmap_model import contract; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


def test_a_modality_of_a_site_that_never_returned_an_update_does_not_count_as_trained(tmp_path):
    """The second of two hospitals, the only one with T2, is refused in every round."""

    def spoil(site: int, stage: str, number: int, vectors: dict[str, np.ndarray]) -> None:
        if site == 1:
            vectors["text_projection"] = vectors["text_projection"] * np.float32("nan")

    refused = federation(tmp_path / "refused", Hospitals(spoil))
    refused.run()
    assert refused.state.trained == {"sites": ["h0"], "modalities": ["T1"], "organs": ["brain"]}
    whole = federation(tmp_path / "whole", Hospitals())
    whole.run()
    assert whole.state.trained["modalities"] == ["T1", "T2"], "or the absence would say nothing"
    again = federation(tmp_path / "refused", Hospitals())
    assert again.state.trained == refused.state.trained, "a resumed run knows it"
