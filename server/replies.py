"""What came back in one round of training: figures, refusals, receipts and traffic, site by site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from server import exchange
from server.aggregation import UpdateRefused, Vectors, restored
from server.alarms import Watch


class Sums(Protocol):
    """Where an update goes: plain (`Aggregator`), clipped (`ClippedAggregator`), masked (`SecureRound`) or held one by one
    (`RobustAggregator`). current: the global model, group -> (n,) float32."""

    current: Mapping[str, np.ndarray]

    def add(self, update: Mapping[str, np.ndarray], owned: Mapping[str, int]) -> None:
        """Take an update in whole. Raises UpdateRefused and takes nothing."""


@dataclass
class Replies:
    """names: node -> site. dtype: `strategy.update_dtype`. watch: looks at each update; None: nobody does.

    figures: site -> declared figures, in the order of arrival; refused: site -> why; up: module group -> bytes received.
    """

    names: Mapping[int, str]
    dtype: str = "float32"
    watch: Watch | None = None
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    receipts: dict[str, dict[str, Any]] = field(default_factory=dict)
    up: dict[str, int] = field(default_factory=dict)

    def take(self, node: int, reply: Any, owned: Mapping[str, int], sums: Sums) -> str | None:
        """Add a reply's update to the sums; why it was refused, or None. owned: the groups it is to hold, with weights."""
        site, reason = self.names[node], exchange.refusal(reply)
        if reason is None:
            try:
                sent, scales = exchange.update(reply), exchange.scales(reply)
                update = self._whole(sent, scales, owned, sums.current)
                sums.add(update, owned)
            except (UpdateRefused, ValueError) as error:
                reason = str(error)
        if reason is not None:
            self.refused[site] = reason
            return reason
        self.figures[site] = exchange.metrics(reply)
        if (receipt := exchange.receipt(reply)) is not None:
            self.receipts[site] = receipt
        if self.watch is not None:
            self.watch.see(site, update, sums.current, sent=[*sent.values(), *scales.values()])
        for group, vector in [*sent.items(), *scales.items()]:
            self.up[group] = self.up.get(group, 0) + vector.nbytes
        return None

    def _whole(
        self, sent: Vectors, scales: Vectors, owned: Mapping[str, int], current: Mapping[str, np.ndarray]
    ) -> Vectors:
        """The update as group -> vector, out of a compressed one too. Raises UpdateRefused."""
        if self.dtype == "float32":
            return sent
        return restored(sent, scales, owned, current, dtype=np.dtype(self.dtype))
