"""The round loop: both stages, with quorum, bounded waiting, validation, early stop, checkpoints and resume.

Each round: global vectors -> the groups a site owns -> its update -> the next global vectors. A run is a function of the
config and the seed; stopping it anywhere and resuming ends with the same weights.
"""

from __future__ import annotations

import functools
import math
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from configs.schema import Config, OptimConfig
from medmap_model.accounting import planned_releases
from medmap_model.checkpoint import Companions
from medmap_model.contract import STAGES, Task
from medmap_model.groups import trunks
from medmap_model.vocabulary import Vocabulary
from server import checkpoint, exchange, history, site_noise, statistics
from server.aggregation import Vectors
from server.members import FederationError, Member, join, shares
from server.progress import Event, Progress
from server.releases import Releases
from server.replies import Replies
from server.secure import SecureRound, say_what_stays
from server.state import State


class Federation:
    """One condition of a run: sites behind a grid, a global model, and the loop over both stages.

    initial: group -> vector, the starting model. folder: where checkpoints and metrics.jsonl go. companions: what makes its
    checkpoints describe themselves.
    """

    def __init__(
        self,
        grid: Grid,
        config: Config,
        vocabulary: Vocabulary,
        *,
        initial: Vectors,
        layout: checkpoint.Layout,
        text_hash: str,
        folder: Path,
        condition: str = "federated",
        progress: Progress | None = None,
        sites: int | None = None,
        companions: Companions | None = None,
    ) -> None:
        self.grid, self.config, self.vocabulary = grid, config, vocabulary
        self.layout, self.text_hash, self.folder = layout, text_hash, folder
        self.progress: Progress | None = progress
        self.expected, self.companions = sites, companions
        self.trunk = trunks(config.model, vocabulary)
        site_noise.check_settings(config)
        charged = config.privacy.kind != "none" or planned_releases(config.privacy)
        run = uuid.uuid4().hex if charged else ""
        self.vectors, self.state = initial, State(condition, run=run)
        self.history: list[dict[str, Any]] = []
        resumed = checkpoint.latest(folder / "checkpoints")
        if resumed is not None:
            self.vectors, saved = checkpoint.load(resumed, layout)
            if saved.get("condition") != condition:
                raise FederationError(f"{resumed} is of '{saved.get('condition')}', not of '{condition}'")
            self.state = State(**saved)
            self.history = history.reopen(folder / history.FILE, self.state.lines)

    def run(self) -> Vectors:
        """Both stages, from wherever the state stands. Returns the final global model."""
        started = self.state.completed
        if not self.state.finished:
            members = self.join()
            self._statistics(members)
            for stage in STAGES[STAGES.index(self.state.stage) :]:
                self._run_stage(stage, members)
            self.state.finished = True
            self._save()
        self._tell("run_end", text=f"{self.state.completed - started} rounds")
        return self.vectors

    def join(self) -> list[Member]:
        """The sites that take part. Raises FederationError when there are too few."""
        return join(
            self.grid,
            self.config.strategy,
            self.vocabulary,
            text_hash=self.text_hash,
            expected=self.expected,
            tell=self._say,
        )

    def _statistics(self, members: list[Member]) -> None:
        """Before the first round: noisy statistics of the sites' cohorts, if they are asked for (and paid)."""
        epsilon = self.config.privacy.statistics_epsilon
        if not epsilon or self.state.completed or (self.folder / statistics.FILE).is_file():
            return
        self._say(f"asking {len(members)} sites for noisy statistics of their cohorts (epsilon {epsilon:g})")
        releases = Releases(
            self.grid, self.config.strategy, self.vocabulary, members, receipts=self.state.receipts, tell=self._say
        )
        organs = list(self.vocabulary.organs)
        statistics.statistics(
            releases, self.vocabulary, organs=organs, epsilon=epsilon, run=self.state.run, folder=self.folder
        )

    def stages(self) -> dict[str, Any]:
        """Per stage: rounds done and their curves, for `summary.json`."""
        return history.curves(self.history)

    def communication(self) -> dict[str, Any]:
        """Bytes of parameters sent and received so far, in all and per module group."""
        full = sum(v.nbytes for v in self.vectors.values())
        return history.traffic(self.history) | {"bytes_full_model": full}

    def site_privacy(self) -> dict[str, Any] | None:
        """What the models released so far cost each site (`strategy.site_noise_multiplier`); None when no noise is added."""
        return site_noise.spent_by(self.config, self.state.completed)

    def _shares(self, members: list[Member], stage: str) -> dict[int, dict[str, int]]:
        """Node -> the groups it receives and returns, with their weight."""
        naive = self.config.strategy.kind == "naive"
        found = {m.node: shares(m, self.vocabulary, stage, naive=naive, trunk=self.trunk) for m in members}
        return {node: groups for node, groups in found.items() if groups}

    def _run_stage(self, stage: str, members: list[Member]) -> None:
        settings: OptimConfig = getattr(self.config.stage, stage)
        if self.state.stage != stage:
            if self.state.round:
                self.state.pretrained = self._name()
            self.state.stage, self.state.round, self.state.stale = stage, 0, 0
            self.state.best, self.state.best_val_loss = None, None
        self._tell("stage_start", stage=stage)
        strategy = self.config.strategy
        if strategy.secure_aggregation and self.state.round < settings.rounds:
            say_what_stays(self._shares(members, stage), strategy.secure_min, stage, self._say)
        attempts = 0
        while self.state.round < settings.rounds and not self._stopped(settings):
            if self._round(stage, settings, members):
                attempts = 0
                self._save()
                continue
            attempts += 1
            if attempts > strategy.retries:
                raise FederationError(
                    f"{stage} round {self.state.round + 1} has found no quorum {attempts} times; the last round is kept. "
                    f"When the sites are back: resume={self.folder}"
                )
        if settings.rounds:
            self._close(stage, settings, members)

    def _stopped(self, settings: OptimConfig) -> bool:
        return bool(settings.patience) and self.state.stale >= settings.patience

    def _round(self, stage: str, settings: OptimConfig, members: list[Member]) -> bool:
        """One round. Returns whether a quorum returned; if not, the global model stays as it was."""
        begun, number = time.monotonic(), self.state.round
        task = Task(stage, number, settings.rounds, self.config.seed)
        self._tell("round_start", stage=stage)
        broadcast, groups = exchange.Broadcast(self.vectors), self._shares(members, stage)
        names = {m.node: m.card.site for m in members}
        secure = self._secure(groups, names) if self.config.strategy.secure_aggregation else None
        asked, taking = (secure.asked, secure.open()) if secure else (groups, groups)
        plain = site_noise.aggregator(self.vectors, groups, self.config.strategy)
        aggregator = secure or plain
        back = Replies(names)
        tickets = {n: secure.ticket(n) if secure else None for n in taking}
        messages = [
            broadcast.message(m.node, "train", groups[m.node], self._to(task, m), tickets[m.node])
            for m in members
            if m.node in taking
        ]
        for node, reply in self._collect(messages):
            if (reason := back.take(node, reply, taking[node], aggregator)) is not None:
                self._say(f"update refused: {reason}", site=names[node])
            else:
                self._tell("reply", stage=stage, site=names[node], loss=back.figures[names[node]].get("loss"))
        self.state.receipts |= back.receipts
        replies = back.figures
        if len(replies) < max(1, math.ceil(self.config.strategy.quorum * len(asked))):
            return False
        vectors = secure.result([n for n in taking if names[n] in replies]) if secure else plain.result()
        if vectors is None:
            return False
        self._learn_validation(replies)
        self.vectors = vectors
        self.state.round += 1
        self.state.completed += 1
        left_out = set(vectors) - secure.summed if secure else set()
        self.state.note_trained((m.card for m in members if m.card.site in replies), self.trunk, left_out)
        self.state.pending = history.line(
            self.state,
            back,
            asked={names[n] for n in asked},
            rounds=settings.rounds,
            wall_s=round(time.monotonic() - begun, 4),
            bytes_down=sum(vectors[g].nbytes for n in taking for g in groups[n]),
        )
        if (cost := self.site_privacy()) is not None:
            self.state.pending["site_privacy"] = cost
        self._tell("round_end", stage=stage, loss=self.state.pending["loss"], score=self._latest_score(stage))
        return True

    def _secure(self, groups: Mapping[int, Mapping[str, int]], names: Mapping[int, str]) -> SecureRound:
        strategy = self.config.strategy
        wait_s = strategy.secure_timeout_s
        ask = functools.partial(exchange.ask, self.grid, timeout_s=wait_s)
        return SecureRound(self.vectors, groups, names, strategy, ask=ask, tell=self._say)

    def _collect(self, messages: list[Message]) -> Iterator[tuple[int, Message]]:
        wait_s = self.config.strategy.round_timeout_s
        return exchange.collect(self.grid, messages, timeout_s=wait_s)

    def _to(self, task: Task, member: Member) -> Task:
        """The task for one site: with an id of its own and the newest receipt of the site's ledger."""
        receipt = self.state.receipts.get(member.card.site)
        return replace(task, run=self.state.run, message=uuid.uuid4().hex, receipt=receipt)

    def _close(self, stage: str, settings: OptimConfig, members: list[Member]) -> None:
        """Validate the stage's last model; after an early stop go back to the best one."""
        if self.state.pending is not None:
            broadcast = exchange.Broadcast(self.vectors)
            task = Task(stage, self.state.round, settings.rounds, self.config.seed)
            names = {m.node: m.card.site for m in members}
            groups = self._shares(members, stage)
            messages = [broadcast.message(node, "evaluate", mine, task) for node, mine in groups.items()]
            replies = {
                names[node]: exchange.metrics(reply)
                for node, reply in self._collect(messages)
                if exchange.refusal(reply) is None
            }
            self._learn_validation(replies)
        if settings.patience and self.state.best:
            self.vectors, _ = checkpoint.load(self.folder / "checkpoints" / self.state.best, self.layout)
        self._save()
        self._tell("stage_end", stage=stage, score=self._latest_score(stage))

    def _learn_validation(self, replies: Mapping[str, Mapping[str, float]]) -> None:
        """Sites have validated the model that the last round made: complete its line, keep it if it is the best."""
        line, self.state.pending = self.state.pending, None
        if line is None:
            return
        line["val_loss"] = loss = history.mean(replies, "val_loss", "val_studies")
        line["val_score"] = history.mean(replies, "val_score", "val_studies")
        self.history.append(line)
        self.state.lines += 1
        history.append(self.folder / history.FILE, line)
        if loss is None:
            return
        if self.state.best_val_loss is None or loss < self.state.best_val_loss:
            self.state.best_val_loss, self.state.best, self.state.stale = loss, self._name(), 0
        else:
            self.state.stale += 1

    def _latest_score(self, stage: str) -> float | None:
        """The newest validation score of the stage."""
        last = self.history[-1] if self.history else None
        return last["val_score"] if last and last["stage"] == stage else None

    def _name(self) -> str:
        return f"{self.state.stage}-{self.state.round:04d}"

    def _save(self) -> None:
        beside = self.companions.files(self.state.trained) if self.companions else None
        folder = self.folder / "checkpoints"
        checkpoint.save(folder, self._name(), self.vectors, self.layout, asdict(self.state), beside=beside)

    def _say(self, text: str, site: str = "") -> None:
        self._tell("message", text=text, site=site)

    def _tell(self, kind: str, **more: Any) -> None:
        if self.progress is None:
            return
        settings = self.config.stage
        more.setdefault("stage", self.state.stage)
        self.progress(
            Event(
                kind=kind,
                condition=self.state.condition,
                round=self.state.round + (kind in ("round_start", "reply")),
                rounds=getattr(settings, more["stage"]).rounds,
                done=self.state.completed,
                total=settings.pretrain.rounds + settings.finetune.rounds,
                **more,
            )
        )
