"""What is refused before a private run starts: settings, layers and losses that would leak, each by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from configs.schema import Config, ConfigError
from medmap_model.batch import Batch


def check_settings(config: Config) -> None:
    """Raise ConfigError for the first setting that contradicts `privacy.kind=patient_dp`."""
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
            config.strategy.kind == "naive",
            "strategy=naive: a site would send groups that it has no patients for; take strategy=modality_aware",
        ),
    )
    for broken, sentence in wrong:
        if broken:
            raise ConfigError(f"privacy=patient_dp with {sentence}")


def check_layers(model: nn.Module) -> None:
    """Raise ConfigError with Opacus' own words for the first layer it does not accept (BatchNorm and its kin)."""
    from opacus.validators import ModuleValidator

    training = model.training
    try:
        errors = ModuleValidator.validate(model.train(), strict=False)
    finally:
        model.train(training)
    if errors:
        raise ConfigError(f"privacy=patient_dp: {errors[0]}")


def coupling(loss: Callable[[Batch], Tensor], batch: Batch) -> float:
    """How far `loss` is from a sum over patients, relative to its size: 0 when no patient's loss depends on another's data.

    The mixed difference L(a, b) + L(a', b') - L(a, b') - L(a', b) of two records and their changed selves, volumes and
    reports: it vanishes if and only if L(a, b) = f(a) + g(b). batch: two records.
    """
    if len(batch) != 2:
        raise ValueError(f"two records are compared, not {len(batch)}")
    changed = replace(batch, volumes=batch.volumes.flip(2) * 1.7, report=batch.report.flip(1))

    def mix(first: Batch, second: Batch) -> float:
        def take(name: str) -> Tensor:
            return torch.cat([getattr(first, name)[:1], getattr(second, name)[1:]])

        return float(loss(replace(batch, volumes=take("volumes"), report=take("report"))))

    with torch.no_grad():
        values = mix(batch, batch), mix(changed, changed), mix(batch, changed), mix(changed, batch)
    return abs(values[0] + values[1] - values[2] - values[3]) / max(abs(v) for v in values)
