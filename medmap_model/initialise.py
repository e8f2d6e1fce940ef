"""`model.init`: the start of a model's weights from a checkpoint, and a report of what of it matched."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medmap_model.encoders.base import ModelError
from medmap_model.model import MedMAP

_NESTED = ("state_dict", "model_state_dict", "model")
_PREFIX = re.compile(r"^(module|model|encoder|backbone|swinViT|net|body)\.")
_SHOWN = 3


@dataclass(frozen=True)
class InitReport:
    """What a checkpoint gave. Names: the model's, or, of an encoder's checkpoint (`scope`), those inside every encoder.

    matched: parameters that were set. missing: parameters that kept their random start. wrong_shape: those among the missing
    that the checkpoint has in another shape. unexpected: what the checkpoint holds and nothing took.
    """

    source: str
    scope: str
    matched: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    wrong_shape: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One or two lines for a person."""
        if self.scope == "random":
            return "init=random: no checkpoint, the weights depend on the seed"
        of = "the model's" if self.scope == "model" else "every encoder's"
        total = len(self.matched) + len(self.missing)
        line = f"init={self.source}: {len(self.matched)} of {of} {total} parameter tensors set"
        rest = {
            "left random": [n for n in self.missing if n not in self.wrong_shape],
            "of another shape": self.wrong_shape,
            "in the checkpoint but not used": self.unexpected,
        }
        details = [f"{len(names)} {what} ({_some(names)})" for what, names in rest.items() if names]
        return line + ("\n  " + "; ".join(details) if details else "")


def initialise(model: MedMAP, source: str) -> InitReport:
    """Set the model's parameters, in place, from `source`, by name and shape; whatever does not match stays as it is.

    source: `random` (nothing happens); one of our checkpoints, as its folder or file; or the checkpoint of one encoder, which
    every encoder of the model then starts from. Its names may be those of torch, MONAI or of MONAI's published self-supervised
    Swin weights. safetensors, or what `torch.load(weights_only=True)` reads: never a pickle of objects.
    Raises ModelError when it cannot be read or nothing matches.
    """
    if source == "random":
        return InitReport(source, "random")
    tensors = _read(source)
    own = dict(model.named_parameters())
    if any(name in own for name in tensors):
        return _apply(tensors, [model], source, "model", plain=lambda name: name)
    return _apply(tensors, list(model.encoders.values()), source, "encoder", plain=canonical)


def canonical(name: str) -> str:
    """A parameter's name without what differs between libraries that mean the same network.

    Wrappers in front (`module.`, `encoder.`, `swinViT.`, `body.`) go; the published Swin weights say `mlp.fc1` for MONAI's
    `mlp.linear1`, and those of `ssl_pretrained_weights.pth` name a stage `layers1.0.0.` for `layers1.0.`.
    """
    while (shorter := _PREFIX.sub("", name)) != name:
        name = shorter
    name = re.sub(r"^(layers\d\.0)\.0\.", r"\1.", name)
    return re.sub(r"\.mlp\.fc([12])\.", r".mlp.linear\1.", name)


def _apply(
    tensors: Mapping[str, Tensor], targets: list[nn.Module], source: str, scope: str, *, plain: Callable[[str], str]
) -> InitReport:
    """Copy what fits into every target; all targets have the same names, which `plain` makes comparable."""
    given = {plain(name): (name, tensor) for name, tensor in tensors.items()}
    names = [n for n, _ in targets[0].named_parameters()]
    shapes = {n: p.shape for n, p in targets[0].named_parameters()}
    matched = [n for n in names if plain(n) in given and given[plain(n)][1].shape == shapes[n]]
    if not matched:
        raise ModelError(
            f"model.init={source}: none of its {len(tensors)} tensors ({_some(list(tensors))}) fits this model "
            f"({_some(names)}): check model.encoder.kind and width, or take model.init=random"
        )
    with torch.no_grad():
        for target in targets:
            parameters = dict(target.named_parameters())
            for n in matched:
                parameters[n].copy_(given[plain(n)][1])
    # What a network computes from its settings (Swin's index of relative positions) is no weight of it.
    known = {plain(n) for n in names} | {plain(n) for n, _ in targets[0].named_buffers()}
    return InitReport(
        source=source,
        scope=scope,
        matched=tuple(matched),
        missing=tuple(n for n in names if n not in set(matched)),
        wrong_shape=tuple(n for n in names if plain(n) in given and n not in set(matched)),
        unexpected=tuple(name for key, (name, _) in given.items() if key not in known),
    )


def _read(source: str) -> dict[str, Tensor]:
    """Name -> tensor of a checkpoint. Raises ModelError."""
    path = Path(source)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise ModelError(f"model.init={source}: there is no file {path}; give a checkpoint's folder or file, or random")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, ValueError, EOFError, KeyError) as error:
        raise ModelError(
            f"model.init={source} cannot be read as plain tensors ({type(error).__name__}): "
            "save it as safetensors, or as a state dict with torch.save"
        ) from None
    return _flat(found, source)


def _flat(found: Any, source: str) -> dict[str, Tensor]:
    """The state dict inside what a training script saved."""
    while isinstance(found, dict) and (key := next((k for k in _NESTED if isinstance(found.get(k), dict)), None)):
        found = found[key]
    tensors = {k: v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, dict) else {}
    if not tensors:
        raise ModelError(f"model.init={source} holds no named tensors: give a state dict, or take model.init=random")
    return tensors


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
