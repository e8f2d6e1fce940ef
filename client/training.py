"""Local training: one loop for both stages, from a global model to a site's update.

In: model with the global weights, a site's records, the task (stage, round). Out: `Figures` (means over the round).
Every random number comes from (seed, stage, round, site), so that a repeated round gives the same weights, bit for bit on
a CPU. The optimiser starts fresh each round: a site may miss rounds, and no optimiser state travels or stays behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import resource
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from client.adamw import AdamW
from client.records import SiteRecords
from configs.schema import AugmentConfig, Config, EngineConfig
from configs.setting import ConfigError
from configs.stages import OptimConfig
from medmap_model.batch import Batch
from medmap_model.contract import Task
from medmap_model.evaluation import negative_log_likelihood, scores
from medmap_model.groups import group_of
from medmap_model.model import MedMAP
from medmap_model.objectives import Queue


class Diverged(RuntimeError):
    """The loss is not finite."""


@dataclass
class Figures:
    """What a round of local work comes to; the keys of `contract.METRICS`. None: there is none."""

    loss: float | None = None
    val_loss: float | None = None
    val_score: float | None = None
    val_studies: int | None = None
    studies: int | None = None
    steps: int | None = None
    train_s: float | None = None
    eval_s: float | None = None
    peak_memory_mb: float | None = None

    def known(self) -> dict[str, float]:
        """The figures there are."""
        return {k: v for k, v in asdict(self).items() if v is not None}


class Predictions(NamedTuple):
    """N patients: labels (N,), -1 unknown, of a multi-label organ bit sets; probabilities (N, classes); modalities (N,),
    how many of them the model could use."""

    labels: np.ndarray
    probabilities: np.ndarray
    modalities: np.ndarray


def device_of(engine: EngineConfig) -> torch.device:
    """The device that `engine.device` asks for. Raises ConfigError when CUDA is asked for and absent."""
    if engine.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("engine.device=cuda: this machine has no CUDA device; take engine.device=auto or cpu")
    return torch.device("cuda" if engine.device != "cpu" and torch.cuda.is_available() else "cpu")


def seed_of(*parts: object) -> int:
    """A 63-bit seed from any parts, the same on every machine."""
    text = "/".join(str(p) for p in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def learning_rate(settings: OptimConfig, task: Task) -> float:
    """Cosine over rounds from lr down to lr * lr_floor."""
    half = 0.5 * (1 + math.cos(math.pi * task.round / max(1, task.rounds)))
    return settings.lr * (settings.lr_floor + (1 - settings.lr_floor) * half)


class Trainer:
    """Trains and validates one model on one device; holds no state between rounds."""

    def __init__(self, model: MedMAP, config: Config) -> None:
        self.config = config
        self.device = device_of(config.engine)
        self.bf16 = config.engine.precision == "bf16" or (
            config.engine.precision == "auto" and self.device.type == "cuda"
        )
        self.model = model.to(self.device)

    def train(self, records: SiteRecords, task: Task, groups: Collection[str], *, site: str) -> Figures:
        """Train the parameters of these module groups in place for one round. Raises Diverged."""
        settings: OptimConfig = getattr(self.config.stage, task.stage)
        self.use_threads()
        begun, seed = time.monotonic(), seed_of(task.seed, task.stage, task.round, site)
        parameters = [p for name, p in self.model.named_parameters() if group_of(name) in groups]
        anchors = [p.detach().clone() for p in parameters] if self.config.strategy.proximal_mu else []
        optimizer = AdamW(parameters, lr=learning_rate(settings, task), weight_decay=settings.weight_decay)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.model.train()
        # One sum on the device, read once: reading a loss every step would stall a GPU.
        total, steps, studies = torch.zeros((), device=self.device), 0, 0
        queue = self._queue(task.stage)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            for epoch in range(settings.epochs):
                progress = (task.round + epoch / settings.epochs) / max(1, task.rounds)
                for batch in self._batches(records, settings, seed=seed_of(seed, epoch)):
                    total += self._step(batch, task.stage, settings, progress, optimizer, parameters, anchors, queue)
                    steps, studies = steps + 1, studies + len(batch)
        loss = float(total) / max(1, steps)
        if not math.isfinite(loss):
            raise Diverged(f"{task.stage} round {task.round + 1}: the loss is not finite")
        return Figures(
            loss=loss if steps else None,
            studies=studies // settings.epochs,
            steps=steps,
            train_s=time.monotonic() - begun,
            peak_memory_mb=self._peak_memory_mb(),
        )

    def _step(
        self,
        batch: Batch,
        stage: str,
        settings: OptimConfig,
        progress: float,
        optimizer: AdamW,
        parameters: list[torch.nn.Parameter],
        anchors: list[Tensor],
        queue: Queue | None,
    ) -> Tensor:
        """One optimiser step; gradients accumulate over micro-batches. Returns the mean loss, detached."""
        optimizer.zero_grad()
        mean = torch.zeros((), device=self.device)
        for part in _micro_batches(batch, settings.micro_batch):
            part = part.to(self.device, non_blocking=True)
            loss = self.loss(part, stage, progress, queue=queue) * (len(part) / len(batch))
            if loss.requires_grad:  # not so when no patient of the part has a label or a report
                loss.backward()
            mean += loss.detach()
        used = [(p, i) for i, p in enumerate(parameters) if p.grad is not None]
        if not used:
            return mean
        if anchors:  # FedProx (Li et al. 2020, eq. 2): gradient of mu/2 * |w - w_global|^2
            for p, i in used:
                p.grad.add_(p.detach() - anchors[i], alpha=self.config.strategy.proximal_mu)  # type: ignore[union-attr]
        if settings.clip_norm:
            torch.nn.utils.clip_grad_norm_([p for p, _ in used], settings.clip_norm)
        optimizer.step()
        return mean

    def _queue(self, stage: str) -> Queue | None:
        """Past records of the round, if the stage asks for them; empty at its start, gone at its end."""
        size = self.config.stage.pretrain.queue if stage == "pretrain" else 0
        return Queue(size) if size else None

    def loss(self, batch: Batch, stage: str, progress: float, *, queue: Queue | None = None) -> Tensor:
        """The stage's objective on one batch, which joins the queue."""
        with self._autocast():
            if stage == "pretrain":
                return self.model.pretrain_loss(batch, self.config.stage.pretrain, queue=queue)["loss"]
            return self.model.finetune_loss(batch, self.config.stage.finetune, progress=progress)["loss"]

    def validate(self, records: SiteRecords, task: Task, *, split: str = "val") -> Figures:
        """Mean loss (and, in finetune, AUROC) of the model as it is over a site's validation patients.

        In finetune the loss is the negative log-likelihood of the labels, whatever the training objective; of a
        multi-label organ its mean over the labels.
        """
        begun, losses, aurocs, n = time.monotonic(), 0.0, [], 0
        self.use_threads()
        for organ in records.organs(split):
            if task.stage == "finetune":
                multi_label = self.model.vocabulary.organs[organ].multi_label
                labels, probabilities = self.predict(records, split=split, organ=organ)
                known = labels >= 0
                if known.any():
                    losses += float(
                        negative_log_likelihood(labels[known], probabilities[known], multi_label=multi_label).sum()
                    )
                    n += int(known.sum())
                    found = scores(labels, probabilities, metrics=("auroc",), multi_label=multi_label)["auroc"]
                    aurocs += [] if found is None else [float(found)]
            else:
                self.model.eval()
                with torch.no_grad():
                    for batch in records.eval_batches(split=split, organ=organ):
                        if len(batch) > 1:
                            losses += float(self.loss(batch.to(self.device), task.stage, 0.0)) * len(batch)
                            n += len(batch)
        return Figures(
            val_loss=losses / n if n else None,
            val_score=float(np.mean(aurocs)) if aurocs else None,
            val_studies=n or None,
            eval_s=time.monotonic() - begun,
        )

    def predict(
        self, records: SiteRecords, *, split: str, organ: str, known: Collection[str] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(N,) labels and (N, classes) probabilities of `predictions`."""
        found = self.predictions(records, split=split, organ=organ, known=known)
        return found.labels, found.probabilities

    def predictions(
        self, records: SiteRecords, *, split: str, organ: str, known: Collection[str] | None = None
    ) -> Predictions:
        """What the model says of every patient of a split, in the order of `records.studies`.

        known: modalities that the model was trained on (None: all); others are hidden from it, since an encoder at its
        initial weights only adds noise. A study with none left gets equal probabilities.
        """
        self.model.eval()
        spec = self.model.vocabulary.organs[organ]
        keep = torch.tensor([known is None or m in known for m in spec.modalities])
        parts = []
        with torch.no_grad(), self._autocast():
            for batch in records.eval_batches(split=split, organ=organ):
                seen = replace(batch, present=batch.present & keep)
                p = self.model.probabilities(self.model.logits(seen.to(self.device)).float(), organ).cpu()
                p[~seen.present.any(1)] = 0.5 if spec.multi_label else 1 / p.shape[1]
                parts.append(Predictions(batch.label.cpu().numpy(), p.numpy(), seen.present.sum(1).cpu().numpy()))
        if not parts:
            empty = np.zeros((0, len(spec.abnormalities)), np.float32)
            return Predictions(np.zeros(0, np.int64), empty, np.zeros(0, np.int64))
        return Predictions(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def use_threads(self) -> None:
        """The process's thread count is anyone's to set; sums depend on it, so it is set before every piece of work."""
        torch.set_num_threads(self.config.engine.threads)

    def _batches(self, records: SiteRecords, settings: OptimConfig, *, seed: int) -> Iterator[Batch]:
        augment: AugmentConfig = self.config.data.augment
        batches = records.train_batches(batch_size=settings.batch_size, seed=seed, augment=augment)
        return _prefetched(batches) if self.device.type == "cuda" else batches

    def _autocast(self) -> contextlib.AbstractContextManager[None]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.bf16 else contextlib.nullcontext()

    def _peak_memory_mb(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _micro_batches(batch: Batch, size: int) -> Iterator[Batch]:
    """Parts of at most `size` records, none of them single; in-batch positives and negatives are those of the part."""
    n = len(batch)
    if not size or n <= size:
        yield batch
        return
    parts = min(math.ceil(n / size), n // 2)
    for index in np.array_split(np.arange(n), parts):
        yield batch.rows(slice(int(index[0]), int(index[-1]) + 1))


def _prefetched(batches: Iterator[Batch], depth: int = 2) -> Iterator[Batch]:
    """Batches prepared and pinned by a thread of their own, so that a GPU waits for neither disk nor copy."""
    import queue
    import threading

    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: Batch | BaseException | None) -> bool:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return True
        return False

    def work() -> None:
        try:
            for batch in batches:
                if not put(batch.pin_memory()):
                    return
            put(None)
        except BaseException as error:
            put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
