"""Checkpoints of a federation: safetensors + JSON, no pickle, written whole or not at all.

`checkpoints/finetune-0007/` holds `model.safetensors` (parameter name -> tensor) and `state.json` (what is needed to go on),
and what makes it describe itself: `model.json` and `texts.safetensors` (`medmap_model/checkpoint.py`).
Kept are the latest, the best of the present stage, and what stage 1 ended with (for `evaluation.zero_shot`).
Resuming is a first-class use: the loop draws every random number from (seed, stage, round, site), so weights and this
state are all that a round depends on.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medmap_model.checkpoint import CheckpointError
from medmap_model.checkpoint import latest as newest
from server.files import write_json

Layout = Mapping[str, list[tuple[str, Any]]]
_ASIDE = ".old"


def to_tensors(vectors: Mapping[str, np.ndarray], layout: Layout) -> dict[str, np.ndarray]:
    """Flat module groups -> named parameters."""
    tensors = {}
    for group, parameters in layout.items():
        at = 0
        for name, shape in parameters:
            n = math.prod(shape)
            tensors[name] = np.array(vectors[group][at : at + n].reshape(tuple(shape)))
            at += n
    return tensors


def to_vectors(tensors: Mapping[str, np.ndarray], layout: Layout) -> dict[str, np.ndarray]:
    """Named parameters -> flat module groups. Raises CheckpointError when they do not fit the layout."""
    vectors = {}
    for group, parameters in layout.items():
        for name, shape in parameters:
            if name not in tensors or tensors[name].shape != tuple(shape):
                found = tensors[name].shape if name in tensors else "nothing"
                raise CheckpointError(f"parameter {name} is {tuple(shape)} in this model, the checkpoint has {found}")
        flat = [tensors[name].ravel() for name, _ in parameters]
        vectors[group] = np.concatenate(flat).astype(np.float32, copy=False)
    return vectors


def save(
    folder: Path,
    name: str,
    vectors: Mapping[str, np.ndarray],
    layout: Layout,
    state: Mapping[str, Any],
    *,
    beside: Mapping[str, bytes] | None = None,
    durable: bool = False,
) -> Path:
    """Write `folder/name`, then drop every other checkpoint but those that `state` names as `best` and `pretrained`.

    One of that name is put aside until the new one is there: `latest` finds one of the two, wherever this is cut off.
    beside: file name -> content of what else lies in it (`medmap_model.checkpoint.Companions`). durable: on the disk before
    another is dropped, so that a power cut leaves a whole one; waiting for the disk is slow against a simulated round.
    """
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    temporary, final, aside = folder / f".{name}.tmp", folder / name, folder / f".{name}{_ASIDE}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    save_file(to_tensors(vectors, layout), temporary / "model.safetensors", metadata={"name": name})
    for file, content in (beside or {}).items():
        (temporary / file).write_bytes(content)
    write_json(temporary / "state.json", dict(state))
    if durable:
        for path in (*temporary.iterdir(), temporary):
            _to_disk(path)
    shutil.rmtree(aside, ignore_errors=True)
    if final.exists():
        os.replace(final, aside)
    os.replace(temporary, final)
    if durable:
        _to_disk(folder)
    for other in folder.iterdir():
        if other.is_dir() and other.name not in (name, state.get("best"), state.get("pretrained")):
            shutil.rmtree(other, ignore_errors=True)
    return final


def _to_disk(path: Path) -> None:
    """Return when the disk holds a file, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def latest(folder: Path) -> Path | None:
    """The newest checkpoint of a folder, None without one; one that a cut-off `save` had put aside is put back first.

    Raises CheckpointError where there are some and none can be read: a run would begin anew and drop them.
    """
    for aside in folder.glob(f".*{_ASIDE}"):
        final = folder / aside.name[1:].removesuffix(_ASIDE)
        if final.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.replace(aside, final)
    found = newest(folder)
    if found is None and (damaged := sorted(p for p in folder.glob("[!.]*") if p.is_dir())):
        raise CheckpointError(
            f"{damaged[-1]} is damaged, and {folder} holds no other: restore it from a backup, or delete it to begin anew"
        )
    return found


def load(path: Path, layout: Layout) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read one checkpoint: (group -> vector, state). Raises CheckpointError."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        state = dict(json.loads((path / "state.json").read_text(encoding="utf-8")))
        tensors = load_file(path / "model.safetensors")
    except (OSError, TypeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a readable checkpoint ({type(error).__name__}): choose another") from None
    return to_vectors(tensors, layout), state
