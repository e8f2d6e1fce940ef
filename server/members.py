"""Who takes part: sites ask in with a card, and own the module groups that their card shows data for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flwr.serverapp import Grid

from configs.federated import StrategyConfig
from medmap_model import contract
from medmap_model.contract import Card
from medmap_model.groups import owned
from medmap_model.vocabulary import Vocabulary
from server import exchange


class FederationError(RuntimeError):
    """The federation cannot go on; the message says why and what to do."""


@dataclass(frozen=True)
class Member:
    """A site that has joined."""

    node: int
    card: Card


def join(
    grid: Grid,
    strategy: StrategyConfig,
    vocabulary: Vocabulary,
    *,
    text_hash: str,
    expected: int | None,
    tell: Callable[[str], None],
) -> list[Member]:
    """Wait for a quorum of sites, ask each for its card, refuse those that do not fit. In the order of their names.

    expected: how many sites there are to be (None: whoever is there). Raises FederationError.
    """
    wanted = expected or 1
    needed = max(1, math.ceil(strategy.quorum * wanted))
    deadline = time.monotonic() + strategy.join_timeout_s
    while len(nodes := sorted(grid.get_node_ids())) < wanted and time.monotonic() < deadline:
        time.sleep(1.0)
    if len(nodes) < needed:
        raise FederationError(f"{len(nodes)} of {wanted} sites are here, {needed} are needed: start more sites")
    ours = {"version": contract.VERSION, "vocabulary_hash": vocabulary.hash, "text_hash": text_hash}
    members: dict[str, Member] = {}
    queries = [exchange.query(n) for n in nodes]
    for node, reply in exchange.collect(grid, queries, timeout_s=strategy.round_timeout_s):
        name, reason = str(node), exchange.refusal(reply)
        if reason is None:
            try:
                card = exchange.card(reply)
                name = card.site
                reason = _unfit(card, ours) or ("another site has its name" if name in members else None)
            except ValueError as error:
                reason = str(error)
        if reason is None:
            members[name] = Member(node, card)
        else:
            tell(f"site {name} may not join: {reason}")
    if len(members) < needed:
        raise FederationError(f"{len(members)} of {wanted} sites may join, {needed} are needed: see the messages above")
    return [members[name] for name in sorted(members)]


def _unfit(card: Card, ours: dict[str, object]) -> str | None:
    """Why a site may not join, or None."""
    for name, value in ours.items():
        if getattr(card, name) != value:
            return f"its {name.replace('_', ' ')} is {getattr(card, name)}, the federation's is {value}"
    return None


def shares(
    member: Member, vocabulary: Vocabulary, stage: str, *, naive: bool, trunk: Mapping[str, str] | None = None
) -> dict[str, int]:
    """Module groups that a site receives and returns in a stage, with their weight in the average.

    trunk: modality -> its encoder's name (`groups.trunks`). naive: every group to everyone, weighted by all the site's
    volumes; a group it does not own comes back unchanged.
    """
    mine = owned(vocabulary, member.card.volumes, member.card.studies, stage, trunk)
    if not naive or not mine:
        return mine
    one_each = dict.fromkeys(vocabulary.modalities, 1), dict.fromkeys(vocabulary.organs, 1)
    everything = owned(vocabulary, *one_each, stage, trunk)
    return dict.fromkeys(everything, sum(member.card.volumes.values()))
