"""Parameters <-> module groups: a group is the set of parameters that travels as one flat float32 vector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import nn

from medmap_model.vocabulary import Vocabulary

_PER_NAME = {"encoders": "encoder", "projections": "projection", "heads": "head"}
_WHOLE = ("text_projection", "fusion")


class GroupError(ValueError):
    """A vector that does not fit the model; the message names the group."""


def group_names(vocabulary: Vocabulary) -> tuple[str, ...]:
    """Every group, in a fixed order: encoders, projections, text_projection, fusion, heads."""
    return (
        *(f"encoder/{m}" for m in vocabulary.modalities),
        *(f"projection/{m}" for m in vocabulary.modalities),
        *_WHOLE,
        *(f"head/{o}" for o in vocabulary.organs),
    )


def group_of(parameter_name: str) -> str:
    """`encoders.FLAIR.stem.weight` -> `encoder/FLAIR`. Raises GroupError for a parameter of no group."""
    first, _, rest = parameter_name.partition(".")
    if first in _WHOLE:
        return first
    name = rest.partition(".")[0]
    if first in _PER_NAME and name:
        return f"{_PER_NAME[first]}/{name}"
    raise GroupError(f"parameter {parameter_name} belongs to no module group")


def layout(model: nn.Module) -> dict[str, list[tuple[str, torch.Size]]]:
    """Group -> its parameters (name, shape), both in the model's order: the meaning of a group's vector."""
    groups: dict[str, list[tuple[str, torch.Size]]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault(group_of(name), []).append((name, parameter.shape))
    return groups


def pack(model: nn.Module, groups: Iterable[str]) -> dict[str, np.ndarray]:
    """Group -> 1-D float32 copy of its parameters. Raises GroupError for a group the model lacks."""
    parameters = dict(model.named_parameters())
    plan = layout(model)
    vectors = {}
    for group in groups:
        if group not in plan:
            raise GroupError(f"group {group} is not in the model; it has {', '.join(plan)}")
        flat = [parameters[name].detach().float().cpu().reshape(-1) for name, _ in plan[group]]
        vectors[group] = torch.cat(flat).numpy()
    return vectors


def unpack(model: nn.Module, vectors: Mapping[str, np.ndarray]) -> None:
    """Write vectors into the parameters, in place; nothing is written unless every vector fits.

    Raises GroupError naming the group on an unknown group, a wrong length, shape or dtype.
    """
    parameters = dict(model.named_parameters())
    plan = layout(model)
    for group, vector in vectors.items():
        if group not in plan:
            raise GroupError(f"group {group} is not in the model; it has {', '.join(plan)}")
        length = sum(shape.numel() for _, shape in plan[group])
        if vector.dtype != np.float32 or vector.shape != (length,):
            raise GroupError(
                f"group {group}: need a float32 vector of length {length}, got {vector.dtype} of shape {vector.shape}"
            )
    with torch.no_grad():
        for group, vector in vectors.items():
            start = 0
            flat = torch.from_numpy(np.array(vector, copy=True))  # a received array may be read-only
            for name, shape in plan[group]:
                parameters[name].copy_(flat[start : start + shape.numel()].view(shape))
                start += shape.numel()


def owned(vocabulary: Vocabulary, volumes: Mapping[str, int], studies: Mapping[str, int], stage: str) -> dict[str, int]:
    """The groups that a site trains in a stage, with their weight in the average.

    volumes: training volumes per modality; studies: training studies per organ. Encoders and projections weigh by
    volumes, heads by the organ's studies, the shared groups by all studies. What has nothing behind it is not owned.
    """
    if stage not in ("pretrain", "finetune"):
        raise GroupError(f"stage {stage} is not known: pretrain or finetune")
    total = sum(studies.get(o, 0) for o in vocabulary.organs)
    weights = {f"{kind}/{m}": volumes.get(m, 0) for kind in ("encoder", "projection") for m in vocabulary.modalities}
    weights["text_projection"] = total
    if stage == "finetune":
        weights["fusion"] = total
        weights |= {f"head/{o}": studies.get(o, 0) for o in vocabulary.organs}
    return {group: int(n) for group, n in weights.items() if n > 0}
