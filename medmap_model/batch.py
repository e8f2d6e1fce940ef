"""One training batch: records (patients) of ONE organ, with fixed modality slots and a presence mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B records of one organ with M modality slots (the vocabulary's order).

    volumes: (B, M, D, H, W) float; a missing slot is zeros and is never computed on
    present: (B, M) bool
    label:   (B,) int64, -1 where the abnormality is not known; of a multi-label organ the bit set of its classes
    report:  (B, E) float32, frozen text embedding of the report; zeros where there is none
    has_report: (B,) bool
    negatives: (B, K, E) float32, the report with side or negation turned, zeros where there is none; None: not asked for
    """

    organ: str
    volumes: Tensor
    present: Tensor
    label: Tensor
    report: Tensor
    has_report: Tensor
    negatives: Tensor | None = None

    def __len__(self) -> int:
        return int(self.label.shape[0])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        return self._each(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, for asynchronous copies to a GPU."""
        return self._each(Tensor.pin_memory)

    def rows(self, at: slice) -> Batch:
        """Some of its records."""
        return self._each(lambda t: t[at])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changed: dict[str, Any] = {
            f.name: change(v) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)
        }
        return replace(self, **changed)
