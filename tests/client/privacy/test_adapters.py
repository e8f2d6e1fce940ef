"""Adapters: the same function at their start, clipped like anything else, and merged into a change of low rank."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from client.privacy.adapters import TRAINED, adapted, merge
from client.privacy.gradients import PatientGradients
from client.privacy.training import PrivateTrainer, trained_parameters
from configs.schema import EncoderConfig
from configs.setting import ConfigError
from medmap_model.contract import Task
from medmap_model.encoders import REGISTRY
from medmap_model.groups import layout, pack
from medmap_model.model import MedMAP
from tests.client.privacy.small import GROUPS, LOSSES, NAN, C, build, flat, moved, patients, pick, site, with_nan
from tests.medmap_model.backbones import save_backbone
from tests.medmap_model.test_encoders import SMALLEST

RANK = 3


@pytest.fixture(scope="module", params=["compact", "medmap"])
def model(request) -> MedMAP:
    return build(request.param)


def learned(network: MedMAP) -> MedMAP:
    """As after some training: no adapter is zero any more, and the heads have moved."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if TRAINED in name or name.startswith("heads."):
                p += 0.1 * torch.randn(p.shape, generator=g, dtype=p.dtype)
    return network


def engine(network: MedMAP, stage: str, chunk: int = 2) -> PatientGradients:
    names = trained_parameters(network, GROUPS[stage], "adapters")
    return PatientGradients(network, LOSSES[stage], names, clip_norm=C, chunk=chunk)


@pytest.mark.parametrize("stage", LOSSES)
def test_a_fresh_adapter_changes_no_answer_and_a_trained_one_does(model, stage):
    network = adapted(model, GROUPS[stage], rank=RANK, seed=0)
    batch = pick(patients(), [0, 2, 5])
    assert torch.equal(LOSSES[stage](network, batch), LOSSES[stage](model, batch))
    assert (LOSSES[stage](learned(network), batch) - LOSSES[stage](model, batch)).abs() > 1e-4


def test_the_fixed_half_is_orthonormal_public_and_new_with_each_seed_and_torchs_generator_stays(model):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, again, other = (adapted(model, ["fusion"], rank=RANK, seed=s) for s in (7, 7, 8))
    assert torch.equal(state, torch.get_rng_state())
    halves = [{n: p for n, p in m.named_parameters() if ".lora_A." in n} for m in (first, again, other)]
    for name, a in halves[0].items():
        rows = a.flatten(1)
        assert torch.allclose(rows @ rows.T, torch.eye(RANK, dtype=a.dtype), atol=1e-6)
        assert torch.equal(a, halves[1][name]) and not torch.allclose(a, halves[2][name])


@pytest.mark.parametrize("stage", LOSSES)
def test_only_adapters_and_heads_of_the_own_groups_train(model, stage):
    network = adapted(model, GROUPS[stage], rank=RANK, seed=0)
    names = trained_parameters(network, GROUPS[stage], "adapters")
    assert names and all(TRAINED in n or n.startswith("heads.liver") for n in names)
    assert any(n.startswith("heads.") for n in names) == (stage == "finetune")
    assert not [n for n in names if "FLAIR" in n]
    everything = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for n, p in network.named_parameters() if n in names) < everything / 10


@pytest.mark.parametrize("stage", LOSSES)
def test_one_patient_moves_the_sum_of_adapters_by_at_most_c(model, stage):
    network = learned(adapted(model, GROUPS[stage], rank=RANK, seed=0))
    found = moved(engine(network, stage).clipped_sum, with_nan(patients()))
    assert max(found) <= 1 + 1e-5
    assert max(found) > 0.9
    assert found[NAN] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", REGISTRY)
def test_every_encoder_can_be_adapted_and_vmap_equals_a_loop_and_merging_changes_no_answer(kind, tmp_path):
    encoder = SMALLEST.get(kind)
    if encoder is None:
        save_backbone("convnext", tmp_path)
        encoder = EncoderConfig(kind=kind, backbone=str(tmp_path), size=32)
    model, batch = build(encoder=encoder), pick(patients(size=encoder.size), [0, 1, 2, 4])
    network = learned(adapted(model, GROUPS["finetune"], rank=RANK, seed=0))
    assert any(TRAINED in n and n.startswith("encoders.T1") for n, _ in network.named_parameters())
    together, alone = engine(network, "finetune").clipped_sum(batch), engine(network, "finetune", 0).clipped_sum(batch)
    assert (flat(together) - flat(alone)).norm() <= 1e-6 * flat(alone).norm()
    names, before = list(layout(model).items()), LOSSES["finetune"](model, batch)
    merge(network, model)
    assert list(layout(model).items()) == names
    after = LOSSES["finetune"](model, batch)
    assert torch.allclose(after, LOSSES["finetune"](network, batch), atol=1e-9)
    assert (after - before).abs() > 1e-4


@pytest.mark.parametrize("stage", LOSSES)
def test_a_merge_is_a_change_of_low_rank_of_adapted_layers_and_of_nothing_else(stage):
    model = build()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    network = learned(adapted(model, GROUPS[stage], rank=RANK, seed=0))
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())  # a copy
    merge(network, model)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    layers = {n.partition(TRAINED)[0] + ".weight" for n, _ in network.named_parameters() if TRAINED in n}
    assert changed == layers | {n for n in before if n.startswith("heads.")}
    pointwise = [n for n in layers if before[n].shape[2:] == (1, 1, 1)]
    assert pointwise  # peft's own merge fails on these
    after = dict(model.named_parameters())
    ranks = {n: int(torch.linalg.matrix_rank((after[n] - before[n]).flatten(1), rtol=1e-9)) for n in layers}
    assert max(ranks.values()) == RANK


@pytest.mark.parametrize(("trainable", "low"), [("adapters", True), ("all", False)])
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_private_round_moves_weights_by_low_rank_with_adapters_and_by_full_rank_without(
    stage, trainable, low, hospitals, cache
):
    _, trainer, records = site(
        hospitals["east"], cache, f"privacy.trainable={trainable}", f"privacy.adapter_rank={RANK}", "privacy.steps=4"
    )
    model = trainer.model
    groups = [
        "encoder/T1",
        "projection/T1",
        "text_projection",
        *(["fusion", "head/brain"] if stage == "finetune" else []),
    ]
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    vectors = pack(model, layout(model))
    PrivateTrainer(trainer).train(records, Task(stage, 0, 2, seed=0), groups)
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert {g for g, v in pack(model, layout(model)).items() if (v != vectors[g]).any()} == set(groups)
    weight = "encoders.T1.blocks.0.conv2.weight"
    values = torch.linalg.svdvals((after[weight] - before[weight]).detach().double().flatten(1))
    rank = int((values > 1e-4 * values[0]).sum())  # float32: what is added rounds off
    assert rank == RANK if low else rank == min(len(values), before[weight].shape[0])
    if low:
        assert torch.equal(after["encoders.T1.blocks.0.norm1.weight"], before["encoders.T1.blocks.0.norm1.weight"])


def test_a_model_without_a_layer_to_adapt_is_told_so_in_a_sentence(model):
    with pytest.raises(ConfigError, match=r"adapter_rank=4096: no Linear or Conv3d") as caught:
        adapted(model, GROUPS["finetune"], rank=4096, seed=0)
    assert "\n" not in str(caught.value)


def test_grouped_dilated_and_otherwise_padded_convolutions_stay_as_they_are():
    network = build()
    encoder = network.encoders["T1"]
    for name, layer in {
        "grouped": nn.Conv3d(8, 8, 3, groups=8),
        "dilated": nn.Conv3d(8, 8, 3, dilation=2),
        "circular": nn.Conv3d(8, 8, 3, padding=1, padding_mode="circular"),
        "plain": nn.Conv3d(8, 8, 3),
    }.items():
        encoder.add_module(name, layer)
    found = [n for n, _ in adapted(network, ["encoder/T1"], rank=RANK, seed=0).named_parameters() if TRAINED in n]
    assert [n for n in found if "plain" in n]
    assert not [n for n in found if "grouped" in n or "dilated" in n or "circular" in n]


def test_peft_is_not_imported_until_adapters_are_asked_for():
    code = "import sys, client.privacy.training, client.privacy.checks; print('peft' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "False"
