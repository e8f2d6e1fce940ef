"""Aggregation per module group: exact means over owners, and refusals that name what is wrong."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from server.aggregation import Aggregator, UpdateRefused


def vec(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.fixture
def current() -> dict[str, np.ndarray]:
    return {"fusion": vec(0, 0), "encoder/T1": vec(2), "encoder/T2": vec(9)}


def test_each_group_is_the_mean_over_its_owners_and_an_unowned_group_keeps_its_value(current):
    a = Aggregator(current)
    a.add({"fusion": vec(1, 1), "encoder/T1": vec(4)}, {"fusion": 1, "encoder/T1": 5})
    a.add({"fusion": vec(3, 5)}, {"fusion": 3})
    result = a.result()
    np.testing.assert_array_equal(result["fusion"], vec(2.5, 4))
    np.testing.assert_array_equal(result["encoder/T1"], vec(4))  # not shrunk by the site that does not own it
    np.testing.assert_array_equal(result["encoder/T2"], vec(9))
    assert all(v.dtype == np.float32 for v in result.values())


def test_the_order_of_replies_does_not_matter():
    rng = np.random.default_rng(0)
    sites = [({"fusion": rng.normal(size=4096).astype(np.float32)}, {"fusion": int(w)}) for w in (3, 17, 250, 9)]
    results = []
    for order in itertools.permutations(sites):
        a = Aggregator({"fusion": np.zeros(4096, np.float32)})
        for update, weights in order:
            a.add(update, weights)
        results.append(a.result()["fusion"])
    assert all((r == results[0]).all() for r in results)
    naive32 = [
        sum((u["fusion"] * np.float32(w["fusion"]) for u, w in o), np.zeros(4096, np.float32))
        for o in (sites, sites[::-1])
    ]
    assert (naive32[0] != naive32[1]).any(), "control: a float32 sum does depend on the order"


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"encoder/T9": vec(1)}, "unknown module group 'encoder/T9'"),
        ({"encoder/T2": vec(1)}, "'encoder/T2' is not one that this site owns"),
        ({"fusion": vec(1, 2, 3), "encoder/T1": vec(1)}, r"'fusion' has shape \(3,\), \(2,\) is expected"),
        ({"fusion": np.zeros(2), "encoder/T1": vec(1)}, "'fusion' is float64, float32 is expected"),
        ({"fusion": vec(1, np.nan), "encoder/T1": vec(1)}, r"'fusion' is not finite \(first at position 1\)"),
        ({"fusion": vec(-np.inf, np.inf), "encoder/T1": vec(1)}, "'fusion' is not finite"),
        ({"fusion": vec(1, 1)}, "'encoder/T1' is missing"),
    ],
)
def test_a_bad_update_is_refused_whole(current, update, message):
    owned = {"fusion": 2, "encoder/T1": 2}
    a = Aggregator(current)
    a.add({"fusion": vec(1, 1), "encoder/T1": vec(3)}, owned)
    with pytest.raises(UpdateRefused, match=message):
        a.add(update, owned)
    np.testing.assert_array_equal(a.result()["fusion"], vec(1, 1))
    np.testing.assert_array_equal(a.result()["encoder/T1"], vec(3))


def test_large_finite_values_are_not_mistaken_for_infinite(current):
    a = Aggregator(current)
    a.add({"encoder/T1": vec(3e38)}, {"encoder/T1": 7})
    np.testing.assert_array_equal(a.result()["encoder/T1"], vec(3e38))
