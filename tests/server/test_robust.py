"""Robust rules and alarms: what one bad site of five can do, how many sites a rule needs, and who is told of."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from configs import load
from configs.federated import StrategyConfig
from configs.setting import ConfigError
from server.aggregation import Aggregator, UpdateRefused, restored
from server.alarms import Watch, watch, words
from server.members import FederationError
from server.robust import RobustAggregator, krum, say_what_stays, trimmed_mean

RULES = ("trimmed_mean", "median", "krum")
N = 400
CURRENT = {"encoder/T1": np.ones(N, np.float32), "head/brain": np.full(3, 5, np.float32)}
OWNED = {"encoder/T1": 7}


def strategy(rule: str, faulty: int = 1) -> StrategyConfig:
    return StrategyConfig(robust=rule, robust_faulty=faulty)


def honest(n: int = 4) -> list[np.ndarray]:
    """Updates that agree on a direction (norm 20) and differ by noise (norm 2)."""
    rng = np.random.default_rng(0)
    return [(CURRENT["encoder/T1"] + 1 + rng.normal(size=N) / 10).astype(np.float32) for _ in range(n)]


def bad(kind: str) -> np.ndarray:
    good = honest(5)[4]
    start = CURRENT["encoder/T1"]
    return {"scaled": start + 1000 * (good - start), "flipped": start - (good - start), "stale": start.copy()}[kind]


def aggregate(aggregator, updates) -> np.ndarray:
    for update in updates:
        aggregator.add({"encoder/T1": update}, OWNED)
    return aggregator.result()["encoder/T1"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["scaled", "flipped", "stale"])
def test_one_bad_site_of_five_does_not_steer_the_model(rule, kind):
    wanted = np.mean(honest(), axis=0)
    updates = [*honest(), bad(kind)]
    robust = aggregate(RobustAggregator(CURRENT, strategy(rule)), updates)
    pulled = aggregate(Aggregator(CURRENT), updates)
    off, off_mean = np.linalg.norm(robust - wanted), np.linalg.norm(pulled - wanted)
    assert robust.dtype == np.float32
    assert off < 3
    assert off < off_mean, "control: the mean is pulled away"
    if kind == "scaled":
        assert off_mean > 1000


def test_without_a_bad_site_a_rule_stays_near_the_mean():
    for rule in RULES:
        assert np.linalg.norm(aggregate(RobustAggregator(CURRENT, strategy(rule)), honest(5)) - 2) < 3


@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_replies_does_not_matter(rule):
    updates = [*honest(), bad("scaled")]
    results = [aggregate(RobustAggregator(CURRENT, strategy(rule)), order) for order in itertools.permutations(updates)]
    assert all((r == results[0]).all() for r in results)


def test_updates_that_tie_are_told_apart_by_what_they_are_not_by_when_they_came():
    start = np.zeros(2, np.float32)
    rows = [np.array(v, np.float32) for v in ([1, 0], [0, 1], [9, 9])]  # with three the nearest two always tie
    chosen = {tuple(order[krum(list(order), start, faulty=0)]) for order in itertools.permutations(rows)}
    assert len(chosen) == 1


def test_trimmed_mean_and_median_are_those_of_the_textbook():
    rows = [np.array([v, -v], np.float32) for v in (1, 2, 4, 8, 100)]
    np.testing.assert_allclose(trimmed_mean(rows, cut=1), [14 / 3, -14 / 3], rtol=1e-6)
    np.testing.assert_array_equal(aggregate_rows("median", rows), [4, -4])
    np.testing.assert_array_equal(aggregate_rows("median", rows[:4]), [3, -3])


def aggregate_rows(rule: str, rows: list[np.ndarray]) -> np.ndarray:
    aggregator = RobustAggregator({"g": np.zeros(2, np.float32)}, strategy(rule))
    for row in rows:
        aggregator.add({"g": row}, {"g": 1})
    return aggregator.result()["g"]


def test_large_groups_go_through_in_blocks(monkeypatch):
    rows = honest(5)
    whole = trimmed_mean(rows, cut=1)
    monkeypatch.setattr("server.robust._BLOCK", 7)
    np.testing.assert_array_equal(trimmed_mean(rows, cut=1), whole)


def test_krum_measures_what_float32_products_would_lose():
    """Weights a million times the differences: |a|^2 + |b|^2 - 2ab in float32 is noise."""
    rows = [np.full(9, 1e6 + d, np.float32) for d in (0, 0.5, 1.0, 1.5, 40)]
    assert krum(rows, np.zeros(9, np.float32), faulty=1) in (1, 2)
    huge = [np.full(9, v, np.float32) for v in (1e30, 1.1e30, 1.2e30, 1.05e30, -3e38)]
    assert krum(huge, np.zeros(9, np.float32), faulty=1) != 4


@pytest.mark.parametrize(("rule", "faulty", "needed"), [("trimmed_mean", 1, 3), ("median", 2, 5), ("krum", 1, 5)])
def test_a_group_with_too_few_updates_keeps_its_value(rule, faulty, needed):
    few = RobustAggregator(CURRENT, strategy(rule, faulty))
    np.testing.assert_array_equal(aggregate(few, honest(needed - 1)), CURRENT["encoder/T1"])
    assert few.kept == {"encoder/T1"}
    assert not few.chosen
    enough = RobustAggregator(CURRENT, strategy(rule, faulty))
    assert (aggregate(enough, honest(needed)) != CURRENT["encoder/T1"]).any()
    assert enough.kept == set()


def test_each_group_goes_over_its_own_owners_and_krum_tells_whose_it_took():
    aggregator = RobustAggregator(CURRENT, strategy("krum"))
    updates = [bad("scaled"), *honest()]
    for i, update in enumerate(updates):
        head = {"head/brain": np.full(3, i, np.float32)} if i < 2 else {}
        aggregator.add({"encoder/T1": update} | head, OWNED | dict.fromkeys(head, 1))
    result = aggregator.result()
    np.testing.assert_array_equal(result["head/brain"], CURRENT["head/brain"])  # two owners are too few
    assert aggregator.kept == {"head/brain"}
    assert aggregator.chosen["encoder/T1"] > 0
    np.testing.assert_array_equal(result["encoder/T1"], updates[aggregator.chosen["encoder/T1"]])


def test_an_update_that_is_not_finite_is_refused_and_not_held():
    aggregator = RobustAggregator(CURRENT, strategy("median"))
    with pytest.raises(UpdateRefused, match="'encoder/T1' is not finite"):
        aggregator.add({"encoder/T1": np.full(N, np.nan, np.float32)}, OWNED)
    np.testing.assert_array_equal(aggregate(aggregator, honest(2)), CURRENT["encoder/T1"])  # two, not three


def test_what_has_too_few_owners_is_said_and_a_federation_that_could_train_nothing_is_refused():
    told: list[str] = []
    groups = {1: {"encoder/T1": 3}, 2: {"encoder/T1": 1}, 3: {"encoder/T1": 1, "encoder/T2": 5}}
    say_what_stays(groups, strategy("median"), "pretrain", told.append)
    assert told == ["strategy.robust=median needs 3 owners of a module group; not changed in pretrain: encoder/T2"]
    with pytest.raises(FederationError, match=r"no module group has the 5 owners that strategy\.robust=krum needs"):
        say_what_stays(groups, strategy("krum"), "pretrain", told.append)


@pytest.mark.parametrize(
    ("with_it", "sentence"),
    [
        ("strategy.secure_aggregation=true", r"strategy\.robust=median needs each site's own update"),
        ("strategy.site_clip=1", r"takes the place of the mean that strategy\.site_clip=1"),
        ("strategy.kind=naive", "would outvote the owners"),
    ],
)
def test_what_a_robust_rule_does_not_go_with(with_it, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load(["strategy=robust", with_it])


def test_a_ratio_that_half_the_sites_exceed_is_refused():
    with pytest.raises(ConfigError, match=r"strategy\.alarm_ratio=0\.5 would raise an alarm"):
        StrategyConfig(alarm_ratio=0.5)


def test_a_compressed_update_does_not_go_with_masks():
    with pytest.raises(ConfigError, match=r"strategy\.update_dtype=int8 does not go with strategy\.secure_aggregation"):
        load(["strategy=secure", "strategy.update_dtype=int8"])


def scales(n: int, value: float = 0.5) -> np.ndarray:
    return np.full(n, value, np.float32)


@pytest.mark.parametrize(
    ("numbers", "its_scales", "message"),
    [
        (np.ones(N, np.float32), scales(2), "is float32, int8 is expected"),
        (np.ones(N - 1, np.int8), scales(2), "has shape"),
        (np.ones(N, np.int8), scales(1), "its scales: module group 'encoder/T1' has shape"),
        (np.ones(N, np.int8), scales(2, np.nan), "its scales: .* is not finite"),
        (np.ones(N, np.int8), scales(2).astype(np.float64), "its scales: .* is float64"),
        (np.ones(N, np.int8), None, "its scales: module group 'encoder/T1' is missing"),
    ],
)
def test_a_compressed_update_that_is_not_what_was_agreed_is_refused(numbers, its_scales, message):
    given = {} if its_scales is None else {"encoder/T1": its_scales}
    with pytest.raises(UpdateRefused, match=message):
        restored({"encoder/T1": numbers}, given, OWNED, CURRENT, dtype=np.dtype(np.int8))


def test_a_compressed_update_is_added_to_the_model_and_one_that_overflows_is_refused_later():
    ones = {"encoder/T1": np.ones(N, np.int8)}
    update = restored(ones, {"encoder/T1": scales(2)}, OWNED, CURRENT, dtype=np.dtype(np.int8))
    np.testing.assert_array_equal(update["encoder/T1"], 1.5)
    many = {"encoder/T1": np.full(N, 127, np.int8)}
    update = restored(many, {"encoder/T1": scales(2, 3e38)}, OWNED, CURRENT, dtype=np.dtype(np.int8))
    with pytest.raises(UpdateRefused, match="not finite"):
        Aggregator(CURRENT).add(update, OWNED)


def seen(guard: Watch, updates: dict[str, np.ndarray], current=CURRENT) -> list[dict]:
    guard.begin()
    for site, update in updates.items():
        guard.see(site, {"encoder/T1": update}, current, sent=[update])
    return guard.end()


def test_an_update_far_from_the_others_raises_an_alarm_and_an_honest_round_none():
    updates = dict(zip("abcd", honest(), strict=True))
    assert seen(Watch(10), updates) == []
    alarms = seen(Watch(10), updates | {"e": bad("scaled")})
    assert [(a["site"], a["kind"], a["groups"]) for a in alarms] == [("e", "far", ["encoder/T1"])]
    assert 900 < alarms[0]["ratio"] < 1100
    assert words(alarms[0]).startswith("alarm: its update of encoder/T1 is")
    assert seen(Watch(2000), updates | {"e": bad("scaled")}) == [], "control: the ratio decides"


def test_with_two_sites_nobody_can_say_which_is_far():
    assert seen(Watch(10), {"a": honest()[0], "e": bad("scaled")}) == []


def test_a_site_that_sends_the_model_back_raises_an_alarm():
    alarms = seen(Watch(10), {"a": honest()[0], "b": bad("stale")})
    assert [(a["site"], a["kind"]) for a in alarms] == [("b", "unchanged")]


def test_a_site_that_sends_its_last_update_again_raises_an_alarm_unless_the_round_was_void():
    guard, update = Watch(10), honest()[0]
    guard.begin()
    guard.see("a", {"encoder/T1": update}, CURRENT, sent=[update])  # void: tried again with the same numbers
    assert seen(guard, {"a": update}) == []
    moved = {"encoder/T1": CURRENT["encoder/T1"] + 1}
    assert seen(guard, {"b": honest(2)[1]}, moved) == []  # a round without a
    assert [(a["site"], a["kind"]) for a in seen(guard, {"a": update, "b": honest(3)[2]}, moved)] == [("a", "repeated")]


def test_a_change_too_large_or_too_small_for_float32_squares_is_measured_all_the_same():
    start = {"encoder/T1": np.zeros(N, np.float32)}
    sizes = {"a": 1e-30, "b": 1e-30, "c": 1e-30, "e": 3e38}
    alarms = seen(Watch(10), {s: np.full(N, v, np.float32) for s, v in sizes.items()}, start)
    assert [(a["site"], a["kind"]) for a in alarms] == [("e", "far")]
    assert np.isfinite(alarms[0]["ratio"])


def test_secure_aggregation_has_no_alarms():
    assert watch(StrategyConfig(secure_aggregation=True)) is None
    assert watch(StrategyConfig(alarm_ratio=0)) is None
    assert watch(StrategyConfig()) is not None
