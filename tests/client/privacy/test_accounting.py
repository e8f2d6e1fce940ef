"""Opacus' PRV accountant against an independent one (dp-accounting's PLD), on fixed histories."""

from __future__ import annotations

import pytest

from medmap_model.accounting import Cost, spent

HISTORIES = {
    "one stage": [Cost(260, 1.5, 1 / 13)],
    "little noise": [Cost(260, 0.8, 1 / 13)],
    "two stages": [Cost(260, 1.5, 1 / 13), Cost(500, 2.0, 1 / 25)],
    "and Gaussian releases": [Cost(260, 1.5, 1 / 13), Cost(500, 2.0, 1 / 25), Cost(20, 5.0, 1.0)],
    "weak": [Cost(260, 10.0, 1 / 13)],
    "full batches": [Cost(50, 5.0, 1.0)],
}


def pld(history: list[Cost], delta: float) -> float:
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-3)
    for cost in history:
        event = dp_accounting.GaussianDpEvent(cost.noise_multiplier)
        if cost.sample_rate < 1:
            event = dp_accounting.PoissonSampledDpEvent(cost.sample_rate, event)
        accountant.compose(event, cost.steps)
    return accountant.get_epsilon(delta)


@pytest.mark.slow
@pytest.mark.parametrize("name", HISTORIES)
def test_prv_is_an_upper_bound_within_its_error_of_pld(name):
    history = HISTORIES[name]
    ours, theirs = spent(history, delta=1e-3), pld(history, 1e-3)
    assert -0.001 <= ours - theirs <= 0.015


def test_order_and_splitting_do_not_matter_and_more_costs_more():
    a, b = Cost(20, 2.0, 0.25), Cost(5, 3.0, 1.0)
    assert spent([a, b], delta=1e-5) == spent([b, Cost(12, 2.0, 0.25), Cost(8, 2.0, 0.25)], delta=1e-5)
    assert spent([a], delta=1e-5) < spent([a, Cost(1, 2.0, 0.25)], delta=1e-5) < spent([a, b], delta=1e-5)
    assert spent([], delta=1e-5) == 0
