"""Asking sites for noisy releases: one request each, tables of the agreed shapes back, their receipts kept."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from configs.federated import StrategyConfig
from configs.schema import Config
from medmap_model import contract
from medmap_model.contract import Request
from medmap_model.releases import COHORT, Table, cohort_tables, score_table
from medmap_model.vocabulary import Vocabulary
from server import checkpoint, exchange
from server.members import Member, Roster

RECEIPTS = "receipts.json"
Tables = dict[str, Any]  # organ -> noisy counts, or organ -> table -> noisy counts


def open_releases(
    grid: Grid,
    config: Config,
    vocabulary: Vocabulary,
    *,
    text_hash: str,
    folder: Path,
    sites: int | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Releases:
    """Have the sites join, and go on from the receipts in a run's folder. Raises FederationError when too few are there."""
    roster = Roster(grid, config.strategy, vocabulary, text_hash=text_hash, expected=sites, tell=tell)
    return Releases(grid, config.strategy, vocabulary, roster.gather(), receipts=read_receipts(folder), tell=tell)


def read_receipts(folder: Path) -> dict[str, dict[str, Any]]:
    """Site -> the newest receipt of its ledger that this run's folder has: of its rounds or of its releases."""
    found: dict[str, dict[str, Any]] = {}
    latest = checkpoint.latest(folder / "checkpoints")
    kept = [folder / RECEIPTS] + ([latest / "state.json"] if latest else [])
    for path in kept:
        if not path.is_file():
            continue
        value = json.loads(path.read_text(encoding="utf-8"))
        for site, receipt in (value.get("receipts", {}) if path.name == "state.json" else value).items():
            if site not in found or receipt["seq"] > found[site]["seq"]:
                found[site] = receipt
    return found


class Releases:
    """One federation's releases. receipts: site -> how far its ledger had come; kept up to date.

    refused: who gave nothing, to which request, and why.
    """

    def __init__(
        self,
        grid: Grid,
        strategy: StrategyConfig,
        vocabulary: Vocabulary,
        members: Sequence[Member],
        *,
        receipts: dict[str, dict[str, Any]],
        tell: Callable[[str], None],
    ) -> None:
        self.grid, self.strategy, self.vocabulary, self.members = grid, strategy, vocabulary, members
        self.receipts, self.tell = receipts, tell
        self.refused: list[dict[str, str]] = []

    def scores(self, vectors: Mapping[str, np.ndarray], request: Request, *, of: str) -> dict[str, Tables]:
        """Site -> organ -> (classes, bins, 2) noisy counts of a model's scores. of: the model's name, for messages."""
        shapes = {o: score_table(self.vocabulary.organs[o], bins=request.bins) for o in request.organs}
        broadcast = exchange.Broadcast(vectors)
        return self._ask("evaluate.scores", request, shapes, broadcast.arrays(vectors), of=of)

    def cohort(self, request: Request) -> dict[str, Tables]:
        """Site -> organ -> table -> noisy counts of its training patients."""
        known = {o: cohort_tables(self.vocabulary.organs[o]) for o in request.organs}
        asked = request.tables or COHORT
        shapes = {o: {t: tables[t] for t in asked} for o, tables in known.items()}
        return self._ask("query.cohort", request, shapes, None, of="the cohort")

    def _ask(
        self, kind: str, request: Request, shapes: Mapping[str, Any], arrays: ArrayRecord | None, *, of: str
    ) -> dict[str, Tables]:
        names = {m.node: m.card.site for m in self.members}
        messages = []
        for node, site in names.items():
            own = replace(request, message=uuid.uuid4().hex, receipt=exchange.position(self.receipts.get(site)))
            content = RecordDict({contract.REQUEST: exchange.record(contract.REQUEST, own)})
            if arrays is not None:
                content[contract.ARRAYS] = arrays
            ttl_s = exchange.ttl_s(self.strategy.round_timeout_s)
            group = f"release-{request.number}"
            messages.append(Message(content, dst_node_id=node, message_type=kind, group_id=group, ttl=ttl_s))
        found: dict[str, Tables] = {}
        waiting = set(names.values())
        for node, reply in exchange.collect(self.grid, messages, timeout_s=self.strategy.round_timeout_s):
            site = names[node]
            waiting.discard(site)
            if (receipt := exchange.receipt(reply)) is not None:
                self.receipts[site] = receipt
            reason = exchange.refusal(reply)
            if reason is None:
                try:
                    found[site] = _tables(reply, shapes)
                    continue
                except (KeyError, TypeError, ValueError):
                    reason = "its release has not the agreed tables"
            self._refuse(site, of, reason)
        for site in sorted(waiting):
            self._refuse(site, of, "no answer in time")
        return {site: found[site] for site in sorted(found)}

    def _refuse(self, site: str, of: str, reason: str) -> None:
        self.refused.append({"site": site, "of": of, "reason": reason})
        self.tell(f"{site} releases nothing of {of}: {reason}")


def _tables(reply: Message, shapes: Mapping[str, Any]) -> Tables:
    given = json.loads(str(reply.content[contract.RELEASE][contract.RELEASE]))
    return {organ: _fitted(given[organ], shape) for organ, shape in shapes.items()}


def _fitted(given: Any, shape: Any) -> Any:
    """Whole numbers of the table's shape; of several tables each. Raises ValueError."""
    if not isinstance(shape, Table):
        return {name: _fitted(given[name], one) for name, one in shape.items()}
    table = np.array(given)
    if table.shape != shape.shape or table.dtype.kind != "i":
        raise ValueError(f"a table of shape {table.shape}, {shape.shape} is expected")
    return table
