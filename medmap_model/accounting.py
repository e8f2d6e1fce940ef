"""What a history of noisy releases costs: Opacus' PRV accountant for Gaussian steps, plain addition for Laplace ones.

Both sides rest on it: the server plans noise with it, a site's ledger refuses by it. The one module here that imports Opacus.
A history is a list of `Cost`; equal ones are merged first (their order does not matter), since composing many distinct
segments is slow.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace

from configs.federated import PrivacyConfig
from configs.schema import Config
from configs.setting import ConfigError

EPS_ERROR = 0.01  # PRV's own: what it reports is an upper bound by this much


@dataclass(frozen=True)
class Cost:
    """One kind of release, repeated.

    Gaussian: noise_multiplier (standard deviation over the sensitivity), sample_rate (Poisson; 1: everybody), steps.
    Laplace: epsilon of each release (pure), steps. Exactly one of the two is set.
    """

    steps: int
    noise_multiplier: float = 0.0
    sample_rate: float = 1.0
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        if not all(math.isfinite(x) and x >= 0 for x in (self.noise_multiplier, self.sample_rate, self.epsilon)):
            raise ValueError(f"{self}: every number must be finite and not negative")
        gaussian, laplace = self.noise_multiplier > 0, self.epsilon > 0
        if gaussian == laplace or self.steps < 1 or not 0 < self.sample_rate <= 1:
            raise ValueError(
                f"{self}: give a noise multiplier above 0 or an epsilon above 0, one step or more, and a rate in (0, 1]"
            )

    def part_of(self, tables: int) -> Cost:
        """The cost of one of so many tables which together cost this."""
        if self.epsilon:
            return replace(self, epsilon=self.epsilon / tables)
        return replace(self, noise_multiplier=self.noise_multiplier * math.sqrt(tables))


def noise_scale(cost: Cost, *, cells: int, unit: int = 1) -> float:
    """Of the noise on a table of counts of which one patient moves at most `cells` cells by `unit` each.

    Laplace: scale of the discrete distribution, cells * unit / epsilon (L1 sensitivity; Ghosh et al. 2009, arXiv 0811.2841).
    Gaussian: standard deviation, noise_multiplier * unit * sqrt(cells) (L2).
    """
    return unit * cells / cost.epsilon if cost.epsilon else cost.noise_multiplier * unit * math.sqrt(cells)


def noise_variance(cost: Cost, *, cells: int, unit: int = 1) -> float:
    """Variance of that noise on each cell; a Gaussian's includes its rounding to whole numbers."""
    scale = noise_scale(cost, cells=cells, unit=unit)
    if not cost.epsilon:
        return scale**2 + 1 / 12
    p = math.exp(-1 / scale)
    return 2 * p / (1 - p) ** 2


def merged(history: Iterable[Cost]) -> list[Cost]:
    """The same history with equal releases counted together; their order does not matter."""
    steps: dict[tuple[float, float, float], int] = {}
    for cost in history:
        key = (cost.noise_multiplier, cost.sample_rate, cost.epsilon)
        steps[key] = steps.get(key, 0) + cost.steps
    return [Cost(n, *key) for key, n in sorted(steps.items())]


def spent(history: Iterable[Cost], *, delta: float) -> float:
    """Epsilon at `delta` of everything in the history together; 0 for nothing.

    PRV (Gopi et al. 2021, arXiv 2106.02848) over the Gaussian steps, plus the sum of the pure epsilons (basic
    composition). An upper bound.
    """
    return _spent(tuple(merged(history)), delta)


@functools.lru_cache(maxsize=64)  # a second each, and a ledger asks the same before a charge and after it
def _spent(once: tuple[Cost, ...], delta: float) -> float:
    pure = sum(c.epsilon * c.steps for c in once)
    gaussian = [(c.noise_multiplier, c.sample_rate, c.steps) for c in once if not c.epsilon]
    if not gaussian:
        return pure
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = gaussian
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(delta, eps_error=EPS_ERROR)) + pure


def noise_multiplier(
    history: Iterable[Cost], *, epsilon: float, delta: float, sample_rate: float, steps: int, tolerance: float = 0.01
) -> float:
    """The least noise multiplier (to a relative tolerance) with which `steps` more keep to the budget.

    On top of what the history has spent already. Raises ValueError when no noise is enough.
    """
    before = list(history)
    already = spent(before, delta=delta)
    low, high = 0.2, 0.4
    while spent([*before, Cost(steps, high, sample_rate)], delta=delta) > epsilon:
        low, high = high, 2 * high
        if high > 1e3 or already >= epsilon:
            raise ValueError(
                f"epsilon {already:.2f} of {epsilon:g} is spent: {steps} steps more cannot keep to the budget; plan fewer, "
                "or raise the budget"
            )
    while high / low > 1 + tolerance:
        middle = (low * high) ** 0.5
        fits = spent([*before, Cost(steps, middle, sample_rate)], delta=delta) <= epsilon
        low, high = (low, middle) if fits else (middle, high)
    return high


def planned_releases(privacy: PrivacyConfig) -> list[Cost]:
    """What a run asks of each site besides updates: statistics before training, validations after it."""
    asked = (privacy.statistics_epsilon, privacy.shift_epsilon, privacy.landmarks_epsilon)
    statistics = [Cost(1, epsilon=epsilon) for epsilon in asked if epsilon]
    return statistics + [Cost(1, epsilon=privacy.validation_epsilon)] * privacy.validations


def planned_steps(config: Config) -> int:
    """Noisy steps of all rounds of both stages; 0 without private training."""
    if config.privacy.kind == "none":
        return 0
    return config.privacy.steps * (config.stage.pretrain.rounds + config.stage.finetune.rounds)


def with_noise(config: Config, spent_already: Iterable[Cost] = ()) -> Config:
    """The config with its noise multiplier solved, so that all planned rounds and releases use the budget up.

    One multiplier for every round, fixed before the first: the accountant's bound holds for a schedule fixed in advance.
    spent_already: a ledger's history. Raises ConfigError when no noise is enough.
    """
    privacy, steps = config.privacy, planned_steps(config)
    asked = spent([*spent_already, *planned_releases(privacy)], delta=privacy.delta) if not steps else 0.0
    if asked > privacy.epsilon:
        raise ConfigError(
            f"privacy.epsilon={privacy.epsilon:g}: the releases asked for cost {asked:g}: ask for less, or raise it"
        )
    if privacy.noise_multiplier or not steps:
        return config
    try:
        sigma = noise_multiplier(
            [*spent_already, *planned_releases(privacy)],
            epsilon=privacy.epsilon, delta=privacy.delta, sample_rate=privacy.sample_rate, steps=steps,
        )  # fmt: skip
    except ValueError as error:
        raise ConfigError(f"privacy.epsilon={privacy.epsilon:g}: {error}") from None
    return replace(config, privacy=replace(privacy, noise_multiplier=sigma))
