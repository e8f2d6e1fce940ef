"""A small federation, trained, then measured on its test patients; and the sets that are too small for it."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client.site import SiteEntry, trainer_for
from configs import to_json
from configs.schema import Config
from medmap_model.groups import group_names, pack
from server import checkpoint
from simulation import evaluate as module
from simulation.conditions import Hospital, jobs, load_predictions, run_job
from simulation.evaluate import choose_test_set, evaluate, pretrained_checkpoint
from tests.conftest import small_config, write_hospital


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Config, list[Hospital], Path, dict]:
    """Two hospitals trained for three rounds and an external one; everything but corruptions measured."""
    root = tmp_path_factory.mktemp("evaluate")
    names = {"east": ["T1", "FLAIR"], "west": ["T2", "FLAIR"], "beyond": ["T1", "T1ce", "FLAIR"]}
    hospitals = [
        Hospital(SiteEntry(n, (write_hospital(root / n, modalities),)), n == "beyond")
        for n, modalities in names.items()
    ]
    config = small_config("model.fusion.dropout=0", "baselines=[]")
    result = run_job(jobs(config, hospitals)[0][0], hospitals, root / "run", lambda event: None)
    return config, hospitals, root / "run", result


def test_a_run_tells_every_part_in_json(world):
    _, _, run_dir, result = world
    told = json.loads(json.dumps(result["evaluation"], allow_nan=False))
    assert told["test_set"] == "external"
    assert set(told) == {"test_set", "zero_shot", "retrieval", "missing", "importance"}, (
        "corruptions are off by default"
    )
    for state in ("pretrained", "final"):
        assert told["zero_shot"]["brain"][state]["n"] == 6
        found = told["retrieval"]["brain"][state]
        assert found["image_to_report"]["n"] == 6 and found["image_to_report"]["distinct"] == 2
    assert told["zero_shot"]["brain"]["pretrained"] != told["zero_shot"]["brain"]["final"]
    missing = told["missing"]["brain"]
    assert missing["modalities"] == ["T1", "FLAIR"], "T1ce, that nobody trains on, is hidden"
    assert len(missing["subsets"]) == 3 and set(missing["random"]) == {"0.25", "0.5", "0.75"}
    assert set(told["importance"]["brain"]) == {"T1", "FLAIR"}
    examples = json.loads((run_dir / "examples" / "examples.json").read_text())
    shown = [m for e in examples for m in e["modalities"] if "overlay" in m]
    assert shown and all((run_dir / "examples" / m["overlay"]).read_bytes().startswith(b"\x89PNG") for m in shown)
    beyond = next(e for e in examples if e["site"] == "beyond")
    assert "overlay" not in next(m for m in beyond["modalities"] if m["name"] == "T1ce"), "the model never saw it"
    assert set(beyond["importance"]) == {"T1", "FLAIR"}


def test_all_modalities_together_score_what_the_comparison_says(world):
    from medmap_model.evaluation import scores

    _, _, run_dir, result = world
    found = load_predictions(run_dir, "federated")[("beyond", "test", "brain")]
    expected = scores(found.labels, found.probabilities)["auroc"]
    assert result["evaluation"]["missing"]["brain"]["full"] == pytest.approx(expected)


def test_the_model_after_stage_1_is_kept_and_the_last_one_is_left_in_place(world):
    config, hospitals, run_dir, _ = world
    kept = pretrained_checkpoint(run_dir)
    assert kept is not None and kept.name == "pretrain-0001"
    assert checkpoint.latest(run_dir / "checkpoints").name == "finetune-0002"
    trainer = trainer_for(to_json(config))
    before = pack(trainer.model, group_names(trainer.model.vocabulary))
    evaluate(config, trainer, hospitals, run_dir)
    after = pack(trainer.model, before)
    assert all(np.array_equal(after[g], v) for g, v in before.items())


def test_no_prediction_sees_a_test_report(world, monkeypatch):
    """Other reports change retrieval and nothing else."""
    config, hospitals, run_dir, result = world
    trainer = trainer_for(to_json(config))

    def others(config, studies):
        reports = [f"Nonsense number {i}." for i in range(len(studies))]
        generator = torch.Generator().manual_seed(0)
        return list(range(len(studies))), reports, torch.randn(len(studies), 64, generator=generator)

    monkeypatch.setattr(module, "_reports", others)
    again = evaluate(config, trainer, hospitals, run_dir)
    assert again["retrieval"] != result["evaluation"]["retrieval"]
    for part in ("zero_shot", "missing", "importance"):
        assert again[part] == result["evaluation"][part], part
    for batch in choose_test_set(config, hospitals, run_dir).batches("brain"):
        assert not batch.has_report.any() and not batch.report.any()


def test_only_what_is_asked_for_is_measured(world):
    config, hospitals, run_dir, _ = world
    trainer = trainer_for(to_json(config))
    none = replace(config.evaluation, zero_shot=False, retrieval=False, missing=False, interpret=False)
    assert evaluate(replace(config, evaluation=none), trainer, hospitals, run_dir) == {}
    alone = evaluate(replace(config, evaluation=replace(none, zero_shot=True)), trainer, hospitals, run_dir)
    assert set(alone) == {"test_set", "zero_shot"}


def test_without_an_external_hospital_the_common_patients_serve_and_without_a_kept_stage_1_it_is_none(world):
    config, hospitals, run_dir, _ = world
    trainer = trainer_for(to_json(config))
    elsewhere = run_dir.parent / "no-run"
    told = evaluate(config, trainer, [h for h in hospitals if not h.external], elsewhere)
    assert told["test_set"] == "common"
    assert told["zero_shot"]["brain"]["final"]["n"] == 12
    assert told["zero_shot"]["brain"]["pretrained"] is None and told["retrieval"]["brain"]["pretrained"] is None


def test_one_class_without_reports_survives_with_reasons(world, tmp_path):
    config, hospitals, run_dir, _ = world
    manifest = write_hospital(tmp_path / "tiny", ["FLAIR"])
    with manifest.open() as f:
        reader = csv.DictReader(f)
        head = [h for h in reader.fieldnames or () if h != "report"]
        table = [r for r in reader if r["split"] == "test" and r["abnormality"] == "no_tumour"]
    with manifest.open("w", newline="") as f:
        writer = csv.DictWriter(f, head, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(table)
    alone = [*(h for h in hospitals if not h.external), Hospital(SiteEntry("tiny", (manifest,)), True)]
    told = evaluate(config, trainer_for(to_json(config)), alone, run_dir)
    json.dumps(told, allow_nan=False)
    assert told["zero_shot"]["brain"]["final"]["auroc"] is None
    assert told["retrieval"]["brain"]["final"]["image_to_report"] is None
    assert "different reports" in told["retrieval"]["brain"]["final"]["reason"]
    assert told["missing"]["brain"]["mean"] is None and told["missing"]["brain"]["reason"]
