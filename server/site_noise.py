"""Site-level clipping and noise at a trusted server: no site's update moves the model by more than a known amount.

A site's whole update, over all its module groups, is cut to L2 norm C = `strategy.site_clip`; all sites weigh the same. With
noise of z = `strategy.site_noise_multiplier`, every released model is private for each SITE (zero-out adjacency: the same
federation with one site's update replaced by zeros), in the central model: the server sees the updates and is trusted.

Why noise of z C / n_g on the mean of group g is right for groups with different owners: n_g, the sites that own g by their
public cards, is a constant, so releasing the means equals releasing, scaled by constants, the sums of all groups side by side.
Zeroing one site moves that one long vector of sums by its clipped update, norm <= C, and z C is the noise on each of its
coordinates: one Gaussian mechanism of multiplier z per round, sampling rate 1. A site that does not return counts as zeros and
the divisor stays, else who returned would tell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from configs.federated import StrategyConfig
from configs.schema import Config
from configs.setting import ConfigError
from medmap_model.accounting import Cost, spent
from medmap_model.randomness import SecretRandom
from server.aggregation import Aggregator, Vectors, check
from server.robust import RobustAggregator

_LEAST_NOISE = 0.1


def check_settings(config: Config) -> None:
    """Raise ConfigError for a setting that releases more than the noisy models, or noise that is none."""
    stage, noise = config.stage, config.strategy.site_noise_multiplier
    if 0 < noise < _LEAST_NOISE:
        raise ConfigError(
            f"strategy.site_noise_multiplier={noise:g}: that is no privacy, and no accountant counts it; take {_LEAST_NOISE:g} "
            "or more, or 0 for off"
        )
    if noise and (stage.pretrain.patience or stage.finetune.patience):
        raise ConfigError(
            "strategy.site_noise_multiplier with patience: stopping on the sites' validation is a release that this noise "
            "does not cover; take patience=0"
        )


def spent_by(config: Config, rounds: int) -> dict[str, Any] | None:
    """What `rounds` released models cost each site; None when no noise is added. delta: `privacy.delta`."""
    strategy = config.strategy
    if not strategy.site_noise_multiplier:
        return None
    delta = config.privacy.delta
    history = [Cost(rounds, strategy.site_noise_multiplier)] if rounds else []
    return {"unit": "site", "epsilon_spent": spent(history, delta=delta), "delta": delta, "rounds": rounds}


def aggregator(
    current: Mapping[str, np.ndarray], groups: Mapping[int, Mapping[str, int]], strategy: StrategyConfig
) -> Aggregator | ClippedAggregator | RobustAggregator:
    """What makes a model of a round's updates in the clear: a robust rule, a mean of clipped updates, or the plain mean."""
    if strategy.robust != "none":
        return RobustAggregator(current, strategy)
    return ClippedAggregator(current, groups, strategy) if strategy.site_clip else Aggregator(current)


class ClippedAggregator:
    """One round's mean of clipped updates, with noise.

    current: the global model, group -> (n,) float32. groups: node -> the groups asked of it: who owns what.
    """

    def __init__(
        self, current: Mapping[str, np.ndarray], groups: Mapping[int, Mapping[str, int]], strategy: StrategyConfig
    ) -> None:
        self.current, self.clip, self.noise_multiplier = current, strategy.site_clip, strategy.site_noise_multiplier
        self._owners: dict[str, int] = {}
        for owned in groups.values():
            for group in owned:
                self._owners[group] = self._owners.get(group, 0) + 1
        self._sums = {group: np.zeros(current[group].shape) for group in self._owners}

    def add(self, update: Mapping[str, np.ndarray], owned: Mapping[str, int]) -> None:
        """Check an update, clip its change, add it whole. Raises UpdateRefused and adds nothing."""
        check(update, owned, self.current)
        changes = {g: vector.astype(np.float64) - self.current[g] for g, vector in update.items()}
        norm = math.sqrt(sum(float(np.dot(change, change)) for change in changes.values()))
        factor = min(1.0, self.clip / norm) if norm else 1.0
        for group, change in changes.items():
            self._sums[group] += factor * change

    def result(self) -> Vectors:
        """The next global model; a group that no site owns as it was."""
        secret = SecretRandom()
        std = self.noise_multiplier * self.clip
        following = dict(self.current)
        for group, total in self._sums.items():
            if std:
                total = total + secret.normal(total.shape, std=std).numpy()
            following[group] = (self.current[group] + total / self._owners[group]).astype(np.float32)
        return following
