"""Exports: a card that says only what is known, a bundle that MONAI runs, ONNX that agrees with torch or is not written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file
from typer.testing import CliRunner, Result

from client.exams import read_exams
from client.predict import predict
from configs import load as load_config
from medmap_model import load
from medmap_model.checkpoint import Companions, find
from medmap_model.detector import Detector
from medmap_model.groups import layout, pack
from medmap_model.model import build_model
from medmap_model.text import TextTable, build_text_encoder
from medmap_model.vocabulary import Vocabulary
from server import checkpoint
from server.cli import app
from server.export import ExportError, export
from server.export import onnx as onnx_export
from tests.trained import manifest_of, trained_run


@pytest.fixture(scope="module")
def run() -> Path:
    return trained_run()


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory) -> Path:
    return export(run, tmp_path_factory.mktemp("bundle") / "medmap", kind="bundle")


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


WORDS = {
    "name": "small",
    "organs": {
        "brain": {
            "modalities": ["T1", "T1ce", "FLAIR"],
            "query": "Brain MRI. Is there a tumour?",
            "prompts": {"no_tumour": ["No mass."], "tumour": ["A mass."]},
        }
    },
}


def untrained(folder: Path, *overrides: str) -> Path:
    """A checkpoint of any architecture at its initial weights, written as a federation without T1ce writes it."""
    config, words = (
        load_config(["text=hash", "data.volumes.size=16", "model.embed_dim=32", *overrides]),
        Vocabulary.from_dict(WORDS),
    )
    texts = TextTable.of(build_text_encoder(config.text))
    model = build_model(config.model, words, texts, seed=0)
    companions = Companions(config, words, texts, data="phantom")
    trained = {"sites": ["a"], "modalities": ["T1", "FLAIR"], "organs": ["brain"]}
    state = {"condition": "federated", "stage": "finetune", "completed": 0}
    plan = layout(model)
    return checkpoint.save(folder, "finetune-0000", pack(model, plan), plan, state, beside=companions.files(trained))


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---")[1])


def test_safetensors_load_with_all_that_the_run_knew(run, tmp_path):
    folder = export(run, tmp_path / "out", kind="safetensors")
    assert {p.name for p in folder.iterdir()} == {"README.md", "model.json", "model.safetensors", "texts.safetensors"}
    one, two = load(run), load(folder)
    assert two.info == one.info and one.info["operating_points"]
    for name, tensor in load_file(folder / "model.safetensors").items():
        np.testing.assert_array_equal(tensor, load_file(find(run) / "model.safetensors")[name])


def test_the_card_tells_the_summarys_numbers_and_names_no_hospital(run, tmp_path):
    card = (export(run, tmp_path / "out", kind="safetensors") / "README.md").read_text()
    head, scores = front_matter(card), json.loads((run / "summary.json").read_text())["metrics"]["federated"]["brain"]
    assert (head["sites"], head["rounds"], head["data"], head["privacy"]) == (2, 3, "phantom", "none")
    assert "phantom" in head["tags"] and head["metrics"]["brain"]["auroc"] == scores["auroc"]
    low, high = scores["auroc_ci"]
    assert f"{scores['auroc']:.3f} ({low:.3f} to {high:.3f})" in card
    for text in (
        "Not a medical device",
        "No real patient",
        "not made differentially private",
        "T1ce",
        "It detects nothing in: liver",
    ):
        assert text in card
    assert "east" not in card and "west" not in card and str(run) not in card


def test_without_a_summary_the_card_says_that_scores_are_not_known(run, tmp_path):
    alone = shutil.copytree(find(run), tmp_path / "alone" / "x" / "checkpoint")
    card = (export(alone, tmp_path / "out", kind="safetensors") / "README.md").read_text()
    assert "Not known: the checkpoint came without the summary" in card
    assert "metrics" not in front_matter(card) and "AUROC" not in card


def test_monai_loads_the_bundle_from_any_folder(run, bundle):
    from monai.bundle import load as load_bundle

    network = load_bundle(
        name=bundle.name, bundle_dir=str(bundle.parent), workflow_type="inference", source="github", device="cpu"
    )
    ours = Detector(load(run), "brain")
    volumes, present = (
        torch.randn(4, 4, 16, 16, 16),
        torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 1]]).bool(),
    )
    with torch.no_grad():
        torch.testing.assert_close(network(volumes, present), ours(volumes, present), rtol=0, atol=1e-6)
        alone = ours(volumes, torch.zeros(4, 4, dtype=torch.bool))
        torch.testing.assert_close(
            ours(volumes, present)[2], alone[2]
        )  # T1ce was never trained: as if nothing were there
        assert (ours(volumes, present)[3] - alone[3]).abs().max() > 1e-4


def test_the_bundle_runs_on_nifti_files_and_gives_what_predict_gives(run, bundle, tmp_path):
    from monai.bundle import ConfigWorkflow

    source, output = manifest_of(run, "east").parent, tmp_path / "out.json"
    study = [f"{m}={source / f'east-test-1-{m}.nii.gz'}" for m in ("T1", "FLAIR")]
    workflow = ConfigWorkflow(
        config_file=str(bundle / "configs" / "inference.json"), workflow_type="inference", logging_file=False,
        bundle_root=str(bundle), studies=study, output=str(output), device="$torch.device('cpu')",
    )  # fmt: skip
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    workflow.finalize()
    model = load(run)
    [wanted] = predict(model, read_exams(study, model.vocabulary))
    [found] = json.loads(output.read_text())["studies"]
    assert found["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-4)
    assert (found["call"], found["modalities"]["used"]) == (wanted.call, ["T1", "FLAIR"])


def test_the_bundle_says_what_it_needs_and_holds_no_pickled_code(bundle):
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    required = {"version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task", "description",
                "authors", "copyright", "network_data_format"}  # fmt: skip
    assert required <= set(metadata) and "medmap-fl" in metadata["required_packages_version"]
    assert all(
        isinstance(v, torch.Tensor) for v in torch.load(bundle / "models" / "model.pt", weights_only=True).values()
    )
    assert (bundle / "docs" / "README.md").read_text() == (bundle / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("model=tiny",),
        ("model=medmap", "model.fusion.layers=1", "model.fusion.width=16"),
        ("model=tiny", "model.encoder.kind=resnet10", "model.encoder.width=8", "model.sharing=shared"),
    ],
)
def test_onnx_agrees_with_torch_with_any_modality_absent_and_any_batch(tmp_path, overrides):
    import onnxruntime

    source = untrained(tmp_path / "checkpoints", *overrides)
    folder = export(source, tmp_path / "out", kind="onnx")
    told = json.loads((folder / "brain.json").read_text())
    assert told["largest_difference_from_torch"] < 1e-4
    assert told["modalities"] == ["T1", "T1ce", "FLAIR"] and "T1ce" not in told["trained_modalities"]
    session = onnxruntime.InferenceSession(str(folder / "brain.onnx"), providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["medmap"])["organ"] == "brain"
    ours = Detector(load(source), "brain")
    generator = torch.Generator().manual_seed(5)
    for n in (1, 7):
        volumes, present = (
            torch.randn(n, 3, 16, 16, 16, generator=generator),
            torch.rand(n, 3, generator=generator) > 0.5,
        )
        found = session.run(None, {"volumes": volumes.numpy(), "present": present.numpy()})[0]
        with torch.no_grad():
            np.testing.assert_allclose(found, ours(volumes, present).numpy(), atol=1e-4)
        changed = torch.where(present[..., None, None, None], volumes, 99.0)
        again = session.run(None, {"volumes": changed.numpy(), "present": present.numpy()})[0]
        np.testing.assert_array_equal(again, found)
    # Control of the check itself: the file against another model's weights does not pass.
    other = load(source)
    with torch.no_grad():
        other.heads["brain"].bias[0] += 0.1
    assert onnx_export.largest_difference(folder / "brain.onnx", other, "brain") > 1e-3


@pytest.mark.slow
def test_an_onnx_that_disagrees_is_not_left_behind(tmp_path, monkeypatch):
    source = untrained(tmp_path / "checkpoints", "model=tiny", "model.encoder.width=4")
    monkeypatch.setattr(onnx_export, "TOLERANCE", -1.0)
    with pytest.raises(ExportError, match=r"differs from torch by .* nothing was written"):
        export(source, tmp_path / "out", kind="onnx")
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoints"}


def test_the_command_says_where_it_wrote_and_every_mistake_is_one_sentence(run, tmp_path):
    shown = cli(run, "-o", tmp_path / "out")
    assert (shown.exit_code, shown.stdout.strip()) == (0, str(tmp_path / "out"))
    (tmp_path / "file").write_text("")
    for arguments, sentence in (
        ((run, "-o", tmp_path / "out"), "is there already: give a new folder"),
        (
            (run, "-o", tmp_path / "new", "--to", "tensorflow"),
            "--to tensorflow is not known: take one of safetensors, bundle, onnx",
        ),
        ((tmp_path / "none", "-o", tmp_path / "new"), "is not there: give a run's folder"),
        ((run / "checkpoints" / "pretrain-0001", "-o", tmp_path / "new", "--to", "bundle"), "ends with stage 1"),
        ((run, "-o", tmp_path / "file" / "new"), "cannot be written"),
    ):
        shown = cli(*arguments)
        assert (shown.exit_code, shown.stderr.count("\n")) == (1, 1), shown.stderr
        assert sentence in shown.stderr
    assert not (tmp_path / "new").exists()
