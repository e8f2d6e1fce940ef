"""The round loop: both stages, with quorum, bounded waiting, validation, early stop, checkpoints and resume.

Each round: global vectors -> the groups a site owns -> its update -> the next global vectors. A run is a function of the
config and the seed; stopping it anywhere and resuming ends with the same weights.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from configs.schema import Config
from configs.stages import OptimConfig
from medmap_model.checkpoint import Companions
from medmap_model.contract import STAGES, Task
from medmap_model.groups import trunks
from medmap_model.vocabulary import Vocabulary
from server import checkpoint, exchange, history, robust, secure, site_noise
from server.aggregation import Vectors
from server.alarms import watch
from server.live import Live
from server.members import FederationError, Member, Roster, shares
from server.progress import Event, Progress
from server.releases import Releases
from server.round import Round, validate
from server.state import State
from server.statistics import before_training


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
        self.layout, self.folder = layout, folder
        self.progress: Progress | None = progress
        self.companions = companions
        self.trunk = trunks(config.model, vocabulary)
        site_noise.check_settings(config)
        self.vectors, self.state = initial, State(condition, run=uuid.uuid4().hex)
        self.history: list[dict[str, Any]] = []
        hold_s = 0.25 if getattr(grid, "immediate", False) else 0.0
        self.live, self.watch = Live(folder, hold_s=hold_s), watch(config.strategy)
        self.roster = Roster(
            grid, config.strategy, vocabulary, text_hash=text_hash, expected=sites, tell=self._say, note=self.live.site
        )
        resumed = checkpoint.latest(folder / "checkpoints")
        if resumed is not None:
            self.vectors, saved = checkpoint.load(resumed, layout)
            self.state = State.read(saved, where=resumed, condition=condition)
            self.history = history.reopen(folder / history.FILE, self.state.lines)

    def run(self) -> Vectors:
        """Both stages, from wherever the state stands. Returns the final global model. `live.FILE` says how far it is."""
        try:
            return self._run()
        except BaseException as error:
            self.live.fail(error)
            raise

    def _run(self) -> Vectors:
        started = self.state.completed
        if not self.state.finished:
            self._statistics(self.join())
            if self.watch is None and self.config.strategy.alarm_ratio:
                self._say("no alarms about updates (strategy.alarm_ratio): secure aggregation hides each site's own")
            for stage in STAGES[STAGES.index(self.state.stage) :]:
                self._run_stage(stage)
            self.state.finished = True
            self._save()
        for sentence in history.who_took_part(self.history, self.state.condition):
            self._say(sentence)
        self._tell("run_end", text=f"{self.state.completed - started} rounds")
        self.live.enter("finished")
        return self.vectors

    def join(self) -> list[Member]:
        """The sites that take part from the start. Raises FederationError when there are too few."""
        self.live.enter("joining")
        members = self.roster.gather()
        if gone := sorted(set(self.state.trained["sites"]) - set(self.roster.members)):
            self._say(f"goes on without {', '.join(gone)}, which took part before; a site may still join")
        return members

    def _statistics(self, members: list[Member]) -> None:
        """Before the first round: noisy statistics of cohorts and of images, if they are asked for (and paid)."""
        if not self.state.completed:
            releases = Releases(
                self.grid, self.config.strategy, self.vocabulary, members, receipts=self.state.receipts, tell=self._say
            )
            before_training(
                releases, self.config.privacy, self.vocabulary, run=self.state.run, folder=self.folder, tell=self._say
            )

    def stages(self) -> dict[str, Any]:
        """Per stage: rounds done and their curves, for `summary.json`."""
        return history.curves(self.history)

    def participation(self) -> list[dict[str, Any]]:
        """Round by round who returned an update and who did not, for `summary.json`."""
        return history.participation(self.history)

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

    def _run_stage(self, stage: str) -> None:
        settings: OptimConfig = getattr(self.config.stage, stage)
        if self.state.stage != stage:
            if self.state.round:
                self.state.pretrained = self._name()
            self.state.stage, self.state.round, self.state.stale = stage, 0, 0
            self.state.best, self.state.best_val_loss = None, None
        self._tell("stage_start", stage=stage)
        strategy = self.config.strategy
        if self.state.round < settings.rounds:
            groups = self._shares(self.roster.everyone(), stage)
            if strategy.secure_aggregation:
                secure.say_what_stays(groups, strategy.secure_min, stage, self._say)
            elif strategy.robust != "none":
                robust.say_what_stays(groups, strategy, stage, self._say)
        attempts = 0
        while self.state.round < settings.rounds and not self._stopped(settings):
            now = self._round(stage, settings)
            if now.complete:
                attempts = 0
                self._save()
                continue
            attempts += 1
            if attempts > strategy.retries:
                raise FederationError(
                    f"{stage} round {self.state.round + 1} has found no quorum {attempts} times ({now.shortfall()}); the last "
                    f"round is kept. When the sites are back: resume={self.folder}"
                )
            why = f"void round: {now.shortfall()}; it is tried again, {strategy.retries - attempts + 1} times at most"
            self._say(why)
            self.live.void(why)
            self.roster.wait(now.needed, lambda member: bool(self._shares([member], stage)))
        if settings.rounds:
            self._close(stage, settings)

    def _stopped(self, settings: OptimConfig) -> bool:
        return bool(settings.patience) and self.state.stale >= settings.patience

    def _round(self, stage: str, settings: OptimConfig) -> Round:
        """One round. Without a quorum the global model stays as it was."""
        begun = time.monotonic()
        self.roster.refresh()
        task = Task(stage, self.state.round, settings.rounds, self.config.seed, run=self.state.run)
        now = Round(
            self.grid,
            self.config.strategy,
            self.vectors,
            roster=self.roster,
            groups=self._shares(self.roster.everyone(), stage),
            live=self.live,
            watch=self.watch,
            tell=self._say,
            heard=lambda site, loss: self._tell("reply", stage=stage, site=site, loss=loss),
        )
        if now.enough:
            self.live.asked(now.names[n] for n in now.asked)
        self._tell("round_start", stage=stage)
        now.train(lambda site: self._to(task, site))
        self.state.receipts |= now.back.receipts
        if (vectors := now.result()) is None:
            return now
        self._learn_validation(now.back.figures)
        self.vectors = vectors
        self.state.round += 1
        self.state.completed += 1
        cards = [self.roster.members[site].card for site in now.back.figures]
        self.state.note_trained(cards, self.trunk, now.unchanged())
        wall_s = round(time.monotonic() - begun, 4)
        self.state.pending = history.line(self.state, now, rounds=settings.rounds, wall_s=wall_s)
        if (cost := self.site_privacy()) is not None:
            self.state.pending["site_privacy"] = cost
        self._tell(
            "round_end",
            stage=stage,
            loss=self.state.pending["loss"],
            score=self._latest_score(stage),
            text=history.who_was_missing(self.state.pending),
        )
        return now

    def _to(self, task: Task, site: str) -> Task:
        """The task for one site: with an id of its own and the newest receipt of the site's ledger."""
        return replace(task, message=uuid.uuid4().hex, receipt=exchange.position(self.state.receipts.get(site)))

    def _close(self, stage: str, settings: OptimConfig) -> None:
        """Validate the stage's last model; after an early stop go back to the best one."""
        if self.state.pending is not None:
            self.live.enter("validating")
            task = Task(stage, self.state.round, settings.rounds, self.config.seed)
            members = self.roster.here()
            replies = validate(
                self.grid,
                self.vectors,
                groups=self._shares(members, stage),
                names={m.node: m.card.site for m in members},
                task=task,
                wait_s=self.config.strategy.round_timeout_s,
                late=self.roster.late,
            )
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
        folder, durable = self.folder / "checkpoints", not getattr(self.grid, "immediate", False)
        checkpoint.save(
            folder, self._name(), self.vectors, self.layout, asdict(self.state), beside=beside, durable=durable
        )

    def _say(self, text: str, site: str = "") -> None:
        if self.progress is not None:
            self.progress(Event("message", self.state.condition, text=text, site=site))

    def _tell(self, kind: str, **more: Any) -> None:
        settings = self.config.stage
        more.setdefault("stage", self.state.stage)
        event = Event(
            kind=kind,
            condition=self.state.condition,
            round=self.state.round + (kind in ("round_start", "reply")),
            rounds=getattr(settings, more["stage"]).rounds,
            done=self.state.completed,
            total=settings.pretrain.rounds + settings.finetune.rounds,
            **more,
        )
        self.live.take(event)
        if self.progress is not None:
            self.progress(event)
