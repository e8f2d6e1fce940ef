"""Export: a checkpoint becomes a folder that others can use, with its model card; kinds: safetensors, bundle, onnx."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medmap_model.checkpoint import ABOUT, TEXTS, WEIGHTS, LoadedMedMAP, find, load, read_info, summary_of, to_json
from medmap_model.detector import UntrainedError, refuse_untrained
from server.export.card import write_card

KINDS = ("safetensors", "bundle", "onnx")


class ExportError(ValueError):
    """An export that cannot be made; the message says why and what to do. Nothing was written."""


def export(checkpoint: Path, target: Path, *, kind: str) -> Path:
    """Write the model to a new folder; returns it. It appears whole or not at all.

    checkpoint: as for `medmap_model.load`; of a run's folder, the card tells the summary's scores as well.
    Raises CheckpointError, ExportError.
    """
    if kind not in KINDS:
        raise ExportError(f"--to {kind} is not known: take one of {', '.join(KINDS)}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ExportError(f"{target} is there already: give a new folder with -o, so that nothing is overwritten")
    folder = find(checkpoint)
    info, summary = read_info(folder), summary_of(folder)
    model = load(folder)
    writers: dict[str, Callable[[Path, LoadedMedMAP, Path], None]] = {
        "safetensors": _safetensors,
        "bundle": _bundle,
        "onnx": _onnx,
    }
    if kind != "safetensors":
        try:
            refuse_untrained(info)
        except UntrainedError as error:
            raise ExportError(str(error)) from None
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        writers[kind](aside, model, folder)
        text = write_card(info, summary, kind=kind)
        for place in (aside, *([aside / "docs"] if kind == "bundle" else [])):
            place.mkdir(exist_ok=True)
            (place / "README.md").write_text(text, encoding="utf-8")
        if target.exists():
            target.rmdir()
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _safetensors(target: Path, model: LoadedMedMAP, folder: Path) -> None:
    """The checkpoint itself, with all that is known of it in its model.json: `medmap_model.load` reads it."""
    for name in (WEIGHTS, TEXTS):
        shutil.copyfile(folder / name, target / name)
    (target / ABOUT).write_bytes(to_json(model.info))


def _bundle(target: Path, model: LoadedMedMAP, folder: Path) -> None:
    from server.export.bundle import write_bundle

    write_bundle(target, model)


def _onnx(target: Path, model: LoadedMedMAP, folder: Path) -> None:
    from server.export.onnx import DisagreementError, write_onnx

    try:
        write_onnx(target, model)
    except ModuleNotFoundError as error:
        raise ExportError(f"--to onnx needs {error.name}: run `pip install 'medmap-fl[export]'`") from None
    except DisagreementError as error:
        raise ExportError(str(error)) from None


def contract_of(model: LoadedMedMAP, organ: str) -> dict[str, Any]:
    """What whoever runs the network must know of one organ: slots, classes, preprocessing, operating point."""
    words = model.vocabulary.organs[organ]
    return {
        "organ": organ,
        "modalities": list(words.modalities),
        "trained_modalities": [m for m in words.modalities if m in model.info["modalities"]],
        "classes": list(words.abnormalities),
        "multi_label": words.multi_label,
        "operating_point": (model.info["operating_points"] or {}).get(organ),
        "volumes": model.info["volumes"],
        "vocabulary_hash": model.info["vocabulary"]["hash"],
        "text_hash": model.info["text"]["hash"],
        "data": model.info["data"],
    }
