"""Checkpoints that say what they are: beside the weights, model.json and the frozen public texts; a folder in, a MedMAP out.

model.safetensors   parameter name -> float32 tensor
model.json          model, vocabulary, text encoder, volumes that the weights expect, what was trained on what
texts.safetensors   embedding (T, E) of the vocabulary's T public texts: a model is loaded without its text encoder
state.json          where the federation stands (an exported model has none: its model.json says it)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from configs.schema import Config, EncoderConfig, FusionConfig, ModelConfig, TextConfig
from configs.setting import ConfigError
from medmap_model.contract import STAGES
from medmap_model.encoders import ModelError
from medmap_model.model import MedMAP
from medmap_model.text import TextEncoder, TextEncoderError, TextTable, build_text_encoder
from medmap_model.vocabulary import Vocabulary, VocabularyError

FORMAT = 1
WEIGHTS, ABOUT, TEXTS, STATE = "model.safetensors", "model.json", "texts.safetensors", "state.json"
_VOLUMES = (
    "spacing_mm",
    "size",
    "crop",
    "clip_percentiles",
    "skull_strip",
    "bias_correction",
    "register",
    "standardise",
    "landmarks",
)  # what changes a prepared volume
_TEXT = ("kind", "model", "pooling", "max_tokens", "dim")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which, why and what to do."""


class LoadedMedMAP(MedMAP):
    """A MedMAP from a checkpoint. info: what model.json says, and rounds, stage and operating points where known."""

    info: dict[str, Any]


class Companions:
    """The files that make a run's checkpoints describe themselves.

    They are serialised once, and again only when a site brings a modality or an organ: a round must stay cheap.
    """

    def __init__(self, config: Config, vocabulary: Vocabulary, texts: TextTable, *, data: str) -> None:
        """texts: the table through which the run's model was built. data: what it is trained on, as `data.kind`."""
        named = asdict(config.text)
        if Path(
            config.text.model
        ).is_absolute():  # a path says something of the coordinator's machine, and helps nobody
            named["model"] = Path(config.text.model).name
        self._about: dict[str, Any] = {
            "format": FORMAT,
            "medmap_fl": _version(),
            "model": asdict(config.model),
            "vocabulary": {"hash": vocabulary.hash} | vocabulary.to_dict(),
            "text": {"hash": texts.hash} | {k: named[k] for k in _TEXT} | {"dim": texts.dim},
            "volumes": {k: v for k, v in asdict(config.data.volumes).items() if k in _VOLUMES},
            "data": data,
            "seed": config.seed,
            "strategy": config.strategy.kind,
            "privacy": config.privacy.kind,
        }
        self._texts, self._order = texts.to_bytes(), (vocabulary.modalities, tuple(vocabulary.organs))
        self._key: list[Any] = []
        self._written = b""

    def files(self, trained: Mapping[str, Sequence[str]]) -> dict[str, bytes]:
        """File name -> content. trained: the sites, modalities and organs behind the weights so far."""
        key = [len(trained["sites"]), sorted(trained["modalities"]), sorted(trained["organs"])]
        if key != self._key:
            told = zip(("modalities", "organs"), self._order, strict=True)
            known = {kind: [n for n in names if n in trained[kind]] for kind, names in told}
            self._key, self._written = key, to_json(self._about | {"sites": key[0]} | known)
        return {ABOUT: self._written, TEXTS: self._texts}


def load(path: str | Path, *, vocabulary: Vocabulary | None = None, text: TextEncoder | None = None) -> LoadedMedMAP:
    """The model of a run's folder (its latest checkpoint), a checkpoints folder, one checkpoint or an export; eval mode.

    vocabulary, text: the caller's own, which must be the checkpoint's. text=None: the encoder that the checkpoint names is
    compared where this machine has it; where it has not, the frozen public texts in the checkpoint are all that is needed.
    Raises CheckpointError: nothing there, not readable, of an older version, or of another vocabulary or text encoder.
    """
    folder = find(path)
    info = read_info(folder)
    try:
        texts = TextTable.read(folder / TEXTS)
    except TextEncoderError as error:
        raise CheckpointError(str(error)) from None
    model = blank_model(info, texts, where=str(folder))
    if vocabulary is not None and vocabulary.hash != info["vocabulary"]["hash"]:
        raise CheckpointError(
            f"{folder} was trained with vocabulary {info['vocabulary']['hash']}, yours is {vocabulary.hash}: "
            "take the federation's vocabulary, or a checkpoint of yours"
        )
    found = text if text is not None else _encoder_here(info)
    if found is not None and found.hash != info["text"]["hash"]:
        raise CheckpointError(
            f"{folder} was trained with text encoder {info['text']['hash']} ({info['text']['model']}), "
            f"the one here is {found.hash}: install the version that the federation uses"
        )
    _read_weights(model, folder / WEIGHTS)
    return model


def find(path: str | Path) -> Path:
    """The checkpoint's own folder, of a run, of a checkpoints folder, of one checkpoint or file. Raises CheckpointError."""
    given = Path(path)
    if given.name == WEIGHTS:
        given = given.parent
    if (given / WEIGHTS).is_file():
        return given
    found = latest(given / "checkpoints") or latest(given)
    if found is None:
        what = "holds no checkpoint" if given.is_dir() else "is not there"
        raise CheckpointError(f"{path} {what}: give a run's folder, its checkpoints folder or one checkpoint")
    return found


def latest(folder: Path) -> Path | None:
    """The checkpoint with the most rounds behind it, or None; of two with as many, that of the later stage."""
    done: list[tuple[int, bool, Path]] = []
    for path in folder.glob(f"*/{STATE}"):
        if path.parent.name.startswith("."):
            continue
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            done.append((int(state["completed"]), state.get("stage") == STAGES[-1], path.parent))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return max(done)[2] if done else None


def read_info(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself: model.json, and `stage`, `rounds` and `operating_points` (None: not known).

    Operating points are those of the run's summary, which holds for the federation's latest model alone.
    Raises CheckpointError.
    """
    if not (folder / ABOUT).is_file():
        raise CheckpointError(
            f"{folder} has no {ABOUT}: it was written by a version that did not say what its weights are; "
            "train it again with this one"
        )
    info = {"stage": None, "rounds": None, "operating_points": None} | _read_json(folder / ABOUT)
    if info.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} has format {info.get('format')}, this version reads {FORMAT}: use the version that wrote it"
        )
    if (folder / STATE).is_file():
        state = _read_json(folder / STATE)
        info |= {"stage": state.get("stage"), "rounds": state.get("completed")}
        info["operating_points"] = (summary_of(folder) or {}).get("operating_points")
    return info


def summary_of(folder: Path) -> dict[str, Any] | None:
    """The finished run's summary.json, if it speaks of this checkpoint: the federation's latest. Raises CheckpointError."""
    summary, state = folder.parent.parent / "summary.json", folder / STATE
    if not (summary.is_file() and state.is_file() and latest(folder.parent) == folder):
        return None
    return _read_json(summary) if _read_json(state).get("condition") == "federated" else None


def blank_model(info: Mapping[str, Any], texts: TextEncoder, *, where: str = "this checkpoint") -> LoadedMedMAP:
    """The model that model.json describes, in eval mode, its weights still to be read. Raises CheckpointError."""
    try:
        content = {k: v for k, v in info["vocabulary"].items() if k != "hash"}
        vocabulary, config = Vocabulary.from_dict(content), _model_config(info["model"])
        hashes = {
            "vocabulary": (info["vocabulary"]["hash"], vocabulary.hash),
            "text": (info["text"]["hash"], texts.hash),
        }
    except (KeyError, TypeError, ValueError, VocabularyError) as error:
        raise CheckpointError(f"{where}: {ABOUT} does not describe a model ({error}): copy it again") from None
    for name, (said, is_) in hashes.items():
        if said != is_:
            raise CheckpointError(f"{where}: {ABOUT} names {name} {said}, but what it holds is {is_}: copy it again")
    try:
        with torch.random.fork_rng(devices=[]):
            model = LoadedMedMAP(config, vocabulary, texts)
    except (ModelError, ConfigError) as error:  # such as a 2D backbone that this machine has not got
        raise CheckpointError(f"{where} cannot be built here: {error}") from None
    model.info = dict(info)
    return model.eval()


def config_of(info: Mapping[str, Any], config: Config) -> Config:
    """`config` with the model, the text encoder and the volumes that a checkpoint names. Raises CheckpointError."""
    try:
        text = replace(config.text, **{k: info["text"][k] for k in _TEXT})
        volumes = replace(config.data.volumes, **info["volumes"])
        model = _model_config(info["model"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{ABOUT} does not describe a model ({error}): copy it again") from None
    return replace(config, model=model, text=text, data=replace(config.data, volumes=volumes))


def _model_config(values: Mapping[str, Any]) -> ModelConfig:
    """The inverse of `asdict`; the weights come from the checkpoint, so `init` no longer matters."""
    nested = {"encoder": EncoderConfig(**values["encoder"]), "fusion": FusionConfig(**values["fusion"])}
    return replace(ModelConfig(**{**values, **nested}), init="random")


def _encoder_here(info: Mapping[str, Any]) -> TextEncoder | None:
    """The text encoder that a checkpoint names, or None where this machine has none of that name."""
    try:
        return build_text_encoder(TextConfig(**{k: info["text"][k] for k in _TEXT}))
    except TextEncoderError:
        return None


def _read_weights(model: MedMAP, path: Path) -> None:
    """Copy every parameter from the file. Raises CheckpointError unless they are the model's, all of them."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError):
        raise _unreadable(path) from None
    parameters = dict(model.named_parameters())
    wrong = sorted(parameters.keys() ^ tensors.keys())
    wrong += [n for n in parameters if n in tensors and parameters[n].shape != tensors[n].shape]
    if wrong:
        raise CheckpointError(f"{path} does not fit the model that {ABOUT} describes ({wrong[0]}): copy it again")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError
    except (OSError, ValueError):
        raise _unreadable(path) from None
    return content


def to_json(value: Any) -> bytes:
    """As every JSON file of a checkpoint is written."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _unreadable(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is missing or damaged: copy the checkpoint again")


def _version() -> str:
    try:
        return version("medmap-fl")
    except PackageNotFoundError:  # run from a checkout
        return "unknown"
