"""Gradients layer by layer: those of each patient alone to ten digits, bounded by C, and refused where they would be wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from client.privacy import engines, rules
from client.privacy.adapters import adapted
from client.privacy.engines import build_engine, refuse_if_wrong, uneven
from client.privacy.gradients import PatientGradients
from client.privacy.layers import LayerGradients
from client.privacy.shares import Outer, add_weighted, norms, rows
from client.privacy.synthetic import synthetic_batch
from client.privacy.training import trained_parameters
from configs.federated import PrivacyConfig
from configs.schema import EncoderConfig
from configs.setting import ConfigError
from configs.stages import FinetuneConfig, PretrainConfig
from medmap_model.batch import Batch
from medmap_model.groups import layout
from medmap_model.model import MedMAP
from tests.client.privacy.small import LOSSES, NAN, C, build, finetune, flat, moved, patients, pick, with_nan
from tests.medmap_model.conftest import SPEC
from tests.medmap_model.test_encoders import SMALLEST

SEVERAL = {**SPEC, "organs": {o: {**s, "multi_label": True} for o, s in SPEC["organs"].items()}}


def layers(model: MedMAP, stage: str = "finetune", names: list[str] | None = None, chunk: int = 4) -> LayerGradients:
    names = names or [n for n, _ in model.named_parameters()]
    return LayerGradients(model, LOSSES[stage], names, clip_norm=C, chunk=chunk)


def loop(engine: PatientGradients) -> PatientGradients:
    return PatientGradients(engine.model, engine.loss, engine.names, clip_norm=C, chunk=0)


def errors(engine: PatientGradients, batch: Batch) -> dict[str, float]:
    """Parameter -> how far its gradients are from a loop's, of any patient, relative to the largest of the two scales."""
    found, expected = engine.each(batch), loop(engine).each(batch)
    size = torch.stack([g.norm() for g in expected.values()]).norm()
    return {n: float((found[n] - g).norm() / torch.maximum(g.norm(), 1e-3 * size)) for n, g in expected.items()}


@pytest.mark.parametrize("stage", LOSSES)
@pytest.mark.parametrize("factors", [True, False], ids=["factors", "rows"])
@pytest.mark.parametrize(
    ("kind", "fusion", "sharing"),
    [("conv", "compact", "own"), ("conv", "medmap", "shared"), ("resnet10", "medmap", "own"), ("resnet18", "compact", "shared")],
)  # fmt: skip
def test_gradients_equal_a_loop_to_ten_digits(kind, fusion, sharing, factors, stage, monkeypatch):
    """Patients with one to three modalities; with `shared` one encoder sees several volumes of a patient, whose gradients add
    up before anybody takes a norm. As factors or as rows: the choice is one of time."""
    monkeypatch.setattr(rules, "is_cheaper", lambda **_: factors)
    model = build(fusion, SMALLEST[kind], SPEC, sharing=sharing)
    engine, batch = layers(model, stage), patients(size=SMALLEST[kind].size)
    found = errors(engine, batch)
    assert max(found.values()) < 1e-10
    assert {n for n, _ in model.named_parameters()} == set(found)
    sums, expected = flat(engine.clipped_sum(batch)), flat(loop(engine).clipped_sum(batch))
    assert (sums - expected).norm() < 1e-6 * expected.norm()  # sums are float32


def test_the_settings_choose_factors_for_some_layers_and_rows_for_others():
    engine, batch = layers(build(encoder=EncoderConfig(width=8, blocks=[1, 1]))), patients()
    shares = engine._gradients(
        *engine._split(), {k: v for k, v in vars(batch).items() if isinstance(v, Tensor)}, "liver"
    )
    kinds = {n: isinstance(s, Outer) for n, s in shares.items()}
    assert kinds["encoders.T1.blocks.1.conv2.weight"] and not kinds["encoders.T1.down.weight"]
    assert not any(isinstance(s, Outer) for n, s in shares.items() if n.endswith("bias"))


@pytest.mark.parametrize("stage", LOSSES)
def test_labels_unknown_or_several(stage):
    assert max(errors(layers(build(spec=SEVERAL), stage), patients()).values()) < 1e-10


@pytest.mark.parametrize("trainable", ["norms", "projections_heads", "adapters"])
def test_sets_of_parameters(trainable):
    model = build()
    network = adapted(model, layout(model), rank=2, seed=0).double() if trainable == "adapters" else model
    names = trained_parameters(network, layout(model), trainable)
    with torch.no_grad():
        for n, p in network.named_parameters():
            if "lora_B" in n:
                p.normal_(std=0.1)  # they start at zero
    engine = layers(network, names=names)
    assert max(errors(engine, patients()).values()) < 1e-10
    assert set(engine.clipped_sum(patients())) == set(names)


@pytest.mark.parametrize("stage", LOSSES)
@pytest.mark.parametrize("sharing", ["own", "shared"])
def test_one_patient_moves_the_sum_by_at_most_c(sharing, stage):
    batch = with_nan(patients())
    engine = layers(build("medmap", sharing=sharing), stage, chunk=3)
    found = moved(engine.clipped_sum, batch)
    assert max(found) <= 1 + 1e-5
    assert max(found) > 0.9  # the bound is met: patients are clipped, not lost
    assert found[NAN] == pytest.approx(0, abs=1e-6)
    assert (flat(engine.clipped_sum(pick(batch, [NAN]))) == 0).all()
    assert (flat(engine.clipped_sum(pick(batch, []))) == 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["conv", "resnet10"])
def test_in_float32_too_a_broken_patient_leaves_the_others_alone(kind, value):
    """Other kernels than in float64: none may let a row's NaN into another's."""
    batch = patients(size=24)
    batch = replace(batch, volumes=(batch.volumes / batch.volumes.std()).float(), report=batch.report.float())
    batch.volumes[1] /= 1e3
    engine = layers(build(encoder=replace(SMALLEST[kind], width=8, size=24)).float(), chunk=6)
    without = flat(engine.clipped_sum(pick(batch, [0, 1, 2, 4, 5])))
    batch.volumes[NAN, 0, 3, 3, 3] = value
    broken = flat(engine.clipped_sum(batch))
    assert without.norm() > C
    assert (broken - without).norm() < 1e-4 * without.norm()


def test_patients_one_at_a_time_or_all_at_once_are_the_same():
    model, batch = build(), patients()
    sums = [flat(layers(model, chunk=c).clipped_sum(batch)) for c in (1, 4, 8)]
    assert all((s - sums[0]).norm() < 1e-6 * sums[0].norm() for s in sums)


def test_what_is_absent_is_not_read():
    batch, engine = patients(), layers(build())
    filled = batch.volumes.masked_fill(~batch.present[..., None, None, None], float("nan"))
    assert torch.equal(flat(engine.clipped_sum(replace(batch, volumes=filled))), flat(engine.clipped_sum(batch)))


def test_a_modality_hidden_by_dropout_gives_its_encoder_nothing():
    batch = replace(patients((0, 1, 2, 0, 1, 2)), present=torch.ones(6, 3, dtype=torch.bool))
    model = build()
    hidden = FinetuneConfig(modality_dropout=0.5)
    engine = LayerGradients(
        model,
        lambda m, b: m.finetune_loss(b, hidden, progress=0.5, dense=True)["loss"],
        [n for n, _ in model.named_parameters()],
        clip_norm=C,
        chunk=6,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = engine.each(batch)
    seen = torch.stack([found[f"encoders.{m}.down.weight"].flatten(1).any(1) for m in model.slots("liver")])
    assert seen.any(0).all() and not seen.all()  # never all of a patient's
    assert len({tuple(column) for column in seen.T.tolist()}) > 1  # each patient by itself


def test_a_patient_whose_terms_cancel_does_not_pass_the_bound():
    """Factors say that its gradient is nothing, and rounding makes the sum something: the norm must count that."""
    g = torch.Generator().manual_seed(0)
    inputs, slopes = (1e6 * torch.randn(1, 40, n, generator=g) for n in (300, 200))
    share = Outer(torch.cat([inputs, inputs], 1), torch.cat([slopes, -slopes], 1))
    exact = rows(Outer(*(t.double() for t in share))).norm()
    norm = norms([share], at_once=1)
    total = torch.zeros(200, 300)
    add_weighted(total, share, torch.ones(1))
    assert exact < 1 and total.norm() > 100  # without the term for rounding it would count nearly whole
    total.zero_()
    add_weighted(total, share, (C / norm).clamp(max=1))
    assert total.norm() <= C


def test_the_norm_of_factors_is_that_of_what_they_stand_for():
    g = torch.Generator().manual_seed(0)
    share = Outer(torch.randn(3, 5, 7, generator=g), torch.randn(3, 5, 4, generator=g))
    right = rows(Outer(*(t.double() for t in share))).flatten(1).norm(dim=1)
    found = norms([share], at_once=3)
    assert (found >= right).all() and torch.allclose(found, right, rtol=1e-4)


def test_the_norm_of_one_patient_does_not_depend_on_the_others():
    """In float32 what rounding may add counts, and it must not tell how many volumes, or patients, pass beside."""
    g = torch.Generator().manual_seed(0)
    x, slope = (torch.randn(3, 40, n, generator=g) for n in (300, 200))

    def norm(whose: list[int]) -> float:
        owners = rules.Owners(torch.tensor(whose), patients=max(whose) + 1, most=2)
        n = len(whose)
        share = rules._linear(nn.Linear(300, 200), x[:n], slope[:n], owners, {"weight"})["weight"]
        return float(norms([share], at_once=8)[0])

    assert [norm([0, 1]), norm([0, 1, 1])] == pytest.approx([norm([0])] * 2, rel=1e-12)
    with pytest.raises(ValueError, match="more than 1 rows"):
        rules.Owners(torch.tensor([0, 0]), patients=1)


@pytest.mark.parametrize("kind", ["vit", "swin_unetr"])
def test_an_encoder_with_parameters_of_no_known_layer_is_refused_by_name(kind):
    with pytest.raises(
        ConfigError, match=r"no rule for encoders\.T1\.body\.\S+ of a \w+; take privacy\.engine=auto"
    ) as said:
        layers(build(encoder=SMALLEST[kind]))
    assert "\n" not in str(said.value)


def in_vain(model: MedMAP, loss) -> str:
    engine = LayerGradients(model, loss, [n for n, _ in model.named_parameters()], clip_norm=C, chunk=3)
    with pytest.raises(ConfigError, match=r"privacy\.engine=layers: .*; take privacy\.engine=auto") as said:
        refuse_if_wrong(engine, uneven(synthetic_batch(model, "liver", patients=3, size=16)))
    return str(said.value)


def test_what_would_be_wrong_in_silence_is_refused():
    """A weight used outside its own layer; a layer's input changed after the layer read it; the loss of another path."""

    def outside(network: nn.Module, batch: Batch) -> Tensor:
        return finetune(network, batch) + network.heads["liver"].weight.square().sum()

    assert "its gradient of heads.liver.weight is not that of each patient alone" in in_vain(build(), outside)

    class Spoilt(nn.Module):
        def __init__(self, norm: nn.Module) -> None:
            super().__init__()
            self.inner = norm

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x)
            x.mul_(1.0)  # the same numbers, but who could tell
            return y

    spoilt = build()
    spoilt.projections["T1"].linear = Spoilt(spoilt.projections["T1"].linear)
    assert "changed in place" in in_vain(spoilt, finetune)

    def ordinary(network: nn.Module, batch: Batch) -> Tensor:
        return network.pretrain_loss(batch, PretrainConfig(objective="bank"))["loss"]

    assert "cannot deal with this model" in in_vain(build(), ordinary)


def test_a_model_is_left_as_it_was():
    model = build("medmap", sharing="shared").train()
    model.heads["liver"].weight.requires_grad_(False)
    wanted = {n: p.requires_grad for n, p in model.named_parameters()}
    attributes = {n: set(vars(m)) for n, m in model.named_modules()}
    engine = layers(model)
    engine.clipped_sum(patients())
    engine.loss = engine._shell._loss = lambda m, b: m.heads["liver"](b.volumes)  # fails
    with pytest.raises(RuntimeError):
        engine.clipped_sum(patients())
    assert {n: p.requires_grad for n, p in model.named_parameters()} == wanted
    assert {n: set(vars(m)) for n, m in model.named_modules()} == attributes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(m.training for m in model.modules()) and not any(p.grad is not None for p in model.parameters())


def chosen(model: MedMAP, loss) -> str:
    privacy, names = PrivacyConfig(clip_norm=C), [n for n, _ in model.named_parameters()]
    trial = synthetic_batch(model, "liver", patients=2, size=model.config.encoder.size)
    return build_engine(model, loss, names, privacy, settings="", steady=loss, trial=trial).kind


def dear(network: nn.Module, batch: Batch) -> Tensor:
    """Slow wherever weights themselves have gradients: in vmap and in a loop."""
    if network.heads["liver"].weight.requires_grad:
        torch.linalg.svdvals(torch.ones(400, 400))
    return finetune(network, batch)


def test_auto_takes_layers_where_they_are_right_and_quicker_and_never_where_they_are_wrong(monkeypatch, caplog):
    monkeypatch.setattr(engines, "_CHOSEN", {})
    assert chosen(build(), dear) == "layers"

    def wrong(network: nn.Module, batch: Batch) -> Tensor:
        return dear(network, batch) + network.heads["liver"].weight.square().sum()

    monkeypatch.setattr(engines, "_CHOSEN", {})
    with caplog.at_level("INFO", "medmap.client"):
        assert chosen(build(), wrong) != "layers"
    assert "heads.liver.weight is not that of each patient alone" in caplog.text
    monkeypatch.setattr(engines, "_CHOSEN", {})
    assert chosen(build(encoder=SMALLEST["vit"]), finetune) != "layers"


def test_norms_of_groups_and_layers_and_strided_convolutions_by_their_own_rules():
    """Each rule against autograd, one row at a time; rows of three owners, one of whom has two and one has none."""
    g = torch.Generator().manual_seed(0)
    owners = rules.Owners(torch.tensor([0, 2, 0]), patients=3, most=2)
    cases: list[tuple[nn.Module, tuple[int, ...]]] = [
        (nn.Conv3d(4, 6, (3, 2, 1), stride=(2, 1, 1), padding=(1, 0, 2)), (4, 6, 5, 4)),
        (nn.Conv3d(4, 6, 3, padding=2, dilation=2, groups=2), (4, 5, 5, 5)),
        (nn.Linear(5, 3), (2, 4, 5)),
        (nn.GroupNorm(2, 4), (4, 3, 3, 3)),
        (nn.LayerNorm((4, 5)), (3, 4, 5)),
    ]
    for factors in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rules, "is_cheaper", lambda factors=factors, **_: factors)
            for layer, shape in cases:
                layer = layer.double()
                x = torch.randn(3, *shape, generator=g, dtype=torch.float64)
                slope = torch.randn(layer(x).shape, generator=g, dtype=torch.float64)
                rule = rules.rule_of(layer)
                found = rule(layer, x, slope, owners, {"weight", "bias"})
                for name, p in layer.named_parameters():
                    each = [torch.autograd.grad((layer(x[[i]]) * slope[[i]]).sum(), p)[0] for i in range(3)]
                    right = torch.stack([each[0] + each[2], torch.zeros_like(p), each[1]])
                    assert torch.allclose(rows(found[name]).reshape(right.shape), right, rtol=1e-10, atol=1e-11), layer
    assert rules.rule_of(nn.Conv3d(1, 1, 3, padding=1, padding_mode="replicate")) is None
    assert rules.rule_of(nn.Conv3d(1, 1, 3, padding="same")) is None
    assert rules.rule_of(type("Mine", (nn.Linear,), {})(2, 2)) is None
