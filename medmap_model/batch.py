"""One training batch: records (patients) of ONE organ, with fixed modality slots and a presence mask."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B records of one organ with M modality slots (the vocabulary's order).

    volumes: (B, M, D, H, W) float; a missing slot is zeros and is never computed on
    present: (B, M) bool
    label:   (B,) int64, -1 where the abnormality is not known
    report:  (B, E) float32, frozen text embedding of the report; zeros where there is none
    has_report: (B,) bool
    """

    organ: str
    volumes: Tensor
    present: Tensor
    label: Tensor
    report: Tensor
    has_report: Tensor

    def __len__(self) -> int:
        return int(self.label.shape[0])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        moved = {
            k: getattr(self, k).to(device, non_blocking=non_blocking)
            for k in ("volumes", "present", "label", "report", "has_report")
        }
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, for asynchronous copies to a GPU."""
        pinned = {k: getattr(self, k).pin_memory() for k in ("volumes", "present", "label", "report", "has_report")}
        return replace(self, **pinned)
