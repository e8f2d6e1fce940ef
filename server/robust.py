"""Aggregation that a few bad sites cannot steer: trimmed mean, median and Krum, per module group over the sites that returned it.

In and out as in `server.aggregation`. With f = `strategy.robust_faulty` bad sites assumed, of n that returned the group:

trimmed_mean  per parameter, without the f lowest and the f highest values; n >= 2f + 1 (Yin et al. 2018)
median        per parameter; n >= 2f + 1 (Yin et al. 2018)
krum          the one update nearest to its n - f - 2 nearest; n >= 2f + 3 (Blanchard et al. 2017)

Sites weigh alike: the rules count bad sites, and a weight would give one of them the say of many. A group with fewer sites keeps
its value, never their mean. All updates of a round are held, where a mean holds one sum. Flower's own strategies are not used:
its trimmed mean cuts int(share * n) sites, nobody of a few, and its Krum takes any n and measures distances in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from configs.federated import StrategyConfig
from server.aggregation import Vectors, check
from server.members import FederationError
from server.secure import hidden

_BLOCK = 1 << 20  # parameters sorted at a time


def sites_needed(strategy: StrategyConfig) -> int:
    """Fewest sites behind a module group for it to change; one where there is no rule."""
    if strategy.robust == "none":
        return 1
    return 2 * strategy.robust_faulty + (3 if strategy.robust == "krum" else 1)


def say_what_stays(
    groups: Mapping[int, Mapping[str, int]], strategy: StrategyConfig, stage: str, tell: Callable[[str], None]
) -> None:
    """Name the module groups with too few owners for the rule. Raises FederationError when it is all of them."""
    rule, needed = f"strategy.robust={strategy.robust}", sites_needed(strategy)
    asked, few = hidden(groups, needed)
    if few:
        tell(f"{rule} needs {needed} owners of a module group; not changed in {stage}: {', '.join(few)}")
    if not asked:
        raise FederationError(
            f"{stage}: no module group has the {needed} owners that {rule} needs against {strategy.robust_faulty} bad "
            "sites; more sites, model.sharing=shared, a smaller strategy.robust_faulty, or strategy.robust=none"
        )


class RobustAggregator:
    """The updates of one round, and what the rule makes of them.

    current: the global model, group -> (n,) float32. After `result`: kept, the groups with too few updates for the rule;
    chosen (Krum): group -> which of the updates added it is, from 0.
    """

    def __init__(self, current: Mapping[str, np.ndarray], strategy: StrategyConfig) -> None:
        self.current, self.rule, self.faulty = current, strategy.robust, strategy.robust_faulty
        self.needed = sites_needed(strategy)
        self.kept: set[str] = set()
        self.chosen: dict[str, int] = {}
        self._updates: list[Mapping[str, np.ndarray]] = []

    def add(self, update: Mapping[str, np.ndarray], owned: Mapping[str, int]) -> None:
        """Check an update, then hold it. Raises UpdateRefused and holds nothing."""
        check(update, owned, self.current)
        self._updates.append(update)

    def result(self) -> Vectors:
        """The next global model; a group with too few updates as it was."""
        following = dict(self.current)
        for group, vector in self.current.items():
            rows = [(i, u[group]) for i, u in enumerate(self._updates) if group in u]
            if len(rows) < self.needed:
                self.kept |= {group} if rows else set()
            elif self.rule == "krum":
                best = rows[krum([row for _, row in rows], vector, faulty=self.faulty)]
                self.chosen[group], following[group] = best
            else:
                cut = self.faulty if self.rule == "trimmed_mean" else (len(rows) - 1) // 2
                following[group] = trimmed_mean([row for _, row in rows], cut=cut)
        return following


def trimmed_mean(rows: list[np.ndarray], *, cut: int) -> np.ndarray:
    """(n,) float32: per parameter the mean without the `cut` lowest and highest of the rows, each (n,) float32.

    Of (k - 1) // 2 cut from k rows the median is left. Sorted, so that the order of the rows does not matter.
    """
    middle = np.empty_like(rows[0])
    for at in range(0, len(middle), _BLOCK):
        ordered = np.sort([row[at : at + _BLOCK] for row in rows], axis=0)
        middle[at : at + _BLOCK] = ordered[cut : len(rows) - cut].mean(axis=0, dtype=np.float64)
    return middle


def krum(rows: list[np.ndarray], start: np.ndarray, *, faulty: int) -> int:
    """The row, of n, whose squared distances to its n - faulty - 2 nearest others have the smallest sum; of equals the one that
    changed least from `start`, then the smaller in bytes, so that the order of the rows does not matter."""
    n = len(rows)
    distances = np.zeros((n, n))
    for i in range(n):
        for j in range(i):
            distances[i, j] = distances[j, i] = _distance(rows[i], rows[j])
    others = [np.sort(np.delete(distances[i], i)) for i in range(n)]
    scores = [float(near[: n - faulty - 2].sum()) for near in others]
    ties = [i for i in range(n) if scores[i] == min(scores)]
    return min(ties, key=lambda i: (_distance(rows[i], start), rows[i].tobytes()))


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Euclidean, of differences in float64: norms and products would cancel, and float32 overflow."""
    difference = np.subtract(a, b, dtype=np.float64)
    return float(np.dot(difference, difference))
