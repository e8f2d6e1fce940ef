"""What came back in one round of training: figures, refusals, receipts and traffic, site by site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from server import exchange
from server.aggregation import UpdateRefused


class Sums(Protocol):
    """Where an update goes: plain (`Aggregator`), clipped (`ClippedAggregator`) or masked (`SecureRound`)."""

    def add(self, update: Mapping[str, np.ndarray], owned: Mapping[str, int]) -> None:
        """Take an update in whole. Raises UpdateRefused and takes nothing."""


@dataclass
class Replies:
    """names: node -> site. figures: site -> declared figures; refused: site -> why; up: module group -> bytes received."""

    names: Mapping[int, str]
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    receipts: dict[str, dict[str, Any]] = field(default_factory=dict)
    up: dict[str, int] = field(default_factory=dict)

    def take(self, node: int, reply: Any, owned: Mapping[str, int], sums: Sums) -> str | None:
        """Add a reply's update to the sums; why it was refused, or None. owned: the groups it is to hold, with weights."""
        site, reason = self.names[node], exchange.refusal(reply)
        if reason is None:
            try:
                update = exchange.update(reply)
                sums.add(update, owned)
            except (UpdateRefused, ValueError) as error:
                reason = str(error)
        if reason is not None:
            self.refused[site] = reason
            return reason
        self.figures[site] = exchange.metrics(reply)
        if (receipt := exchange.receipt(reply)) is not None:
            self.receipts[site] = receipt
        for group, vector in update.items():
            self.up[group] = self.up.get(group, 0) + vector.nbytes
        return None
