"""Engines: hooks equal vmap where they are allowed, are refused by name elsewhere, and `auto` takes what works and is quicker."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from client.privacy import engines
from client.privacy.engines import build_engine, quickest, refuse_if_wrong, uneven
from client.privacy.gradients import PatientGradients
from client.privacy.hooks import HookGradients
from client.privacy.synthetic import synthetic_batch
from client.privacy.training import PrivateTrainer, trained_parameters
from configs.federated import PrivacyConfig
from configs.setting import ConfigError
from medmap_model.batch import Batch
from medmap_model.contract import Task
from medmap_model.groups import layout, pack
from medmap_model.model import MedMAP
from tests.client.privacy.small import LOSSES, NAN, C, build, finetune, flat, moved, patients, site, with_nan
from tests.medmap_model.conftest import SPEC
from tests.medmap_model.test_encoders import SMALLEST

SEVERAL = {**SPEC, "organs": {o: {**s, "multi_label": True} for o, s in SPEC["organs"].items()}}


def hooks(model: MedMAP, stage: str, trainable: str = "norms", chunk: int = 4) -> HookGradients:
    names = trained_parameters(model, layout(model), trainable)
    return HookGradients(model, LOSSES[stage], names, clip_norm=C, chunk=chunk)


def vmap(engine: PatientGradients) -> PatientGradients:
    return PatientGradients(engine.model, engine.loss, engine.names, clip_norm=C, chunk=2)


@pytest.mark.parametrize("stage", LOSSES)
@pytest.mark.parametrize("spec", [SPEC, SEVERAL], ids=["one_label", "several"])
def test_hooks_equal_vmap_for_every_patient_whatever_is_known_of_it(stage, spec):
    """Unknown labels, none of the classes, absent modalities: the mean of a batch is not the loss of one alone."""
    model = build(spec=spec)
    engine, batch = hooks(model, stage), patients()
    found, expected = flat(engine.clipped_sum(batch)), flat(vmap(engine).clipped_sum(batch))
    assert (found - expected).norm() <= 1e-6 * expected.norm()  # sums are float32
    pair = batch.rows(slice(1, 3))
    for name, right in vmap(engine).each(pair).items():
        assert torch.allclose(engine.each(pair)[name], right, rtol=1e-10, atol=1e-12), name


@pytest.mark.parametrize("stage", LOSSES)
def test_one_patient_moves_the_sum_of_hooks_by_at_most_c(stage):
    found = moved(hooks(build(), stage).clipped_sum, with_nan(patients()))
    assert max(found) <= 1 + 1e-5
    assert max(found) > 0.9
    assert found[NAN] == pytest.approx(0, abs=1e-6)


def test_hooks_leave_a_model_as_it_was():
    model = build()
    wanted = {n: p.requires_grad for n, p in model.named_parameters()}
    attributes = {n: set(vars(m)) for n, m in model.named_modules()}
    hooks(model, "finetune").clipped_sum(patients())
    assert {n: p.requires_grad for n, p in model.named_parameters()} == wanted
    assert {n: set(vars(m)) for n, m in model.named_modules()} == attributes
    assert not any(m._forward_hooks or m._backward_hooks or m.training for m in model.modules())
    assert not any(hasattr(p, "grad_sample") or p.grad is not None for p in model.parameters())


def refused(model: MedMAP, stage: str, trainable: str = "norms") -> str:
    with pytest.raises(ConfigError) as caught:
        refuse_if_wrong(hooks(model, stage, trainable), uneven(synthetic_batch(model, "liver", patients=3, size=16)))
    assert "\n" not in str(caught.value) and str(caught.value).startswith("privacy.engine=hooks: ")
    return str(caught.value)


@pytest.mark.parametrize("stage", LOSSES)
def test_hooks_are_allowed_where_they_are_right(stage):
    model = build()
    refuse_if_wrong(hooks(model, stage), uneven(synthetic_batch(model, "liver", patients=3, size=16)))


def test_hooks_are_refused_by_name_where_a_convolution_pads_otherwise_and_would_be_wrong_in_silence():
    model = build()
    engine, batch = hooks(model, "finetune", "norms"), patients().rows(slice(0, 2))
    for encoder in model.encoders.values():
        encoder.stem.padding_mode = "replicate"
    engine.names = [n for n in dict(model.named_parameters()) if n.endswith("stem.weight")]
    right = flat(vmap(engine).each(batch))
    assert (flat(engine.each(batch)) - right).norm() > 0.01 * right.norm()
    assert "encoders.T1.stem pads with padding_mode=replicate" in refused(model, "finetune")


@pytest.mark.parametrize(
    ("fusion", "trainable", "words"),
    [
        ("medmap", "norms", "fusion.norm_text.weight"),  # its rows are texts, not patients
        ("compact", "all", "cannot deal"),  # the text projection, and projections that take two tensors
        ("compact", "projections_heads", "cannot deal"),
    ],
)
def test_hooks_are_refused_where_rows_are_not_patients(fusion, trainable, words):
    assert words in refused(build(fusion), "finetune", trainable)


def test_hooks_are_refused_where_a_network_adds_in_place():
    model = build(encoder=replace(SMALLEST["resnet10"], size=16))
    assert "cannot deal with this model" in refused(model, "finetune")


def test_hooks_are_refused_where_they_would_be_wrong_in_silence():
    """A layer whose weight is also used outside its own call: Opacus gives rows of the right shape and the wrong value."""
    model = build()

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        return finetune(network, batch) + network.heads["liver"].weight.square().sum()

    engine = HookGradients(model, loss, ["heads.liver.weight"], clip_norm=C, chunk=3)
    with pytest.raises(ConfigError, match=r"its gradient of heads\.liver\.weight is not that of each patient"):
        refuse_if_wrong(engine, synthetic_batch(model, "liver", patients=3, size=16))


def engine_of(loss, kind: str = "auto", chunk: int = 4, settings: str = "") -> PatientGradients:
    model = build()
    trial = synthetic_batch(model, "liver", patients=4, size=16)
    privacy = PrivacyConfig(engine=kind, chunk=chunk, clip_norm=C)
    return build_engine(model, loss, ["heads.liver.weight"], privacy, settings=settings, steady=loss, trial=trial)


def slept(model: nn.Module, batch: Batch, *, under_vmap: float, alone: float) -> Tensor:
    try:
        float(batch.volumes.detach().sum())
        time.sleep(alone)
    except RuntimeError:  # vmap has no number for many patients
        time.sleep(under_vmap)
    return model.heads["liver"](batch.volumes[:, 0, 0, 0]).sum()


@pytest.mark.parametrize(("under_vmap", "alone", "chunk"), [(0.0, 0.1, 4), (0.3, 0.0, 0)])
def test_auto_takes_the_quicker(under_vmap, alone, chunk, monkeypatch):
    monkeypatch.setattr(engines, "_CHOSEN", {})
    assert engine_of(partial(slept, under_vmap=under_vmap, alone=alone)).chunk == chunk


def test_auto_takes_the_loop_where_vmap_is_not_possible_and_vmap_itself_says_so(monkeypatch):
    monkeypatch.setattr(engines, "_CHOSEN", {})

    def branching(model: nn.Module, batch: Batch) -> Tensor:
        value = model.heads["liver"](batch.volumes[:, 0, 0, 0]).sum()
        return value if float(batch.volumes.detach().sum()) > 0 else 2 * value

    assert engine_of(branching).chunk == 0
    with pytest.raises(RuntimeError, match="vmap"):
        engine_of(branching, "vmap").clipped_sum(patients())
    sums = engine_of(branching, "loop").clipped_sum(patients())
    assert sums["heads.liver.weight"].abs().sum() > 0


def test_auto_chooses_once_and_a_broken_loss_is_not_hidden(monkeypatch, caplog):
    monkeypatch.setattr(engines, "_CHOSEN", {})
    calls = []

    def counted(model: nn.Module, batch: Batch) -> Tensor:
        calls.append(1)
        return model.heads["liver"](batch.volumes[:, 0, 0, 0]).sum()

    engine_of(counted)
    tried = len(calls)
    engine_of(counted)
    assert tried > 0 and len(calls) == tried
    engine_of(counted, settings="of another loss, for which another engine may be right")
    assert len(calls) > tried

    def broken(model: nn.Module, batch: Batch) -> Tensor:
        raise RuntimeError("broken everywhere")

    model = build()

    def both(loss) -> dict[str, PatientGradients]:
        names = ["heads.liver.weight"]
        return {k: PatientGradients(model, loss, names, clip_norm=C, chunk=c) for k, c in (("vmap", 2), ("loop", 0))}

    with pytest.raises(RuntimeError, match="broken everywhere"):
        quickest(both(broken), patients())

    def looks(model: nn.Module, batch: Batch) -> Tensor:
        return model.heads["liver"](batch.volumes[:, 0, 0, 0]).sum() * (2.0 if batch.volumes.sum().item() > 0 else 1.0)

    with caplog.at_level("WARNING", "medmap.client"):
        assert quickest(both(looks), patients()) == "loop"
    assert "no vmap for this model" in caplog.text, "and the site is told why"


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("kind", ["auto", "layers", "vmap", "loop", "hooks"])
def test_a_private_round_trains_with_every_engine(kind, stage, hospitals, cache):
    _, trainer, records = site(hospitals["east"], cache, f"privacy.engine={kind}", "privacy.trainable=norms")
    model = trainer.model
    before = pack(model, layout(model))
    groups = ["encoder/T1", *(["fusion", "head/brain"] if stage == "finetune" else [])]
    PrivateTrainer(trainer).train(records, Task(stage, 0, 2, seed=0), groups)
    after = pack(model, layout(model))
    assert {g for g in after if (after[g] != before[g]).any()} == set(groups)
    assert all(v.any() for v in after.values())
