"""What is refused before a private run starts: settings, layers and losses that would leak, each by its name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from client.preprocess import nyul
from client.privacy.engines import make_engine, refuse_if_wrong, uneven
from client.privacy.losses import record_loss, summed, tensors, without_modality_dropout
from client.privacy.synthetic import synthetic_batch
from client.privacy.training import network_to_train
from configs.schema import Config
from configs.setting import ConfigError
from medmap_model.batch import Batch
from medmap_model.contract import STAGES
from medmap_model.groups import layout
from medmap_model.model import MedMAP

LEAST_NOISE = 0.1
_COUPLED = 1e-6  # in float64 a separable loss stays below 1e-12
_PASSED: WeakKeyDictionary[nn.Module, set[tuple[str, str, tuple[str, ...]]]] = WeakKeyDictionary()


def check_settings(config: Config) -> None:
    """Raise ConfigError for the first setting that contradicts `privacy.kind=patient_dp`."""
    nyul.check(config)
    stage = config.stage
    wrong = (
        (
            stage.pretrain.rounds and stage.pretrain.objective != "bank",
            f"stage.pretrain.objective={stage.pretrain.objective}: its negatives are other patients, which breaks the "
            "guarantee; take stage.pretrain.objective=bank",
        ),
        (stage.pretrain.queue > 0, "stage.pretrain.queue: past patients would enter another's loss; take 0"),
        (
            stage.pretrain.bank == "none" and stage.pretrain.rounds,
            "stage.pretrain.bank=none: private pre-training aligns with the public bank; take prompts, attributes or both",
        ),
        (
            stage.pretrain.patience > 0 or stage.finetune.patience > 0,
            "patience: stopping on private validation is a release of its own; take 0, a fixed number of rounds",
        ),
        (
            config.model.encoder.checkpointing,
            "model.encoder.checkpointing=true: gradients per patient cannot recompute activations; take false",
        ),
        (
            0 < config.privacy.noise_multiplier < LEAST_NOISE,
            f"privacy.noise_multiplier={config.privacy.noise_multiplier:g}: that is no privacy, and no accountant counts it; "
            f"take {LEAST_NOISE:g} or more",
        ),
        (
            config.strategy.kind == "naive",
            "strategy=naive: a site would send groups that it has no patients for; take strategy=modality_aware",
        ),
    )
    for broken, sentence in wrong:
        if broken:
            raise ConfigError(f"privacy=patient_dp with {sentence}")


def check_layers(model: nn.Module) -> None:
    """Raise ConfigError with Opacus' own words and fix for the first layer it does not accept (BatchNorm and its kin)."""
    from opacus.validators import ModuleValidator

    for name, layer in model.named_modules():
        errors = ModuleValidator.VALIDATORS.get(type(layer), lambda _: [])(layer)
        if errors:
            reason = str(errors[0]).split(". ")[0].rstrip(".")
            fix = ModuleValidator.FIXERS.get(type(layer))
            remedy = f"; Opacus would put {str(fix(layer)).splitlines()[0]} in its place" if fix else ""
            raise ConfigError(f"privacy=patient_dp: {name or 'the model'} ({type(layer).__name__}): {reason}{remedy}")


def check_model(
    model: MedMAP,
    config: Config,
    *,
    stages: Collection[str] | None = None,
    organs: Collection[str] | None = None,
) -> None:
    """Raise ConfigError unless the model can train privately, tried on made-up patients before any real one is touched.

    Layers (`check_layers`); of each stage and organ a loss in which no patient depends on another (`coupling`), adapters
    where they are asked for, and an engine that is not right for every model. stages: None: those that have rounds. organs:
    None: all of the vocabulary.
    """
    check_layers(model)
    config = without_modality_dropout(config)
    for stage in stages or [s for s in STAGES if getattr(config.stage, s).rounds]:
        trial = copy.deepcopy(model).double().eval()
        network, names = network_to_train(trial, layout(trial), config.privacy, seed=0)
        loss = record_loss(config, stage, progress=0.5)
        for organ in organs or model.vocabulary.organs:
            made_up = partial(
                synthetic_batch,
                network,
                organ,
                size=config.data.volumes.size,
                negatives=config.stage.pretrain.hard_negatives,
            )
            found = coupling(partial(summed, loss, network), made_up(patients=2))
            if not found <= _COUPLED:  # not a number is no proof either
                raise ConfigError(
                    f"privacy=patient_dp: in stage {stage} the loss of a patient depends on another's data (by {found:.1e} of "
                    "itself), which breaks the guarantee; take a loss of each patient alone, as "
                    "stage.pretrain.objective=bank"
                )
            if config.privacy.engine in ("hooks", "layers"):
                engine = make_engine(config.privacy.engine, network, loss, names, replace(config.privacy, chunk=3))
                refuse_if_wrong(engine, uneven(made_up(patients=3)))


def check_once(model: MedMAP, config: Config, *, run: str, stage: str, organs: tuple[str, ...]) -> None:
    """`check_model`, the first time in this process that the model meets this run, stage and a site with these organs."""
    passed = _PASSED.setdefault(model, set())
    key = run, stage, organs
    if key not in passed:
        check_model(model, config, stages=(stage,), organs=organs)
        passed.add(key)


def coupling(loss: Callable[[Batch], Tensor], batch: Batch) -> float:
    """How far `loss` is from a sum over patients, relative to its size: 0 when no patient's loss depends on another's data.

    Of two records (a, b) and changed selves (a', b'), the larger of two measures, and of all changes the largest:

    - the mixed difference L(a, b) + L(a', b') - L(a, b') - L(a', b), which vanishes if and only if L(a, b) = f(a) + g(b);
    - the change of the gradient with respect to a's volumes, dL(a, b) - dL(a, b'), which sees what values cannot.

    Changed are all measured data (volumes, report, negatives) and, with them, once the label and which modalities are
    present, once whether there is a label and a report. Raises ValueError unless the batch holds two records.
    """
    if len(batch) != 2:
        raise ValueError(f"two records are compared, not {len(batch)}")
    before = _measure(loss, batch)
    return max(_mixed(loss, batch, before, changed) for changed in _changes(batch))


def _changes(batch: Batch) -> Iterator[Batch]:
    measured = replace(
        batch,
        volumes=batch.volumes.flip(2) * 1.7,
        report=batch.report.flip(1),
        negatives=None if batch.negatives is None else batch.negatives.flip(2),
    )
    fewer = batch.present & (batch.present.cumsum(1) > 1)  # all but the first
    present = torch.where(fewer.any(1, keepdim=True), fewer, batch.present)
    yield replace(measured, label=torch.where(batch.label == 0, 1, 0), present=present)
    report = measured.report * ~batch.has_report[:, None]
    yield replace(measured, label=torch.full_like(batch.label, -1), has_report=~batch.has_report, report=report)


def _mixed(loss: Callable[[Batch], Tensor], batch: Batch, before: tuple[Tensor, Tensor], changed: Batch) -> float:
    """The larger of the two measures of `coupling`, for one change."""

    def of(first: Batch, second: Batch) -> Batch:
        pairs = zip(tensors(first).items(), tensors(second).values(), strict=True)
        return Batch(organ=batch.organ, **{name: torch.cat([a[:1], b[1:]]) for (name, a), b in pairs})

    second = _measure(loss, of(batch, changed))
    with torch.no_grad():
        first, both = loss(of(changed, batch)), loss(changed)
    values = (before[0], both, second[0], first)
    value = (before[0] + both - second[0] - first).abs() / torch.stack(values).abs().max().clamp(min=1e-12)
    gradient = (before[1] - second[1]).norm() / before[1].norm().clamp(min=1e-12)
    return float(torch.maximum(value, gradient))


def _measure(loss: Callable[[Batch], Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient with respect to the volumes of the first record."""
    volumes = batch.volumes.detach().requires_grad_()
    with torch.enable_grad():
        value = loss(replace(batch, volumes=volumes))
        gradient = torch.autograd.grad(value, volumes)[0][0] if value.requires_grad else torch.zeros_like(volumes[0])
    return value.detach(), gradient
