"""The probe at start-up: layers, losses and temperatures that would break the guarantee are refused before a patient is touched."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from client.privacy.checks import check_layers, check_model, coupling
from client.privacy.gradients import PatientGradients
from client.privacy.losses import summed
from client.privacy.shares import norms
from client.privacy.synthetic import synthetic_batch
from client.privacy.training import PrivateTrainer, network_to_train, trained_parameters
from client.site import Site, SiteEntry, SiteError
from configs.federated import PrivacyConfig
from configs.schema import Config
from configs.setting import ConfigError
from medmap_model.batch import Batch
from medmap_model.contract import Task
from medmap_model.groups import layout, pack
from medmap_model.objectives import STAGE1, asymmetric
from tests.client.privacy.small import GROUPS, LOSSES, C, build, finetune, flat, patients, site
from tests.conftest import small_config
from tests.medmap_model.conftest import SPEC

SEVERAL = {**SPEC, "organs": {o: {**s, "multi_label": True} for o, s in SPEC["organs"].items()}}
TEMPERATURE = "text_projection.temperature"


def settings(*overrides: str) -> Config:
    return small_config("privacy=patient_dp", "stage.pretrain.objective=bank", "model.embed_dim=16", *overrides)


@pytest.mark.parametrize("spec", [SPEC, SEVERAL], ids=["one_label", "several"])
@pytest.mark.parametrize("fusion", ["compact", "medmap"])
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("stage.pretrain.hard_negatives=true", "stage.pretrain.label_weight=1", "stage.pretrain.consistency=0.5"),
        ("stage.pretrain.bank=both", "stage.finetune.supervised=mixed", "stage.finetune.modality_dropout=0.5"),
        ("privacy.trainable=adapters",),
    ],
)
def test_the_bank_and_stage_2_pass(fusion, spec, overrides):
    check_model(build(fusion, spec=spec), settings(*overrides))


@pytest.mark.parametrize("objective", sorted(set(STAGE1) - {"bank"}))
def test_a_loss_with_in_batch_negatives_is_refused(objective):
    with pytest.raises(
        ConfigError, match="in stage pretrain the loss of a patient depends on another's data"
    ) as caught:
        check_model(build(), settings(f"stage.pretrain.objective={objective}"))
    assert "\n" not in str(caught.value)
    unused = settings(f"stage.pretrain.objective={objective}", "stage.pretrain.rounds=0")
    check_model(build(), unused)
    with pytest.raises(ConfigError, match="depends on another's data"):
        check_model(build(), unused, stages=["pretrain"])  # asked for all the same


def separable(batch: Batch) -> Tensor:
    """Uses every field of each record alone."""
    assert batch.negatives is not None
    seen = batch.volumes.square().mean((2, 3, 4)) * batch.present
    said = (batch.report.sum(1) + batch.negatives.sum((1, 2))) * batch.has_report
    return (seen.sum(1).sqrt() * (1.0 + batch.label) + said.cos()).sum()


COUPLED: dict[str, Callable[[Batch], Tensor]] = {
    "volumes": lambda b: b.volumes.mean((1, 2, 3, 4)).prod(),
    "report": lambda b: b.report[0] @ b.report[1],
    "report against volume": lambda b: b.report[0].sum() * b.volumes[1].mean(),
    "label": lambda b: (b.label[0] == b.label[1]) * b.volumes.mean(),
    "count of known labels": lambda b: b.volumes.mean() / (b.label >= 0).sum().clamp(min=1),
    "presence": lambda b: b.volumes.mean() / b.present.sum(),
    "count of reports": lambda b: b.volumes.mean() / b.has_report.sum().clamp(min=1),
    "negatives": lambda b: (b.negatives[0] * b.negatives[1]).sum(),  # type: ignore[index]
    # The value says nothing: x - x.detach() is 0, its gradient is not.
    "gradient alone": lambda b: ((v := b.volumes[0].mean()) - v.detach()) * b.volumes[1].detach().square().mean(),
}


@pytest.fixture
def pair() -> Batch:
    return synthetic_batch(build(), "liver", patients=2, size=16, negatives=True)


@pytest.mark.parametrize("through", COUPLED)
def test_whatever_ties_two_patients_together_is_noticed(through, pair):
    assert coupling(separable, pair) < 1e-12
    assert coupling(lambda b: separable(b) + COUPLED[through](b), pair) > 1e-6


def test_a_mean_over_known_labels_ties_patients_and_the_sum_that_hooks_take_does_not(pair):
    model = build()
    assert coupling(partial(finetune, model), pair) > 0.1
    assert coupling(partial(summed, finetune, model), pair) < 1e-12


def test_a_constant_loss_passes_and_one_that_is_not_a_number_does_not(pair):
    assert coupling(lambda b: torch.zeros((), dtype=torch.float64), pair) == 0
    model = build()
    with torch.no_grad():
        model.encoders["T1"].stem.weight.fill_(float("nan"))
    with pytest.raises(ConfigError, match="by nan of itself"):
        check_model(model, settings())


def test_coupling_compares_two_records():
    with pytest.raises(ValueError, match="two records"):
        coupling(separable, patients())


def test_batch_norm_is_refused_with_opacus_name_and_fix():
    model = build()
    model.encoders["T1"].norm = nn.BatchNorm3d(8)
    with pytest.raises(ConfigError) as caught:
        check_model(model, settings())
    words = str(caught.value)
    assert "encoders.T1.norm (BatchNorm3d): BatchNorm cannot support training with differential privacy" in words
    assert "Opacus would put GroupNorm(8, 8" in words and "\n" not in words


def test_running_statistics_of_instance_norm_are_refused_and_without_them_it_passes():
    model = build()
    model.encoders["T1"].norm = nn.InstanceNorm3d(8, track_running_stats=True)
    with pytest.raises(ConfigError, match=r"\(InstanceNorm3d\): We do not support tracking running stats"):
        check_layers(model)
    model.encoders["T1"].norm = nn.InstanceNorm3d(8, affine=True)
    check_layers(model)


@pytest.mark.parametrize("fusion", ["compact", "medmap"])
def test_hooks_are_refused_at_the_start_where_they_are_wrong_and_pass_where_they_are_right(fusion):
    check = partial(check_model, build(fusion), settings("privacy.engine=hooks", "privacy.trainable=norms"))
    if fusion == "compact":
        check()
    else:
        with pytest.raises(ConfigError, match=r"privacy\.engine=hooks"):
            check()
    with pytest.raises(ConfigError, match=r"privacy\.engine=hooks"):
        check_model(build(), settings("privacy.engine=hooks"))


def test_the_model_is_not_changed_by_the_probe():
    model = build().float().train()
    before, state = pack(model, layout(model)), torch.get_rng_state()
    check_model(model, settings("privacy.trainable=adapters", "stage.finetune.modality_dropout=0.5"))
    after = pack(model, layout(model))
    assert model.training and all((after[g] == before[g]).all() for g in before)
    assert all(p.dtype == torch.float32 and p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture
def hospital(hospitals, cache, tmp_path):
    """A site that has charged nothing yet, and its ledger's folder."""
    config, trainer, records = site(hospitals["east"], cache, f"privacy.ledger_dir={tmp_path}")
    return Site(SiteEntry("east", (hospitals["east"],)), config, trainer, records), tmp_path


def asked(of: Site, run: str = "r", message: str = "m") -> dict:
    vectors = pack(of.trainer.model, layout(of.trainer.model))
    return of.train(vectors, Task("pretrain", 0, 1, seed=0, run=run, message=message))[0]


def test_a_site_refuses_a_bank_that_became_coupled_and_charges_nothing(hospital, monkeypatch):
    of, ledgers = hospital
    monkeypatch.setitem(STAGE1, "bank", asymmetric)  # as a mistake in the objective would
    with pytest.raises(SiteError, match="depends on another's data") as caught:
        asked(of)
    assert caught.value.code == "policy"
    assert not list(ledgers.iterdir())
    monkeypatch.undo()
    assert asked(of)
    assert len(of.ledger().charges()) == 1


def test_a_site_refuses_batch_norm_in_opacus_words_and_charges_nothing(hospital):
    of, ledgers = hospital
    of.trainer.model.encoders["T1"].norm = nn.BatchNorm3d(8)
    with pytest.raises(SiteError, match="BatchNorm cannot support training") as caught:
        asked(of)
    assert caught.value.code == "policy"
    assert not list(ledgers.iterdir())


def test_a_site_probes_once_per_run(hospital, monkeypatch):
    of, _ = hospital
    asked(of, message="a")
    monkeypatch.setitem(STAGE1, "bank", asymmetric)
    asked(of, message="b")  # the same run: passed before
    with pytest.raises(SiteError, match="depends on another's data"):
        asked(of, run="another")


@pytest.mark.parametrize(
    ("trainable", "trains"), [("all", True), ("projections_heads", True), ("adapters", False), ("norms", False)]
)
def test_a_learned_temperature_is_inside_the_clip_or_fixed(trainable, trains, hospitals, cache):
    model = build()
    network, names = network_to_train(model, GROUPS["pretrain"], PrivacyConfig(trainable=trainable), seed=0)
    assert (TEMPERATURE in names) == trains
    engine = PatientGradients(network, LOSSES["pretrain"], names, clip_norm=C, chunk=2)
    one = engine.clipped_sum(patients().rows(slice(1, 2)))
    assert (TEMPERATURE in one) == trains
    if trains:
        assert one[TEMPERATURE].abs() > 0
        rest = PatientGradients(
            network, LOSSES["pretrain"], [n for n in names if n != TEMPERATURE], clip_norm=C, chunk=2
        )
        factors = [e._factors(norms(e.each(patients().rows(slice(1, 2))).values(), at_once=1)) for e in (engine, rest)]
        assert factors[0] < factors[1] < 1  # it takes its share of the clip
    assert flat(one).norm() <= C * (1 + 1e-5)

    _, trainer, records = site(hospitals["east"], cache, f"privacy.trainable={trainable}")
    before = trainer.model.text_projection.temperature.detach().clone()
    PrivateTrainer(trainer).train(records, Task("pretrain", 0, 2, seed=0), ["encoder/T1", "text_projection"])
    assert (trainer.model.text_projection.temperature != before) == trains


@pytest.mark.parametrize("trainable", ["norms", "projections_heads"])
def test_what_does_not_train_stays_bit_for_bit(trainable, hospitals, cache):
    _, trainer, records = site(hospitals["east"], cache, f"privacy.trainable={trainable}")
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    groups = ["encoder/T1", "projection/T1", "fusion", "head/brain"]
    PrivateTrainer(trainer).train(records, Task("finetune", 0, 2, seed=0), groups)
    changed = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == set(trained_parameters(trainer.model, groups, trainable))
    assert changed and len(changed) < len(before)
