"""Local training on real small NIfTI hospitals: it learns, repeats exactly, and touches only what the site owns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from client.site import open_records, open_site
from client.training import Diverged, Trainer, learning_rate
from configs import load_vocabulary, to_json
from medmap_model.contract import Task
from medmap_model.groups import group_names, pack
from medmap_model.model import build_model
from medmap_model.text import build_text_encoder
from tests.conftest import small_config

VOCABULARY = load_vocabulary("medmom")
GROUPS = group_names(VOCABULARY)


def trainer(*overrides: str) -> Trainer:
    config = small_config(*overrides)
    return Trainer(build_model(config.model, VOCABULARY, build_text_encoder(config.text), seed=0), config)


@pytest.fixture
def east(hospitals, cache):
    return open_records(small_config(), (hospitals["east"],), cache)


def test_a_few_rounds_learn_what_is_bright(east):
    t = trainer("stage.finetune.lr=3e-3", "stage.finetune.epochs=8")
    before = t.validate(east, Task("finetune", 0, 1, 0))
    first = t.train(east, Task("finetune", 0, 3, 0), GROUPS, site="east")
    t.train(east, Task("finetune", 1, 3, 0), GROUPS, site="east")
    labels, p = t.predict(east, split="common", organ="brain")
    assert (p.argmax(1) == labels).mean() > 0.8
    assert t.validate(east, Task("finetune", 2, 3, 0)).val_loss < before.val_loss
    assert first.steps == 8 * 2 and first.studies == 12


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_the_same_round_gives_the_same_weights_whatever_ran_before(east, stage):
    results = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        np.random.seed(noise)  # noqa: NPY002
        t = trainer()
        t.train(east, Task(stage, 1, 3, 0), GROUPS, site="east")
        results.append(pack(t.model, GROUPS))
    for g in GROUPS:
        np.testing.assert_array_equal(results[0][g], results[1][g])
    other = trainer()
    other.train(east, Task(stage, 2, 3, 0), GROUPS, site="east")
    assert (pack(other.model, GROUPS)["encoder/T1"] != results[0]["encoder/T1"]).any()


def test_training_leaves_the_callers_random_state_alone(east):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    trainer().train(east, Task("finetune", 0, 1, 0), GROUPS, site="east")
    assert torch.rand(1) == expected


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_only_the_sites_own_groups_change(hospitals, cache, stage):
    config = to_json(small_config())
    site = open_site(config, "east", (hospitals["east"],), cache)
    start = pack(site.trainer.model, GROUPS)
    returned, figures = site.train(start, Task(stage, 0, 1, 0))
    changed = {g for g in GROUPS if (returned[g] != start[g]).any()}
    own = {"encoder/T1", "encoder/FLAIR", "projection/T1", "projection/FLAIR", "text_projection"}
    assert changed == (own if stage == "pretrain" else own | {"fusion", "head/brain"})
    assert figures.val_studies == 4
    assert (figures.val_score is None) == (stage == "pretrain")


def test_validation_is_of_the_model_as_it_came(hospitals, cache):
    site = open_site(to_json(small_config()), "east", (hospitals["east"],), cache)
    start, task = pack(site.trainer.model, GROUPS), Task("finetune", 0, 1, 0)
    expected = site.evaluate(start, task).val_loss
    assert site.train(start, task)[1].val_loss == expected


def test_fedprox_holds_the_update_back(east):
    moved = {}
    for mu in (0, 100):
        t = trainer(f"strategy.proximal_mu={mu}", "stage.finetune.epochs=4")
        start = pack(t.model, ["fusion"])["fusion"]
        t.train(east, Task("finetune", 0, 1, 0), GROUPS, site="east")
        moved[mu] = np.linalg.norm(pack(t.model, ["fusion"])["fusion"] - start)
    assert moved[100] < 0.8 * moved[0]


def test_gradient_accumulation_matches_the_whole_batch(east):
    """With dropout off and a loss that is a mean over patients, parts add up to the whole."""
    off = (
        "model.fusion.dropout=0",
        "stage.finetune.modality_dropout=0",
        "stage.finetune.epochs=1",
        "data.augment.flip=false",
        "stage.finetune.batch_size=12",
    )
    results = []
    for micro in (0, 4):
        t = trainer(*off, f"stage.finetune.micro_batch={micro}")
        t.train(east, Task("finetune", 0, 1, 0), GROUPS, site="east")
        results.append(pack(t.model, ["head/brain"])["head/brain"])
    np.testing.assert_allclose(results[0], results[1], rtol=1e-3, atol=1e-5)


def test_a_loss_that_is_not_finite_is_named(east):
    t = trainer()
    with torch.no_grad():
        next(t.model.heads["brain"].parameters()).fill_(float("nan"))
    with pytest.raises(Diverged, match="finetune round 1: the loss is not finite"):
        t.train(east, Task("finetune", 0, 1, 0), GROUPS, site="east")


def test_modalities_the_model_never_saw_are_hidden(east):
    t = trainer()
    everything = t.predict(east, split="test", organ="brain")[1]
    t1_alone = t.predict(east, split="test", organ="brain", known={"T1", "T2"})[1]
    nothing = t.predict(east, split="test", organ="brain", known={"T2"})[1]
    assert np.abs(everything - t1_alone).max() > 0
    np.testing.assert_array_equal(nothing, 0.5)


def test_the_learning_rate_falls_as_a_cosine_to_its_floor():
    settings = small_config("stage.finetune.lr=1", "stage.finetune.lr_floor=0.1").stage.finetune
    rates = [learning_rate(settings, Task("finetune", r, 10, 0)) for r in range(11)]
    assert rates[0] == 1 and rates[10] == pytest.approx(0.1)
    assert rates[5] == pytest.approx(0.55)
    assert rates == sorted(rates, reverse=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; none is visible here")
def test_on_a_gpu_the_same_code_trains_in_bf16(east):
    t = trainer("engine.device=cuda", "engine.precision=bf16")
    figures = t.train(east, Task("finetune", 0, 1, 0), GROUPS, site="east")
    assert figures.peak_memory_mb > 0 and np.isfinite(figures.loss)
