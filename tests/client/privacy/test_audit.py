"""The engine as it trains, audited: the right code passes, missing or weak noise is caught; and two attacks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.privacy.gradients import PatientGradients
from client.privacy.optimizer import PatientDPOptimizer
from medmap_model.accounting import Cost, spent
from medmap_model.batch import Batch
from medmap_model.randomness import SecretRandom
from tests.client.privacy.audit import epsilon_lower_bound

CANARIES, C, DELTA = 500, 0.5, 1e-5


class Directions(nn.Module):
    """A parameter per canary; the loss of canary j pulls on direction j alone, with any force: its clipped gradient is C."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(CANARIES))


def pull(model: nn.Module, batch: Batch) -> Tensor:
    return -100.0 * (model.weight * batch.report[0]).sum()


def audited(*, claimed: float, real: float, seed: int) -> float:
    """Lower bound on epsilon of one noisy step in which the noise is `real` times the clip norm."""
    rng = np.random.default_rng(seed)
    included = rng.random(CANARIES) < 0.5
    rows = torch.eye(CANARIES)[included]
    n = len(rows)
    batch = Batch("x", torch.zeros(n, 1, 1, 1, 1), torch.ones(n, 1, dtype=torch.bool), torch.zeros(n, dtype=torch.long), rows, torch.ones(n, dtype=torch.bool))  # fmt: skip
    model = Directions()
    named = dict(model.named_parameters())
    engine = PatientGradients(model, pull, named, clip_norm=C, chunk=50)
    optimizer = PatientDPOptimizer(
        torch.optim.SGD(named.values(), lr=1.0), noise_multiplier=max(real, 1e-6), clip_norm=C,
        expected_patients=1.0, secret=SecretRandom(),
    )  # fmt: skip
    optimizer.step_on(engine.clipped_sum(batch), named)
    return epsilon_lower_bound(included, model.weight.detach().numpy(), delta=DELTA)


def test_the_right_noise_passes_the_audit():
    claimed = spent([Cost(1, 4.0)], delta=DELTA)
    found = [audited(claimed=4.0, real=4.0, seed=s) for s in range(6)]
    assert claimed == pytest.approx(0.93, abs=0.1)
    assert max(found) <= claimed


@pytest.mark.parametrize("real", [1.0, 0.4, 0.0])
def test_noise_over_four_over_ten_and_none_are_caught(real):
    claimed = spent([Cost(1, 4.0)], delta=DELTA)
    found = sorted(audited(claimed=4.0, real=real, seed=s) for s in range(9))
    assert found[4] > claimed  # the median: noise is secret, so a single audit may have bad luck


def test_empty_draws_are_noised_like_any_other():
    model = Directions()
    named = dict(model.named_parameters())
    optimizer = PatientDPOptimizer(
        torch.optim.SGD(named.values(), lr=1.0), noise_multiplier=1.5, clip_norm=C, expected_patients=8.0, secret=SecretRandom()
    )  # fmt: skip
    optimizer.step_on({n: torch.zeros_like(p) for n, p in named.items()}, named)
    assert float(model.weight.detach().std()) == pytest.approx(1.5 * C / 8, rel=0.2)
