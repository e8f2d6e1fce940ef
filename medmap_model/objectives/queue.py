"""Past records of a round as further candidates, per organ: what small batches of 3D volumes lack.

MoCo's queue (He et al. 2020, arXiv 1911.05722) without its second encoder: frozen report embeddings do not age, as they
are projected anew each time; past images do, by a few steps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from medmap_model.batch import Batch
from medmap_model.objectives.positives import Said


class Records(NamedTuple):
    """Q past records of an organ, the oldest first, without gradient.

    report (Q, E), frozen embedding; label (Q,); has_report (Q,) bool; image (Q, S, D) unit norm; valid (Q, S) bool.
    """

    report: Tensor
    label: Tensor
    has_report: Tensor
    image: Tensor
    valid: Tensor

    @property
    def said(self) -> Said:
        """What is known of the records."""
        return Said(self.label, self.report, self.has_report)


class Queue:
    """The last `size` records of each organ, first in, first out.

    Made anew for each round and each site: patients of one site are not kept for longer, and a round repeated gives the
    same weights. Not for training under privacy: it ties patients together. Raises ValueError for a size below 1.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"queue={size}: a queue holds one record or more; without one, pass None")
        self.size = size
        self._organs: dict[str, Records] = {}

    def records(self, organ: str) -> Records | None:
        """The organ's past records; None while there are none."""
        return self._organs.get(organ)

    def push(self, batch: Batch, image: Tensor, valid: Tensor) -> None:
        """Add a batch's records, with their images (B, S, D) as they were embedded."""
        new = Records(*(t.detach() for t in (batch.report, batch.label, batch.has_report, image, valid)))
        old = self._organs.get(batch.organ)
        both = new if old is None else Records(*(torch.cat(pair) for pair in zip(old, new, strict=True)))
        # A copy: a slice would keep the whole of the longer tensor alive.
        self._organs[batch.organ] = Records(*(t[-self.size :].clone() for t in both))
