"""The public texts of a vocabulary with their frozen embeddings: a model is built from them where its text encoder is not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from medmap_model.text.encoder import TextEncoder, TextEncoderError


class TextTable:
    """Texts with their frozen embeddings; stands in for the encoder that made them, for these texts alone.

    made_by: an encoder; whatever it is asked to embed is remembered. None: the table is all there is.
    """

    def __init__(
        self, hash: str, dim: int, rows: Mapping[str, Tensor] | None = None, *, made_by: TextEncoder | None = None
    ) -> None:
        self.hash, self.dim = hash, dim
        self.rows, self._encoder = dict(rows or {}), made_by

    @classmethod
    def of(cls, encoder: TextEncoder) -> TextTable:
        """An empty table that an encoder fills as it is used."""
        return cls(encoder.hash, encoder.dim, made_by=encoder)

    def embed(self, texts: Sequence[str]) -> Tensor:
        """(N,) texts -> (N, dim) float32. Raises TextEncoderError for a text that is not in a table without encoder."""
        if self._encoder is not None:
            found = self._encoder.embed(texts)
            self.rows.update(zip(texts, found, strict=True))
            return found
        if unknown := [t for t in texts if t not in self.rows]:
            raise TextEncoderError(
                f"'{unknown[0]}' is not among the texts that the checkpoint holds (encoder {self.hash}): "
                "embed it with that encoder"
            )
        return torch.stack([self.rows[t] for t in texts]) if texts else torch.zeros(0, self.dim)

    def to_bytes(self) -> bytes:
        """The content of texts.safetensors."""
        from safetensors.torch import save

        metadata = {"hash": self.hash, "texts": json.dumps(list(self.rows), ensure_ascii=False)}
        return save({"embedding": torch.stack(list(self.rows.values())).contiguous()}, metadata)

    @classmethod
    def read(cls, path: Path) -> TextTable:
        """The table of a texts.safetensors. Raises TextEncoderError."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                metadata, embedding = file.metadata(), file.get_tensor("embedding")
            texts = json.loads(metadata["texts"])
            return cls(metadata["hash"], embedding.shape[1], dict(zip(texts, embedding, strict=True)))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, IndexError):
            raise TextEncoderError(f"{path} is missing or damaged: copy the checkpoint again") from None
