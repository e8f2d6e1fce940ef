"""A MedMAP with one organ chosen, for other runtimes: volumes (B, M, D, H, W) and present (B, M) -> probabilities (B, C)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from medmap_model.checkpoint import LoadedMedMAP, blank_model
from medmap_model.text import TextTable


class UntrainedError(ValueError):
    """A model that was never trained for what is asked of it; the message is one sentence."""


class Detector(nn.Module):
    """Detects one organ's abnormalities; every slot is computed, so that no shape depends on what is present.

    Its `state_dict` is whole: it holds the frozen public texts as well, which a MedMAP's leaves out.
    """

    _seen: Tensor

    def __init__(self, model: LoadedMedMAP, organ: str) -> None:
        """Raises UntrainedError for an organ that the model was never trained to detect in."""
        super().__init__()
        refuse_untrained(model.info, organ)
        self.model, self.organ = model, organ
        never = [m not in model.info["modalities"] for m in model.slots(organ)]
        self.register_buffer("_seen", ~torch.tensor(never), persistent=False)
        for name, buffer in model.texts.named_buffers(recurse=False):
            model.texts.register_buffer(name, buffer)  # persistent from here on
        self.eval()

    def forward(self, volumes: Tensor, present: Tensor) -> Tensor:
        """(B, M, D, H, W) float32, (B, M) bool -> (B, C) float32.

        What an absent slot holds does not matter. Slots of modalities that were never trained count as absent.
        """
        present = present & self._seen
        model, organ = self.model, self.organ
        embedded = model.encode_dense(volumes, present, organ)
        return model.probabilities(model.classify(model.fuse(embedded, present, organ), organ), organ)


def refuse_untrained(info: Mapping[str, Any], organ: str | None = None) -> None:
    """Raise UntrainedError where a checkpoint cannot detect: after stage 1 alone, or in another organ."""
    if info["stage"] == "pretrain":
        raise UntrainedError(
            "this checkpoint ends with stage 1, which trains no detection: take one of stage finetune, or train on"
        )
    if not info["organs"]:
        raise UntrainedError("this checkpoint was trained on no organ: take one of a run with a finished round")
    if organ is not None and organ not in info["organs"]:
        trained = ", ".join(info["organs"])
        raise UntrainedError(f"the model was never trained on the {organ}; organs it was trained on: {trained}")


def blank_detector(about: Mapping[str, Any], organ: str) -> Detector:
    """The detector that model.json describes, for a `state_dict` to be loaded into: weights and texts come with it.

    Raises CheckpointError or UntrainedError.
    """
    table = _AnyText(about["text"]["hash"], about["text"]["dim"])
    return Detector(blank_model(about, table), organ)


class _AnyText(TextTable):
    """Zeros for every text, until the real embeddings are loaded."""

    def embed(self, texts: Any) -> Tensor:
        """(N,) texts -> (N, dim) zeros."""
        return torch.zeros(len(texts), self.dim)
