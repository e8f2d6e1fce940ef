"""Parameters <-> module groups: a group is the set of parameters that travels as one flat float32 vector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import nn

from configs.schema import ModelConfig
from configs.setting import ConfigError
from medmap_model.vocabulary import Vocabulary

_PER_NAME = {"encoders": "encoder", "projections": "projection", "heads": "head"}
_WHOLE = ("text_projection", "fusion")


class GroupError(ValueError):
    """A vector that does not fit the model; the message names the group."""


def trunks(config: ModelConfig, vocabulary: Vocabulary) -> dict[str, str]:
    """Modality -> the name of its encoder (`model.sharing`): its own, `shared`, or a group such as `T1+T1ce`.

    Raises ConfigError for a group that names an unknown modality, or one twice.
    """
    if config.sharing == "shared":
        return dict.fromkeys(vocabulary.modalities, "shared")
    names = {m: m for m in vocabulary.modalities}
    taken: set[str] = set()
    for group in config.trunk_groups if config.sharing == "groups" else ():
        try:
            members = vocabulary.modalities_in(group)
        except ValueError as error:
            raise ConfigError(f"model.trunk_groups={group}: {error}") from None
        if twice := [m for m in members if m in taken]:
            raise ConfigError(f"model.trunk_groups={group}: {twice[0]} is in two groups; name it once")
        taken |= set(members)
        names |= dict.fromkeys(members, group)
    return names


def group_names(vocabulary: Vocabulary, trunk: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Every group, in a fixed order: encoders, projections, text_projection, fusion, heads.

    trunk: modality -> name of its encoder (`trunks`); None: its own.
    """
    trunk = trunk or {m: m for m in vocabulary.modalities}
    return (
        *(f"encoder/{t}" for t in dict.fromkeys(trunk[m] for m in vocabulary.modalities)),
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


def owned(
    vocabulary: Vocabulary,
    volumes: Mapping[str, int],
    studies: Mapping[str, int],
    stage: str,
    trunk: Mapping[str, str] | None = None,
) -> dict[str, int]:
    """The groups that a site trains in a stage, with their weight in the average.

    volumes: training volumes per modality; studies: training studies per organ; trunk: as in `group_names`. Encoders
    and projections weigh by volumes (a shared encoder by those of all its modalities), heads by the organ's studies,
    the shared groups by all studies. What has nothing behind it is not owned.
    """
    if stage not in ("pretrain", "finetune"):
        raise GroupError(f"stage {stage} is not known: pretrain or finetune")
    total = sum(studies.get(o, 0) for o in vocabulary.organs)
    trunk = trunk or {m: m for m in vocabulary.modalities}
    weights: dict[str, int] = {}
    for m in vocabulary.modalities:
        weights[f"encoder/{trunk[m]}"] = weights.get(f"encoder/{trunk[m]}", 0) + volumes.get(m, 0)
    weights |= {f"projection/{m}": volumes.get(m, 0) for m in vocabulary.modalities}
    weights["text_projection"] = total
    if stage == "finetune":
        weights["fusion"] = total
        weights |= {f"head/{o}": studies.get(o, 0) for o in vocabulary.organs}
    return {group: int(n) for group, n in weights.items() if n > 0}
