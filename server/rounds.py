"""The round loop: both stages, with quorum, bounded waiting, validation, early stop, checkpoints and resume.

Each round: global vectors -> the groups a site owns -> its update -> the next global vectors. A run is a function of the
config and the seed; stopping it anywhere and resuming ends with the same weights.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.serverapp import Grid

from configs.schema import Config, OptimConfig
from medmap_model.checkpoint import Companions
from medmap_model.contract import STAGES, Card, Task
from medmap_model.groups import trunks
from medmap_model.vocabulary import Vocabulary
from server import checkpoint, exchange
from server.aggregation import Aggregator, UpdateRefused, Vectors
from server.members import FederationError, Member, join, shares
from server.progress import Event, Progress


@dataclass
class State:
    """All that a round depends on besides the weights, and what has been seen so far. JSON-safe.

    completed: rounds done over both stages; best: checkpoint with the lowest validation loss of the present stage;
    stale: rounds since; pretrained: checkpoint that stage 1 ended with; lines: rounds in metrics.jsonl; pending: the latest
    round's line, until the sites have validated the model that it made (which rides on the next round's replies); trained:
    the sites that have returned an update, and the modalities and organs that they have patients of; run: an id for the
    sites' ledgers (private runs alone); receipts: site -> how far its ledger had come.
    """

    condition: str
    stage: str = STAGES[0]
    round: int = 0
    completed: int = 0
    best: str | None = None
    best_val_loss: float | None = None
    stale: int = 0
    finished: bool = False
    lines: int = 0
    pending: dict[str, Any] | None = None
    pretrained: str | None = None
    trained: dict[str, list[str]] = field(default_factory=lambda: {"sites": [], "modalities": [], "organs": []})
    run: str = ""
    receipts: dict[str, dict[str, Any]] = field(default_factory=dict)


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
        run = "" if config.privacy.kind == "none" else uuid.uuid4().hex
        self.vectors, self.state = initial, State(condition, run=run)
        self.history: list[dict[str, Any]] = []
        resumed = checkpoint.latest(folder / "checkpoints")
        if resumed is not None:
            self.vectors, saved = checkpoint.load(resumed, layout)
            if saved.get("condition") != condition:
                raise FederationError(f"{resumed} is of '{saved.get('condition')}', not of '{condition}'")
            self.state = State(**saved)
            self.history = self._read_history()

    def run(self) -> Vectors:
        """Both stages, from wherever the state stands. Returns the final global model."""
        started = self.state.completed
        if not self.state.finished:
            members = self.join()
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
            tell=lambda text: self._tell("message", text=text),
        )

    def stages(self) -> dict[str, Any]:
        """Per stage: rounds done and their curves, for `summary.json`."""
        curves = {}
        for stage in STAGES:
            lines = [line for line in self.history if line["stage"] == stage]
            curves[stage] = {"rounds": len(lines)} | {
                k: [x[k] for x in lines] for k in ("loss", "val_loss", "val_score")
            }
        return curves

    def communication(self) -> dict[str, Any]:
        """Bytes of parameters sent and received so far, in all and per module group."""
        per_group: dict[str, int] = {}
        for line in self.history:
            for group, n in line["bytes_up_per_group"].items():
                per_group[group] = per_group.get(group, 0) + n
        return {
            "bytes_down": sum(line["bytes_down"] for line in self.history),
            "bytes_up": sum(line["bytes_up"] for line in self.history),
            "bytes_full_model": sum(v.nbytes for v in self.vectors.values()),
            "per_group": per_group,
        }

    def _shares(self, members: list[Member], stage: str) -> dict[int, dict[str, int]]:
        """Node -> the groups it receives and returns, with their weight."""
        naive = self.config.strategy.kind == "naive"
        trunk = trunks(self.config.model, self.vocabulary)
        return {m.node: shares(m, self.vocabulary, stage, naive=naive, trunk=trunk) for m in members}

    def _run_stage(self, stage: str, members: list[Member]) -> None:
        settings: OptimConfig = getattr(self.config.stage, stage)
        if self.state.stage != stage:
            if self.state.round:
                self.state.pretrained = self._name()
            self.state.stage, self.state.round, self.state.stale = stage, 0, 0
            self.state.best, self.state.best_val_loss = None, None
        self._tell("stage_start", stage=stage)
        attempts = 0
        while self.state.round < settings.rounds and not self._stopped(settings):
            if self._round(stage, settings, members):
                attempts = 0
                self._save()
                continue
            attempts += 1
            if attempts > self.config.strategy.retries:
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
        broadcast, aggregator = exchange.Broadcast(self.vectors), Aggregator(self.vectors)
        groups = self._shares(members, stage)
        names = {m.node: m.card.site for m in members}
        replies: dict[str, dict[str, float]] = {}
        refused: list[dict[str, str]] = []
        up: dict[str, int] = {}
        messages = [
            broadcast.message(m.node, "train", groups[m.node], self._to(task, m)) for m in members if groups[m.node]
        ]
        for node, reply in exchange.collect(
            self.grid, messages, timeout_s=self.config.strategy.round_timeout_s, poll_s=self._poll_s
        ):
            reason = exchange.refusal(reply)
            if reason is None:
                try:
                    update = exchange.update(reply)
                    aggregator.add(update, groups[node])
                except (UpdateRefused, ValueError) as error:
                    reason = str(error)
            if reason is not None:
                refused.append({"site": names[node], "reason": reason})
                self._tell("message", stage=stage, site=names[node], text=f"update refused: {reason}")
                continue
            replies[names[node]] = exchange.metrics(reply)
            if (receipt := exchange.receipt(reply)) is not None:
                self.state.receipts[names[node]] = receipt
            for group, vector in update.items():
                up[group] = up.get(group, 0) + vector.nbytes
            self._tell("reply", stage=stage, site=names[node], loss=replies[names[node]].get("loss"))
        if len(replies) < max(1, math.ceil(self.config.strategy.quorum * len(messages))):
            return False
        self._learn_validation(replies)
        self.vectors = aggregator.result()
        self.state.round += 1
        self.state.completed += 1
        self._note_trained(m.card for m in members if m.card.site in replies)
        self.state.pending = {
            "condition": self.state.condition,
            "stage": stage,
            "round": self.state.round,
            "rounds": settings.rounds,
            "loss": _mean(replies, "loss", "studies"),
            "val_loss": None,  # known when the sites have seen this round's model
            "val_score": None,
            "wall_s": round(time.monotonic() - begun, 4),
            "bytes_down": sum(self.vectors[g].nbytes for gs in groups.values() for g in gs),
            "bytes_up": sum(up.values()),
            "bytes_up_per_group": dict(sorted(up.items())),
            "sites": {s: dict(sorted(replies[s].items())) for s in sorted(replies)},
            "returned": sorted(replies),
            "missing": sorted({names[n] for n, g in groups.items() if g} - set(replies) - {r["site"] for r in refused}),
            "refused": sorted(refused, key=lambda r: r["site"]),
        }
        self._tell("round_end", stage=stage, loss=self.state.pending["loss"], score=self._latest_score(stage))
        return True

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
            messages = [broadcast.message(m.node, "evaluate", groups[m.node], task) for m in members if groups[m.node]]
            replies = {
                names[node]: exchange.metrics(reply)
                for node, reply in exchange.collect(
                    self.grid, messages, timeout_s=self.config.strategy.round_timeout_s, poll_s=self._poll_s
                )
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
        line["val_loss"] = loss = _mean(replies, "val_loss", "val_studies")
        line["val_score"] = _mean(replies, "val_score", "val_studies")
        self.history.append(line)
        self.state.lines += 1
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as f:
            f.write(json.dumps(line, allow_nan=False) + "\n")
        if loss is None:
            return
        if self.state.best_val_loss is None or loss < self.state.best_val_loss:
            self.state.best_val_loss, self.state.best, self.state.stale = loss, self._name(), 0
        else:
            self.state.stale += 1

    def _read_history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl that the checkpoint stands on; those of a round that was cut off are dropped."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines()[: self.state.lines] if self.state.lines else []
        temporary = path.with_name(".metrics.jsonl.tmp")
        temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        temporary.replace(path)
        return [json.loads(line) for line in lines]

    def _latest_score(self, stage: str) -> float | None:
        """The newest validation score of the stage."""
        last = self.history[-1] if self.history else None
        return last["val_score"] if last and last["stage"] == stage else None

    def _name(self) -> str:
        return f"{self.state.stage}-{self.state.round:04d}"

    def _note_trained(self, cards: Iterable[Card]) -> None:
        """A modality counts as trained when a site that has volumes of it has returned an update."""
        for card in cards:
            found = {"sites": {card.site: 1}, "modalities": card.volumes, "organs": card.studies}
            for kind, counts in found.items():
                self.state.trained[kind] = sorted({*self.state.trained[kind], *(k for k, n in counts.items() if n)})

    def _save(self) -> None:
        beside = self.companions.files(self.state.trained) if self.companions else None
        folder = self.folder / "checkpoints"
        checkpoint.save(folder, self._name(), self.vectors, self.layout, asdict(self.state), beside=beside)

    @property
    def _poll_s(self) -> float:
        return 0.0 if getattr(self.grid, "immediate", False) else 0.5

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


def _mean(replies: Mapping[str, Mapping[str, float]], key: str, weight: str) -> float | None:
    """Mean over the sites that sent the figure, weighted; summed in site order, so that arrival does not matter."""
    rows = [(r[key], r.get(weight, 1.0)) for _, r in sorted(replies.items()) if key in r]
    total = sum(w for _, w in rows)
    return float(np.dot([v for v, _ in rows], [w for _, w in rows]) / total) if total > 0 else None
