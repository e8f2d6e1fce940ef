"""Who takes part: sites show a card, own the module groups that it has data for, and may come late, leave and come back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from configs.federated import StrategyConfig
from medmap_model import contract
from medmap_model.contract import Card
from medmap_model.groups import owned
from medmap_model.vocabulary import Vocabulary
from server import exchange

_LOOK_S = 1.0  # between two looks for sites
_ASK_AGAIN_S = 60.0  # a node that was refused may show its card again after this long


class FederationError(RuntimeError):
    """The federation cannot go on; the message says why and what to do."""


@dataclass(frozen=True)
class Member:
    """A site that has joined."""

    node: int
    card: Card


class Roster:
    """The sites of a federation, kept up to date from round to round.

    expected: how many sites there are to be (None: whoever is there). tell: hears of every change, in a sentence. note:
    hears a site, its state (of `live.STATES`) and a reason.

    members: site -> Member, of everyone who has joined, away or not. late: node -> the message that it is still at work on
    though its round is over; it is asked for nothing until it has answered, or Flower has dropped the message.
    """

    def __init__(
        self,
        grid: Grid,
        strategy: StrategyConfig,
        vocabulary: Vocabulary,
        *,
        text_hash: str,
        expected: int | None,
        tell: Callable[[str], None],
        note: Callable[[str, str, str], None] = lambda site, state, reason: None,
    ) -> None:
        self.grid, self.strategy, self.tell, self.note = grid, strategy, tell, note
        self.expected = expected or 1
        self.members: dict[str, Member] = {}
        self.late: dict[int, str] = {}
        self._absent: set[str] = set()
        self._cards: dict[int, str] = {}  # node -> the query that it has yet to answer
        self._refused: dict[int, float] = {}  # node -> when it may be asked again
        self._ours = {"version": contract.VERSION, "vocabulary_hash": vocabulary.hash, "text_hash": text_hash}

    def everyone(self) -> list[Member]:
        """All who have joined, in the order of their names; those who are away as well."""
        return [self.members[name] for name in sorted(self.members)]

    def here(self) -> list[Member]:
        """Those who can be asked now."""
        return [m for m in self.everyone() if m.card.site not in self._absent and m.node not in self.late]

    def gather(self) -> list[Member]:
        """Wait for all sites, at most `strategy.join_timeout_s`, and for their cards, as long again once a quorum has joined.
        Raises FederationError when they, or those that fit, are no quorum.
        """
        needed = quorum(self.strategy, self.expected)
        deadline = time.monotonic() + self.strategy.join_timeout_s
        while len(nodes := set(self.grid.get_node_ids())) < self.expected and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        if len(nodes) < needed:
            raise FederationError(
                f"{len(nodes)} of {self.expected} sites are here, {needed} are needed: start more sites"
            )
        rest_s = max(self.strategy.join_timeout_s, self.strategy.card_timeout_s)
        whole_s = self.strategy.round_timeout_s
        self._ask(nodes, nodes, cut_s=lambda: rest_s if len(self.members) >= needed else whole_s)
        if len(self.members) < needed:
            raise FederationError(
                f"{len(self.members)} of {self.expected} sites may join, {needed} are needed: see the messages above"
            )
        if len(self.members) < self.expected:
            self.tell(f"begins with {len(self.members)} of {self.expected} sites; the others may join later")
        if unknown := sorted(set(self.strategy.site_timeout_s) - set(self.members)):
            self.tell(f"strategy.site_timeout_s names sites that are not here: {', '.join(unknown)}")
        return self.here()

    def refresh(self) -> None:
        """Before a round: who has left, who is new or back (they show their card), who has done with an earlier round."""
        online = set(self.grid.get_node_ids())
        for name, member in self.members.items():
            if member.node not in online and name not in self._absent:
                self._absent.add(name)
                self.tell(f"{name} is offline; the federation goes on without it until it is back")
            if name in self._absent:
                self.note(name, "absent", "offline")
        self._hear_late(online)
        known = {m.node for name, m in self.members.items() if name not in self._absent}
        now = time.monotonic()
        new = {n for n in online - known - set(self._cards) if self._refused.get(n, now) <= now}
        if new:
            self._ask(new, online, cut_s=lambda: self.strategy.card_timeout_s, say=True)

    def wait(self, needed: int, counts: Callable[[Member], bool]) -> None:
        """Look for sites until so many that count are here, at most `strategy.join_timeout_s`."""
        deadline = time.monotonic() + self.strategy.join_timeout_s
        self.refresh()
        while sum(map(counts, self.here())) < needed and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
            self.refresh()

    def _ask(
        self, nodes: Collection[int], online: Collection[int], *, cut_s: Callable[[], float], say: bool = False
    ) -> None:
        """Ask nodes for their cards. One that answers later, having volumes to prepare first, is heard before a later round."""
        wait_s = self.strategy.round_timeout_s
        queries = [exchange.query(n, wait_s=wait_s) for n in sorted(nodes)]
        for node, reply in exchange.collect(self.grid, queries, timeout_s=wait_s, cut_s=cut_s, late=self._cards):
            self._answer(node, reply, online, say=say)

    def _answer(self, node: int, reply: Message, online: Collection[int], *, say: bool) -> None:
        """A node's answer to the query: who fits takes its place, who does not is named with the reason."""
        if exchange.unanswered(reply):
            return  # it is asked again before the next round
        found, reason = self._read(node, reply, online)
        if reason is None and found:
            self._take(found, say=say)
            return
        name = found.card.site if found else str(node)
        self._refused[node] = time.monotonic() + _ASK_AGAIN_S
        self.tell(f"site {name} may not join: {reason}")
        if name not in self.members:
            self.note(name, "refused", str(reason))

    def _read(self, node: int, reply: Message, online: Collection[int]) -> tuple[Member | None, str | None]:
        """Who answers, if the answer is a card; and why it may not join, if it may not."""
        if (reason := exchange.refusal(reply)) is not None:
            return None, reason
        try:
            found = Member(node, exchange.card(reply))
        except ValueError as error:
            return None, str(error)
        for name, value in self._ours.items():
            if (other := getattr(found.card, name)) != value:
                return found, f"its {name.replace('_', ' ')} is {other}, the federation's is {value}"
        holder = self.members.get(found.card.site)
        if holder is not None and holder.node != node and holder.node in online:
            return found, "another site has its name"
        return found, None

    def _take(self, found: Member, *, say: bool) -> None:
        """Give a site its place. A node that shows another name than before is no longer the old one."""
        name = found.card.site
        for other in [n for n, m in self.members.items() if m.node == found.node and n != name]:
            del self.members[other]
            self._absent.discard(other)
        if say:
            self.tell(f"{name} is back" if name in self.members else f"{name} has joined")
        self.members[name] = found
        self._absent.discard(name)
        self._refused.pop(found.node, None)
        self.note(name, "joined", "")

    def _hear_late(self, online: Collection[int]) -> None:
        """Answers that came after their time: cards still count, updates are dropped and their sites are free again."""
        waiting = {key: node for node, key in [*self.late.items(), *self._cards.items()]}
        if not waiting:
            return
        names = {m.node: name for name, m in self.members.items()}
        for reply in list(self.grid.pull_messages(list(waiting))):
            node = waiting.get(reply.metadata.reply_to_message_id, 0)
            if self._cards.get(node) == reply.metadata.reply_to_message_id:
                del self._cards[node]
                self._answer(node, reply, online, say=True)
            elif self.late.pop(node, None) and not exchange.unanswered(reply):
                self.tell(f"{names.get(node, node)} has answered an earlier round, too late; the answer is dropped")


def quorum(strategy: StrategyConfig, sites: int) -> int:
    """How many of so many sites must return an update."""
    return max(1, at_least(strategy.quorum, sites))


def at_least(share: float, of: int) -> int:
    """The fewest that are the share of so many; 0.28 of 25 are 7, though their product as a float is more."""
    return math.ceil(round(share * of, 9))


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
