"""A round of private local training: charge the ledger, draw patients, clip, add noise, step; in place of `client.training`.

In: model with the global weights, a site's records, the task. Out: nothing but the weights: no loss, no count, no time.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import replace

import torch
from torch import nn

from client.privacy.adapters import TRAINED, adapted, merge
from client.privacy.engines import build_engine
from client.privacy.gradients import PatientGradients
from client.privacy.losses import record_loss, without_modality_dropout
from client.privacy.optimizer import PatientDPOptimizer
from client.privacy.synthetic import synthetic_batch
from client.records import SiteRecords
from client.training import Trainer, learning_rate, seed_of
from configs.federated import PrivacyConfig
from configs.schema import Config
from configs.stages import OptimConfig
from medmap_model.accounting import Cost
from medmap_model.contract import Task
from medmap_model.groups import group_of
from medmap_model.model import MedMAP
from medmap_model.randomness import SecretRandom

_OPTIMIZERS: dict[str, type[torch.optim.SGD] | type[torch.optim.Adam]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,  # its moments are of noisy gradients alone: post-processing
}
_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm3d)


def cost_of_round(privacy: PrivacyConfig) -> Cost:
    """What one round of training is charged."""
    return Cost(privacy.steps, privacy.noise_multiplier, privacy.sample_rate)


def trained_parameters(model: nn.Module, groups: Collection[str], trainable: str) -> list[str]:
    """Names of the parameters that train under privacy: of the site's groups, those that `privacy.trainable` says.

    Fewer parameters, less noise: its norm grows with the square root of their number, the clipped signal's does not. All
    others are constants: a learned temperature trains inside the clip or not at all. adapters: of an `adapters.adapted` copy.
    """
    mine = [name for name, _ in model.named_parameters() if group_of(name) in groups]
    if trainable == "all":
        return mine
    if trainable == "projections_heads":
        return [n for n in mine if not n.startswith("encoders.")]
    heads = [n for n in mine if n.startswith("heads.")]
    if trainable == "adapters":
        return [n for n in mine if TRAINED in n] + heads
    norms = {
        f"{m}.{p}"
        for m, layer in model.named_modules()
        if isinstance(layer, _NORMS)
        for p, _ in layer.named_parameters()
    }
    return [n for n in mine if n in norms] + heads


def network_to_train(
    model: MedMAP, groups: Collection[str], privacy: PrivacyConfig, *, seed: int
) -> tuple[MedMAP, list[str]]:
    """What a round trains, and the names of its parameters: the model itself, or a copy with adapters.

    seed: public, of the adapters' fixed half. Raises ConfigError where no layer can have an adapter.
    """
    network = model
    if privacy.trainable == "adapters":
        network = adapted(model, groups, rank=privacy.adapter_rank, seed=seed)
    return network, trained_parameters(network, groups, privacy.trainable)


class PrivateTrainer:
    """Trains one model privately; holds no state between rounds. The ledger is charged by the caller, before."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.model = trainer, trainer.model
        self.config: Config = trainer.config

    def train(self, records: SiteRecords, task: Task, groups: Collection[str], *, cohort: int | None = None) -> None:
        """`privacy.steps` noisy steps on the parameters of these groups, in place.

        cohort: what the site tells of its number of training patients, by which sums are divided; None: that number itself.
        """
        privacy = self.config.privacy
        self.trainer.use_threads()
        secret = SecretRandom(chacha=privacy.secure_noise)
        seed = seed_of(task.seed, task.stage, task.round, "adapters")
        network, names = network_to_train(self.model, groups, privacy, seed=seed)
        parameters = dict(network.named_parameters())
        named = {n: parameters[n] for n in names}
        for parameter in named.values():
            parameter.requires_grad_()  # peft has frozen the heads
        patients = records.patients("train")
        optimizer = PatientDPOptimizer(
            _OPTIMIZERS[privacy.optimizer](named.values(), lr=self._learning_rate(task)),
            noise_multiplier=privacy.noise_multiplier,
            clip_norm=privacy.clip_norm,
            expected_patients=privacy.sample_rate * (cohort or patients),
            secret=secret,
        )
        network.train()
        engine = self._engine(network, names, records, task)
        for _ in range(privacy.steps):
            drawn = secret.sample(patients, rate=privacy.sample_rate).nonzero()[:, 0].tolist()
            sums = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in named.items()}
            draw = secrets.randbits(63)  # of studies and augmentation; not the training seed, which others know
            for batch in records.batches_of(drawn, augment=self.config.data.augment, seed=draw):
                for n, g in engine.clipped_sum(batch.to(self.trainer.device)).items():
                    sums[n] += g
            optimizer.step_on(sums, named)
        if network is not self.model:
            merge(network, self.model)

    def _engine(self, network: MedMAP, names: list[str], records: SiteRecords, task: Task) -> PatientGradients:
        privacy, organ = self.config.privacy, next(iter(network.vocabulary.organs))  # no word of the site's own
        trial = synthetic_batch(
            network,
            organ,
            patients=min(privacy.chunk or 4, 8),
            size=self.config.data.volumes.size,
            negatives=self.config.stage.pretrain.hard_negatives,
        )
        loss, steady = (
            record_loss(config, task.stage, progress=task.round / max(1, task.rounds))
            for config in (self.config, without_modality_dropout(self.config))
        )
        settings = f"{task.stage} {getattr(self.config.stage, task.stage)}"
        return build_engine(network, loss, names, privacy, settings=settings, steady=steady, trial=trial)

    def _learning_rate(self, task: Task) -> float:
        settings: OptimConfig = getattr(self.config.stage, task.stage)
        return learning_rate(replace(settings, lr=self.config.privacy.lr), task)
