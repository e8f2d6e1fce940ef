"""Past records as further candidates: first in, first out, without gradient, per organ, and only where asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from client.site import open_records
from client.training import Trainer
from configs import load_vocabulary
from configs.schema import EncoderConfig, FusionConfig, ModelConfig
from configs.stages import PretrainConfig
from medmap_model import objectives as o
from medmap_model.batch import Batch
from medmap_model.contract import Task
from medmap_model.groups import group_names, pack
from medmap_model.model import MedMAP, build_model
from medmap_model.text import TextEncoder, build_text_encoder
from medmap_model.vocabulary import Vocabulary
from tests.conftest import small_config

Make = Callable[..., Batch]
QUEUED = ("asymmetric", "siglip", "dhn_nce", "partial_ot")


@pytest.fixture
def make_batch(make_batch: Make) -> Make:
    """Small cubes: nothing here is about what an encoder sees."""
    return partial(make_batch, size=8)


@pytest.fixture
def small(vocabulary: Vocabulary, text: TextEncoder) -> MedMAP:
    config = ModelConfig(encoder=EncoderConfig(width=8), embed_dim=16, fusion=FusionConfig(heads=2))
    return build_model(config, vocabulary, text, seed=0)


def test_first_in_first_out_and_each_organ_on_its_own(make_batch: Make) -> None:
    queue = o.Queue(5)
    assert queue.records("liver") is None
    for step in range(3):
        batch = make_batch("liver", [[1, 1, 1]] * 3, labels=[3 * step, 3 * step + 1, 3 * step + 2])
        queue.push(batch, torch.zeros(3, 4, 16, requires_grad=True), torch.ones(3, 4, dtype=torch.bool))
    queue.push(make_batch("brain", [[1, 1]] * 2), torch.zeros(2, 3, 16), torch.ones(2, 3, dtype=torch.bool))
    held = queue.records("liver")
    assert held is not None
    assert held.label.tolist() == [4, 5, 6, 7, 8]
    assert not held.image.requires_grad
    assert len(queue.records("brain").label) == 2
    with pytest.raises(ValueError, match="queue=0"):
        o.Queue(0)


@pytest.mark.parametrize("name", QUEUED)
def test_an_empty_queue_changes_no_bit_and_a_full_one_does(small: MedMAP, make_batch: Make, name: str) -> None:
    batch = make_batch("liver", [[1, 0, 1], [1, 1, 0]], reports=["a", "b"])
    config, queue = PretrainConfig(objective=name), o.Queue(8)
    without = small.pretrain_loss(batch, config)["loss"]
    first = small.pretrain_loss(batch, config, queue=queue)["loss"]
    assert torch.equal(without, first)
    other = make_batch("liver", [[1, 1, 1]] * 4, labels=[2, 2, 1, -1], reports=["c", "d", None, "e"], seed=1)
    small.pretrain_loss(other, config, queue=queue)
    held = queue.records("liver")
    assert held is not None
    assert len(held.label) == 6
    assert held.has_report.tolist() == [True, True, True, True, False, True]
    small.zero_grad(set_to_none=True)
    third = small.pretrain_loss(batch, config, queue=queue)["loss"]
    assert third.isfinite()
    assert third != without
    third.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in small.parameters())


def test_past_reports_of_the_same_kind_are_positives(small: MedMAP, make_batch: Make) -> None:
    """A past patient's report is a further negative; of the same abnormality, or word for word the same, a positive."""
    config = PretrainConfig(image_to_text=1.0, bank="none")
    batch = make_batch("liver", [[1, 1, 1]] * 2, labels=[0, 1], reports=["a", "b"])
    losses = {}
    for kind, labels, reports in (
        ("other", [2, 2], ["c", "d"]),
        ("same", [0, 1], ["c", "d"]),
        ("words", [-1, -1], ["a", "b"]),
    ):
        queue = o.Queue(8)
        past = make_batch("liver", [[1, 1, 1]] * 2, labels=labels, reports=reports, seed=1)
        small.pretrain_loss(past, config, queue=queue)
        losses[kind] = small.pretrain_loss(batch, config, queue=queue)["loss"].item()
    without = small.pretrain_loss(batch, config)["loss"].item()
    assert losses["other"] > without + 0.3  # twice the candidates, no further positive
    assert losses["same"] < losses["other"] - 0.3
    assert losses["words"] < losses["other"] - 0.3


def test_past_images_are_candidates_of_a_report(small: MedMAP, make_batch: Make) -> None:
    config = PretrainConfig(image_to_text=0.0, bank="none")
    batch = make_batch("liver", [[1, 0, 0]] * 2, labels=[0, 1], reports=["a", "b"])
    queue = o.Queue(8)
    small.pretrain_loss(
        make_batch("liver", [[1, 0, 0]] * 2, labels=[2, 2], reports=[None] * 2, seed=1), config, queue=queue
    )
    with_past = small.pretrain_loss(batch, config, queue=queue)["reports_to_image"]
    assert with_past > small.pretrain_loss(batch, config)["reports_to_image"] + 0.3
    elsewhere = o.Queue(8)  # past patients without the modality say nothing about it
    past = make_batch("liver", [[0, 1, 0]] * 2, labels=[2, 2], reports=[None] * 2, seed=1)
    image, valid = small.image_embeddings(small.encode(past.volumes, past.present, "liver"), past.present)
    elsewhere.push(past, image, valid & torch.tensor([True, True, True, False]))
    same = small.pretrain_loss(batch, config, queue=elsewhere)["reports_to_image"]
    assert same.item() == pytest.approx(small.pretrain_loss(batch, config)["reports_to_image"].item(), rel=1e-6)


def test_the_separable_objective_takes_no_past_patients(small: MedMAP, make_batch: Make) -> None:
    queue, config = o.Queue(8), PretrainConfig(objective="bank")
    batch = make_batch("liver", [[1, 0, 1], [1, 1, 0]])
    small.pretrain_loss(batch, config, queue=queue)
    assert queue.records("liver") is None


def test_turned_reports_and_past_ones_go_together(small: MedMAP, make_batch: Make) -> None:
    batch = make_batch("liver", [[1, 0, 1], [1, 1, 0]])
    turned = replace(batch, negatives=torch.randn(2, 2, 32, generator=torch.Generator().manual_seed(0)))
    for name in QUEUED:
        queue, config = o.Queue(8), PretrainConfig(objective=name, hard_negatives=True)
        for _ in range(2):
            loss = small.pretrain_loss(turned, config, queue=queue)["loss"]
        loss.backward()
        assert loss.isfinite()


def test_a_round_with_a_queue_repeats_exactly_and_differs_from_one_without(hospitals, cache) -> None:
    vocabulary, found = load_vocabulary("medmom"), {}
    records = open_records(small_config(), (hospitals["east"],), cache)
    for key, size in (("first", 6), ("again", 6), ("off", 0)):
        config = small_config(f"stage.pretrain.queue={size}", "stage.pretrain.batch_size=4")
        trainer = Trainer(build_model(config.model, vocabulary, build_text_encoder(config.text), seed=0), config)
        trainer.train(records, Task("pretrain", 0, 1, 0), group_names(vocabulary), site="east")
        found[key] = pack(trainer.model, ["encoder/T1"])["encoder/T1"]
    np.testing.assert_array_equal(found["first"], found["again"])
    assert (found["first"] != found["off"]).any()
