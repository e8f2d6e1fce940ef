"""Site-level clipping and noise: how far one site moves the model, how much noise there is, what it costs, and that off is off."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from configs import load
from configs.setting import ConfigError
from server.aggregation import Aggregator, UpdateRefused
from server.site_noise import ClippedAggregator, check_settings, spent_by
from tests.server.test_rounds import GROUPS, Hospitals, federation, initial

# Three sites: all own a, two own b, one owns c.
OWNERS = {1: {"a": 5, "b": 2}, 2: {"a": 900, "b": 9, "c": 1}, 3: {"a": 1}}
SIZES = {"a": 40, "b": 30, "c": 20, "d": 10}
CURRENT = {g: np.full(n, 0.25, np.float32) for g, n in SIZES.items()}


def aggregate(updates, *, clip=0.5, noise=0.0, current=CURRENT, owners=OWNERS):
    strategy = load([f"strategy.site_clip={clip}", f"strategy.site_noise_multiplier={noise}"]).strategy
    aggregator = ClippedAggregator(current, owners, strategy)
    for site, update in updates.items():
        aggregator.add(update, owners[site])
    return aggregator.result()


def updates(scale: float = 1.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    return {
        s: {g: CURRENT[g] + rng.normal(0, scale, SIZES[g]).astype(np.float32) for g in gs} for s, gs in OWNERS.items()
    }


def distance(one, other, times) -> float:
    """L2 norm of the difference, each group scaled."""
    return float(np.sqrt(sum((((one[g] - other[g]) * times.get(g, 1)) ** 2).sum() for g in one)))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("site", OWNERS)
def test_one_site_moves_the_sums_by_at_most_the_clip(site, scale):
    """Over all groups together, each mean times its number of owners: the noise of each is in proportion."""
    everyone = updates(scale)
    without = {s: u for s, u in everyone.items() if s != site}
    n = {"a": 3, "b": 2, "c": 1}
    moved = distance(aggregate(everyone), aggregate(without), n)
    assert moved <= 0.5 * (1 + 1e-5)
    if scale == 1.0:
        assert moved > 0.499, "control: the bound is reached"
        plain = [Aggregator(CURRENT), Aggregator(CURRENT)]
        for a, sites in zip(plain, (everyone, without), strict=True):
            for s, u in sites.items():
                a.add(u, OWNERS[s])
        if site == 2:
            assert distance(plain[0].result(), plain[1].result(), n) > 5, "control: an unclipped mean is moved further"


def test_a_small_update_is_not_clipped_and_sites_weigh_alike():
    one = {1: {g: CURRENT[g] + np.float32(0.01) for g in "ab"}, 3: {"a": CURRENT["a"] + np.float32(0.02)}}
    result = aggregate(one)
    np.testing.assert_allclose(result["a"] - 0.25, 0.03 / 3, atol=1e-7)  # site 2 did not return: it counts as zeros
    np.testing.assert_allclose(result["b"] - 0.25, 0.01 / 2, atol=1e-7)
    np.testing.assert_array_equal(result["c"], CURRENT["c"])
    np.testing.assert_array_equal(result["d"], CURRENT["d"])


def test_a_site_that_changes_nothing_is_no_division_by_zero():
    unchanged = {s: {g: CURRENT[g].copy() for g in gs} for s, gs in OWNERS.items()}
    for group, vector in aggregate(unchanged).items():
        np.testing.assert_array_equal(vector, CURRENT[group])


@pytest.mark.parametrize("returned", [(1, 2, 3), ()])
def test_noise_has_its_standard_deviation_whoever_returns(returned):
    """z C / n_g on each coordinate of group g; also where nobody returned, else that would tell who did."""
    sizes = {"a": 40_000, "b": 40_000, "c": 40_000, "d": 100}
    current = {g: np.zeros(n, np.float32) for g, n in sizes.items()}
    still = {s: {g: current[g] for g in OWNERS[s]} for s in returned}
    result = aggregate(still, clip=0.5, noise=1.5, current=current)
    for group, n in {"a": 3, "b": 2, "c": 1}.items():
        std, error = 1.5 * 0.5 / n, 5 / np.sqrt(2 * sizes[group])  # five standard errors
        assert abs(result[group].std() / std - 1) < error
        assert abs(result[group].mean()) < 5 * std / np.sqrt(sizes[group])
    assert not result["d"].any(), "what no site owns is public and stays"
    again = aggregate(still, clip=0.5, noise=1.5, current=current)
    assert abs(np.corrcoef(result["a"], again["a"])[0, 1]) < 5 / np.sqrt(sizes["a"]), "drawn anew, whatever the seed"


def test_a_bad_update_is_refused_whole():
    aggregator = ClippedAggregator(CURRENT, OWNERS, load(["strategy.site_clip=1"]).strategy)
    with pytest.raises(UpdateRefused, match="'b' is not finite"):
        aggregator.add({"a": CURRENT["a"] + 1, "b": np.full(30, np.nan, np.float32)}, OWNERS[1])
    for group, vector in aggregator.result().items():
        np.testing.assert_array_equal(vector, CURRENT[group])


def test_off_is_off_bit_for_bit(tmp_path):
    def drift(i, stage, number, vectors):
        for v in vectors.values():
            v += np.random.default_rng([i, number]).normal(size=3).astype(np.float32)

    f = federation(tmp_path / "off", Hospitals(drift))
    vectors = f.run()
    expected = initial()
    for stage, rounds in (("pretrain", 2), ("finetune", 3)):
        for number in range(rounds):
            a = Aggregator(expected)
            for i, owned in enumerate(f._shares(f.join(), stage).values()):
                update = {g: expected[g] + np.float32(i + 1) for g in owned}
                drift(i, stage, number, update)
                a.add(update, owned)
            expected = a.result()
    for g in GROUPS:
        np.testing.assert_array_equal(vectors[g], expected[g])
    assert f.site_privacy() is None
    assert all("site_privacy" not in line for line in f.history)


def test_a_federation_tells_what_each_round_has_cost(tmp_path):
    f = federation(tmp_path, Hospitals(), "strategy=site_level", "strategy.site_noise_multiplier=4")
    f.run()
    told = [line["site_privacy"] for line in f.history]
    assert [t["rounds"] for t in told] == [1, 2, 3, 4, 5]
    assert all(a["epsilon_spent"] < b["epsilon_spent"] for a, b in itertools.pairwise(told))
    assert f.site_privacy() == told[-1]
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["site_privacy"]["unit"] == "site"
    two = federation(tmp_path / "two", Hospitals(), "strategy=site_level", "strategy.site_noise_multiplier=4")
    assert (two.run()["fusion"] != f.vectors["fusion"]).any(), "the noise is not of the run's seed"


def test_epsilon_is_that_of_the_gaussian_mechanism():
    """One release of multiplier z: delta(epsilon) in closed form (Balle and Wang 2018, arXiv 1805.06530, theorem 8)."""
    from scipy.stats import norm

    z = 2.0
    config = load(["strategy=site_level", f"strategy.site_noise_multiplier={z}"])
    epsilon = spent_by(config, 1)["epsilon_spent"]
    delta = norm.cdf(1 / (2 * z) - epsilon * z) - np.exp(epsilon) * norm.cdf(-1 / (2 * z) - epsilon * z)
    assert delta <= config.privacy.delta
    tighter = epsilon - 0.02
    assert (
        norm.cdf(1 / (2 * z) - tighter * z) - np.exp(tighter) * norm.cdf(-1 / (2 * z) - tighter * z)
        > config.privacy.delta
    )
    assert spent_by(config, 0)["epsilon_spent"] == 0
    assert spent_by(load(["strategy.site_clip=1"]), 3) is None, "clipping alone is no guarantee"


def test_settings_that_release_more_are_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"strategy\.site_noise_multiplier=1 is measured in strategy\.site_clip"):
        load(["strategy.site_noise_multiplier=1"])
    patient = load(["strategy=site_level", "stage.finetune.patience=2"])
    with pytest.raises(ConfigError, match="take patience=0"):
        check_settings(patient)
    with pytest.raises(ConfigError, match="take patience=0"):
        federation(tmp_path, Hospitals(), "strategy=site_level", "stage.finetune.patience=2")
    check_settings(load(["strategy.site_clip=1", "stage.finetune.patience=2"]))


def test_noise_that_no_accountant_counts_is_refused_before_a_round_is_trained():
    with pytest.raises(ConfigError, match=r"site_noise_multiplier=0\.01: that is no privacy") as said:
        check_settings(load(["strategy.site_clip=1", "strategy.site_noise_multiplier=0.01"]))
    assert "\n" not in str(said.value)
    check_settings(load(["strategy.site_clip=1", "strategy.site_noise_multiplier=0.1"]))
