"""A round of private local training: charge the ledger, draw patients, clip, add noise, step; in place of `client.training`.

In: model with the global weights, a site's records, the task. Out: nothing but the weights: no loss, no count, no time.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from client.privacy.gradients import PatientGradients
from client.privacy.optimizer import PatientDPOptimizer
from client.privacy.randomness import SecretRandom
from client.records import SiteRecords
from client.training import Trainer, learning_rate
from configs.schema import Config, OptimConfig, PrivacyConfig
from medmap_model.accounting import Cost
from medmap_model.batch import Batch
from medmap_model.contract import Task
from medmap_model.groups import group_of
from medmap_model.model import MedMAP

_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm3d)


def cost_of_round(privacy: PrivacyConfig) -> Cost:
    """What one round of training is charged."""
    return Cost(privacy.steps, privacy.noise_multiplier, privacy.sample_rate)


def trained_parameters(model: nn.Module, groups: Collection[str], trainable: str) -> list[str]:
    """Names of the parameters that train under privacy: of the site's groups, those that `privacy.trainable` says.

    Fewer parameters, less noise: its norm grows with the square root of their number, the clipped signal's does not.
    """
    mine = [name for name, _ in model.named_parameters() if group_of(name) in groups]
    if trainable == "all":
        return mine
    if trainable == "projections_heads":
        return [n for n in mine if not n.startswith("encoders.")]
    norms = {
        f"{m}.{p}"
        for m, layer in model.named_modules()
        if isinstance(layer, _NORMS)
        for p, _ in layer.named_parameters()
    }
    return [n for n in mine if n in norms or n.startswith("heads.")]


class PrivateTrainer:
    """Trains one model privately; holds no state between rounds. The ledger is charged by the caller, before."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.model = trainer, trainer.model
        self.config: Config = trainer.config

    def train(self, records: SiteRecords, task: Task, groups: Collection[str]) -> None:
        """`privacy.steps` noisy steps on the parameters of these groups, in place."""
        privacy = self.config.privacy
        self.trainer.use_threads()
        secret = SecretRandom(chacha=privacy.secure_noise)
        names = trained_parameters(self.model, groups, privacy.trainable)
        named = {n: p for n, p in self.model.named_parameters() if n in set(names)}
        patients = records.patients("train")
        optimizer = PatientDPOptimizer(
            torch.optim.SGD(named.values(), lr=self._learning_rate(task)),
            noise_multiplier=privacy.noise_multiplier,
            clip_norm=privacy.clip_norm,
            expected_patients=privacy.sample_rate * patients,
            secret=secret,
        )
        self.model.train()
        engine = PatientGradients(self.model, self._loss(task), names, clip_norm=privacy.clip_norm, chunk=privacy.chunk)
        for _ in range(privacy.steps):
            drawn = secret.sample(patients, rate=privacy.sample_rate).nonzero()[:, 0].tolist()
            sums = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in named.items()}
            draw = secrets.randbits(63)  # of studies and augmentation; not the training seed, which others know
            for batch in records.batches_of(drawn, augment=self.config.data.augment, seed=draw):
                for n, g in engine.clipped_sum(batch).items():
                    sums[n] += g
            optimizer.step_on(sums, named)

    def _learning_rate(self, task: Task) -> float:
        settings: OptimConfig = getattr(self.config.stage, task.stage)
        return learning_rate(replace(settings, lr=self.config.privacy.lr), task)

    def _loss(self, task: Task) -> Callable[[nn.Module, Batch], Tensor]:
        """The stage's loss of one patient."""
        stage, progress = self.config.stage, task.round / max(1, task.rounds)

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            network = cast(MedMAP, model)
            if task.stage == "pretrain":
                return network.pretrain_loss(batch, stage.pretrain, dense=True)["loss"]
            return network.finetune_loss(batch, stage.finetune, progress=progress, dense=True)["loss"]

        return loss
