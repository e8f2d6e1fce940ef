"""A stage's loss as privacy needs it: of one patient; and as a sum over the patients of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import cast

from torch import Tensor, nn

from configs.schema import Config
from medmap_model.batch import Batch
from medmap_model.model import MedMAP

RecordLoss = Callable[[nn.Module, Batch], Tensor]


def record_loss(config: Config, stage: str, *, progress: float) -> RecordLoss:
    """(model, a batch of ONE patient) -> scalar, of stage `pretrain` or `finetune`. progress: 0..1 over the stage.

    Shapes do not depend on which modalities are present, as `vmap` needs.
    """

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        network = cast(MedMAP, model)
        if stage == "pretrain":
            return network.pretrain_loss(batch, config.stage.pretrain, dense=True)["loss"]
        return network.finetune_loss(batch, config.stage.finetune, progress=progress, dense=True)["loss"]

    return loss


def tensors(batch: Batch) -> dict[str, Tensor]:
    """What a batch holds of patients, by name; the first axis of each is the patient."""
    return {f.name: v for f in fields(batch) if isinstance(v := getattr(batch, f.name), Tensor)}


def without_modality_dropout(config: Config) -> Config:
    """The same settings with a loss that draws nothing: two calls of it can be compared."""
    stage = replace(config.stage, finetune=replace(config.stage.finetune, modality_dropout=0.0))
    return replace(config, stage=stage)


def alike(batch: Batch, *, multi_label: bool) -> Iterator[Batch]:
    """The batch in parts whose patients count alike in stage 2's means: label unknown, none of the classes, some.

    Stage 2 averages over known labels, and its alignment over those that have a text. Within a part, the number of patients
    times the loss is therefore the sum of the losses that they have alone.
    """
    none = (batch.label == 0) & multi_label
    for rows in (batch.label < 0, none, (batch.label >= 0) & ~none):
        if rows.any():
            yield Batch(organ=batch.organ, **{name: v[rows] for name, v in tensors(batch).items()})


def summed(loss: RecordLoss, model: MedMAP, batch: Batch) -> Tensor:
    """Sum of the losses of a batch's patients, computed together: what must hold no term of two of them."""
    several = model.vocabulary.organs[batch.organ].multi_label
    return sum(
        (len(part) * loss(model, part) for part in alike(batch, multi_label=several)), batch.volumes.new_zeros(())
    )
