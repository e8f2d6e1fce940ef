"""One round: tasks for the sites that are here, the updates that come back in time, and the model that a quorum makes."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from configs.federated import StrategyConfig
from medmap_model.contract import Task
from server import exchange, site_noise
from server.aggregation import Vectors
from server.alarms import Watch, words
from server.live import Live
from server.members import Roster, at_least, quorum
from server.replies import Replies, Sums
from server.robust import RobustAggregator, sites_needed
from server.secure import SecureRound, hidden

Groups = Mapping[int, Mapping[str, int]]  # node -> its module groups, with their weight in the average


class Round:
    """One round of training: `train`, then `result`, after which it is complete or void.

    current: the global model, group -> (n,) float32. roster: who has joined; groups: what each of them owns in this
    stage, who is away too. tell: hears sentences (and of which site). heard: hears of each reply taken, with the site's name
    and its loss.

    missing: sites without an answer in time -> why; absent: sites that are away; behind: module group -> updates that changed it;
    alarms: `Watch.end`; chosen: module group -> the site whose update Krum took.
    """

    def __init__(
        self,
        grid: Grid,
        strategy: StrategyConfig,
        current: Vectors,
        *,
        roster: Roster,
        groups: Groups,
        live: Live,
        watch: Watch | None,
        tell: Callable[..., None],
        heard: Callable[[str, float | None], None],
    ) -> None:
        self.grid, self.strategy, self.current, self.late = grid, strategy, current, roster.late
        self.live, self.tell, self.heard = live, tell, heard
        self.names = {m.node: m.card.site for m in roster.everyone()}
        here = {m.node for m in roster.here()}
        self.owned = groups
        self.groups = hidden(groups, strategy.secure_min)[0] if strategy.secure_aggregation else groups
        self.needed = max(quorum(strategy, len(self.groups)), sites_needed(strategy))
        present = {n: g for n, g in groups.items() if n in here}
        self._secure = self._secure_round(present) if strategy.secure_aggregation else None
        self.asked: Groups = self._secure.asked if self._secure else present
        self.taking: Groups = {}
        self._plain = site_noise.aggregator(current, groups, strategy)
        self.watch, self.back = watch, Replies(self.names, strategy.update_dtype, watch)
        self.missing = {self.names[n]: "still at work on an earlier round" for n in self.groups if n in self.late}
        self.absent = {self.names[n] for n in self.groups if n not in here} - set(self.missing)
        self.behind: dict[str, int] = {}
        self.alarms: list[dict[str, Any]] = []
        self.chosen: dict[str, str] = {}
        self.complete = False

    @property
    def enough(self) -> bool:
        """Whether those who are here can be a quorum."""
        return len(self.asked) >= self.needed

    def train(self, task: Callable[[str], Task]) -> None:
        """Ask, and take updates until all have answered or the time is up. task: a site's, by its name.

        Nobody is asked when those who are here are no quorum: work, and privacy, would be spent in vain.
        """
        if self.watch is not None:
            self.watch.begin()
        if not self.enough:
            return
        taking = self._secure.open() if self._secure else self.asked
        if len(taking) < self.needed:  # fewer gave keys than were asked
            if taking:
                self.tell(
                    f"secure sum: {len(taking)} sites are left, {self.needed} are needed; nobody is asked to train"
                )
            return
        self.taking = taking
        sums, begun, slowest_s = self._secure or self._plain, time.monotonic(), 0.0
        wait_s, factor = self.strategy.round_timeout_s, self.strategy.straggler_factor
        waits = {n: min(wait_s, self.strategy.site_timeout_s.get(self.names[n], wait_s)) for n in self.taking}

        def cut_s() -> float:
            return factor * slowest_s if factor and len(self.back.figures) >= self.needed else wait_s

        messages = self._messages(task, waits)
        for node, reply in exchange.collect(
            self.grid, messages, timeout_s=wait_s, own_s=waits, cut_s=cut_s, late=self.late
        ):
            if exchange.unanswered(reply):
                self.missing[self.names[node]] = "went offline"
            else:
                slowest_s = time.monotonic() - begun
                self._take(node, reply, sums, slowest_s)
        answered = {*self.back.figures, *self.back.refused}
        for site in sorted({self.names[n] for n in self.asked} - answered):
            reason = self.missing.setdefault(site, "no update in time")
            self.tell(reason, site)
            self.live.site(site, "silent", reason)

    def result(self) -> Vectors | None:
        """The next global model; None when no quorum returned: nothing of the round is used then."""
        returned = [n for n in self.taking if self.names[n] in self.back.figures]
        if len(returned) < self.needed:
            return None
        vectors = self._secure.result(returned) if self._secure else self._plain.result()
        if vectors is None:
            return None
        behind = Counter(g for n in returned for g in self.taking[n])
        owners = Counter(g for mine in self.groups.values() for g in mine)
        kept = {g for g, n in behind.items() if n < at_least(self.strategy.group_quorum, owners[g])}
        if kept:
            few = [f"{g} ({behind[g]} of {owners[g]} owners)" for g in sorted(kept)]
            self.tell(f"kept as before, below strategy.group_quorum: {', '.join(few)}")
        unchanged = kept | (set(vectors) - self._secure.summed if self._secure else self._outnumbered(owners))
        self.behind = {g: behind[g] for g in sorted(behind) if g not in unchanged}
        if not self.behind:
            return None
        self.complete = True
        self._note()
        return {g: self.current[g] if g in kept else v for g, v in vectors.items()}

    def _outnumbered(self, owners: Mapping[str, int]) -> set[str]:
        """Module groups that a robust rule has kept; said of those that have enough owners, of the others a stage's start did."""
        if not isinstance(self._plain, RobustAggregator):
            return set()
        if few := sorted(g for g in self._plain.kept if owners[g] >= self._plain.needed):
            self.tell(f"kept as before, fewer than {self._plain.needed} updates for strategy.robust: {', '.join(few)}")
        return self._plain.kept

    def _note(self) -> None:
        """What is said of single sites' updates in a round that counts: alarms, and whom Krum chose."""
        if self.watch is not None:
            self.alarms = self.watch.end()
        for alarm in self.alarms:
            self.tell(words(alarm), alarm["site"])
        if isinstance(self._plain, RobustAggregator):
            arrived = list(self.back.figures)
            self.chosen = {g: arrived[i] for g, i in sorted(self._plain.chosen.items())}

    def unchanged(self) -> set[str]:
        """The module groups of the stage that no update has changed."""
        return {g for mine in self.owned.values() for g in mine} - set(self.behind)

    def bytes_down(self) -> int:
        """Of parameters sent to the sites that were given a task."""
        return sum(self.current[g].nbytes for n in self.taking for g in self.owned[n])

    def shortfall(self) -> str:
        """Why there is no result, site by site."""
        told, verb = (self.back.figures, "returned an update") if self.taking else (self.asked, "can be asked")
        said = {**self.back.refused, **self.missing, **dict.fromkeys(self.absent, "offline")}
        few = f"{len(told)} of {len(self.groups)} sites {verb}, {self.needed} are needed"
        if len(told) >= self.needed:
            few = "no module group could be changed, see the messages above"
        return "; ".join([few, *(f"{site}: {said[site]}" for site in sorted(said))])

    def _messages(self, task: Callable[[str], Task], waits: Mapping[int, float]) -> list[Message]:
        """A `train` message for each site that takes part."""
        broadcast, secure = exchange.Broadcast(self.current), self._secure
        return [
            broadcast.message(
                n, "train", self.owned[n], task(self.names[n]), secure.ticket(n) if secure else None, wait_s=wait_s
            )
            for n, wait_s in waits.items()
        ]

    def _take(self, node: int, reply: Message, sums: Sums, seconds: float) -> None:
        site = self.names[node]
        if (reason := self.back.take(node, reply, self.taking[node], sums)) is not None:
            self.tell(f"update refused: {reason}", site)
            self.live.site(site, "refused", reason)
            return
        self.live.site(site, "returned", seconds=seconds, receipt=self.back.receipts.get(site))
        self.heard(site, self.back.figures[site].get("loss"))

    def _secure_round(self, present: Groups) -> SecureRound:
        ask = functools.partial(exchange.ask, self.grid, timeout_s=self.strategy.secure_timeout_s)
        return SecureRound(self.current, present, self.names, self.strategy, ask=ask, tell=self.tell)


def validate(
    grid: Grid,
    vectors: Mapping[str, np.ndarray],
    *,
    groups: Groups,
    names: Mapping[int, str],
    task: Task,
    wait_s: float,
    late: dict[int, str],
) -> dict[str, dict[str, float]]:
    """What each site that answers in time says of a model: site -> declared figures. late: as in `exchange.collect`."""
    broadcast = exchange.Broadcast(vectors)
    messages = [broadcast.message(node, "evaluate", mine, task, wait_s=wait_s) for node, mine in groups.items()]
    return {
        names[node]: exchange.metrics(reply)
        for node, reply in exchange.collect(grid, messages, timeout_s=wait_s, late=late)
        if exchange.refusal(reply) is None
    }
