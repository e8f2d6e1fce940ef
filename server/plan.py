"""A schedule's noise from a budget: what each site would have spent at the end, on top of what its ledger has already.

In: the run's settings, and what sites tell of their ledgers (`medmap-client budget --json`). Out: the noise multiplier that
fits the poorest of them, fixed for all rounds of both stages, and the epsilon of every part.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from configs.schema import Config
from configs.setting import ConfigError
from medmap_model.accounting import Cost, merged, planned_releases, planned_steps, spent, with_noise


@dataclass(frozen=True)
class Told:
    """What a site tells of its ledger."""

    history: tuple[Cost, ...]
    epsilon: float
    delta: float


def read_told(path: Path) -> Told:
    """Reads the output of `medmap-client budget --json`. Raises ConfigError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        history = tuple(Cost(**c) for c in value["history"])
        return Told(history, float(value["epsilon_budget"]), float(value["delta"]))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} is not what a ledger tells ({type(error).__name__}): have the site run `medmap-client budget LEDGER --json`"
        ) from None


def plan(config: Config, told: Mapping[str, Told]) -> dict[str, Any]:
    """noise_multiplier, `parts` (what, rounds, steps, epsilon_alone), `costs` and `sites` (spent before and after, of what).

    A site that tells nothing is planned for with the settings' budget and an empty ledger (`a new site`). Raises ConfigError
    when no noise is enough for one of them, naming it.
    """
    privacy = config.privacy
    if privacy.kind == "none" and not planned_releases(privacy):
        raise ConfigError(
            "privacy.kind=none and no release is planned: there is nothing to plan; take privacy=patient_dp"
        )
    ledgers = dict(told) or {"a new site": Told((), privacy.epsilon, privacy.delta)}
    sigma = 0.0
    for site, ledger in ledgers.items():
        own = replace(privacy, epsilon=ledger.epsilon, delta=ledger.delta, noise_multiplier=0.0)
        try:
            solved = with_noise(replace(config, privacy=own), ledger.history)
        except ConfigError as error:
            raise ConfigError(f"{site}: {error}") from None
        sigma = max(sigma, privacy.noise_multiplier or solved.privacy.noise_multiplier)
    parts = list(_parts(config, sigma))
    costs = [cost for _, part in parts for cost in part]
    return {
        "noise_multiplier": sigma,
        "sample_rate": privacy.sample_rate,
        "costs": [asdict(c) for c in merged(costs)],
        "parts": [row | {"epsilon_alone": spent(part, delta=privacy.delta)} for row, part in parts],
        "sites": {site: _before_and_after(ledger, costs) for site, ledger in ledgers.items()},
    }


def _before_and_after(ledger: Told, costs: list[Cost]) -> dict[str, Any]:
    before, after = (spent(h, delta=ledger.delta) for h in (ledger.history, [*ledger.history, *costs]))
    fits = after <= ledger.epsilon
    return {"before": before, "after": after, "budget": ledger.epsilon, "delta": ledger.delta, "fits": fits}


def _parts(config: Config, sigma: float) -> Iterator[tuple[dict[str, Any], list[Cost]]]:
    """In the order in which they are spent: what, rounds, noisy steps; and the costs."""
    privacy = config.privacy
    releases = planned_releases(privacy)
    statistics = len(releases) - privacy.validations
    if statistics:
        yield {"what": "statistics", "rounds": statistics, "steps": 0}, releases[:statistics]
    for name, stage in (("pretrain", config.stage.pretrain), ("finetune", config.stage.finetune)):
        if planned_steps(config) and stage.rounds:
            steps = stage.rounds * privacy.steps
            yield {"what": name, "rounds": stage.rounds, "steps": steps}, [Cost(steps, sigma, privacy.sample_rate)]
    if privacy.validations:
        yield {"what": "validation", "rounds": privacy.validations, "steps": 0}, releases[statistics:]


def show(told: Mapping[str, Any]) -> None:
    """A plan as text, and the setting to give to the run."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    parts = Table(box=box.SIMPLE_HEAD)
    for name in ("part", "rounds", "noisy steps", "epsilon if it were alone"):
        parts.add_column(name, justify="left" if name == "part" else "right")
    for row in told["parts"]:
        parts.add_row(row["what"], str(row["rounds"]), str(row["steps"] or "-"), f"{row['epsilon_alone']:.3f}")
    sites = Table(box=box.SIMPLE_HEAD)
    for name in ("site", "spent before", "spent after", "budget", "delta", ""):
        sites.add_column(name, justify="left" if name in ("site", "") else "right")
    for site, row in told["sites"].items():
        verdict = "fits" if row["fits"] else "exceeds: it will refuse"
        sites.add_row(
            site, f"{row['before']:.3f}", f"{row['after']:.3f}", f"{row['budget']:g}", f"{row['delta']:g}", verdict
        )
    console.print(parts)
    console.print(sites)
    if told["noise_multiplier"]:
        console.print(
            f"give to the run: privacy.noise_multiplier={told['noise_multiplier']:.4f}", style="bold", highlight=False
        )
