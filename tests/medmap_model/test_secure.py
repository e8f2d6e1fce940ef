"""The mathematics of secure aggregation: sums that cannot wrap, masks that cancel and look like noise, shares, sealed messages."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from medmap_model.secure import keys, shamir
from medmap_model.secure.masks import own_mask, pair_mask
from medmap_model.secure.quantise import Quantiser

WHERE = {"round_id": "r", "group": "fusion"}
UINT32 = np.dtype(np.uint32)
ALMOST_NEVER = 1e-6  # chance that a test of randomness fails by bad luck


@pytest.mark.parametrize("bits", [16, 32])
def test_the_sum_is_the_weighted_mean_within_half_a_step_per_site(bits):
    rng = np.random.default_rng(0)
    weights = np.array([3, 170, 12_000, 1, 55])
    changes = rng.normal(0, 0.2, (5, 2000)).astype(np.float32).clip(-1, 1)
    q = Quantiser(clip=1.0, bits=bits, sites=5)
    total = sum(q.encode(c, share=w / weights.sum()) for c, w in zip(changes, weights, strict=True))
    assert total.dtype == q.dtype
    error = np.abs(q.decode(total) - np.average(changes.astype(np.float64), axis=0, weights=weights))
    assert error.max() <= 5 / 2 * q.step
    assert error.max() > 0, "control: something was rounded"


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_sum_of_all_sites_at_the_clip_does_not_wrap(bits, sign):
    q = Quantiser(clip=0.3, bits=bits, sites=7)
    extreme = np.full(4, sign * 99, np.float32)  # cut to the clip
    total = sum(q.encode(extreme, share=1 / 7) for _ in range(7))
    np.testing.assert_allclose(q.decode(total), sign * 0.3, atol=7 / 2 * q.step)
    wrapped = sum(q.encode(extreme, share=1) for _ in range(2))
    assert np.sign(q.decode(wrapped))[0] == -sign, "control: shares of more than 1 together do wrap"


def test_what_cannot_be_quantised_is_refused():
    q = Quantiser(clip=1.0, bits=32, sites=3)
    with pytest.raises(ValueError, match="not finite"):
        q.encode(np.array([0, np.nan], np.float32), share=0.5)
    with pytest.raises(ValueError, match=r"share of the weights is 1\.5"):
        q.encode(np.zeros(2, np.float32), share=1.5)
    with pytest.raises(ValueError, match="take bits of"):
        Quantiser(clip=1.0, bits=8, sites=3)


def test_masks_of_pairs_cancel_and_each_is_another():
    secrets = {i: keys.new_secret() for i in (1, 2, 5)}
    masks = {
        (i, j): pair_mask(secrets[i], keys.public_of(secrets[j]), 1000, UINT32, me=i, other=j, **WHERE)
        for i, j in itertools.permutations(secrets, 2)
    }
    assert not sum(masks.values()).any()
    assert all(m.any() for m in masks.values())
    assert len({m.tobytes() for m in masks.values()}) == 6
    # Whoever holds one of the two secrets can make the mask: that is how a lost site's are removed.
    from_the_other_end = pair_mask(secrets[2], keys.public_of(secrets[1]), 1000, UINT32, me=1, other=2, **WHERE)
    np.testing.assert_array_equal(from_the_other_end, masks[1, 2])


def test_another_group_or_round_has_another_mask():
    seed = keys.new_secret()
    one = own_mask(seed, 100, UINT32, **WHERE)
    np.testing.assert_array_equal(one, own_mask(seed, 100, UINT32, **WHERE))
    for other in ({"round_id": "r", "group": "head/brain"}, {"round_id": "s", "group": "fusion"}):
        assert (own_mask(seed, 100, UINT32, **other) != one).mean() > 0.9


@pytest.mark.parametrize("masked", [True, False])
def test_one_masked_vector_is_uniform_and_tells_nothing_of_the_update(masked):
    n = 1 << 18
    change = np.random.default_rng(1).normal(0, 0.05, n).astype(np.float32)
    sent = Quantiser(clip=1.0, bits=32, sites=3).encode(change, share=0.4)
    if masked:
        mine, other = keys.new_secret(), keys.public_of(keys.new_secret())
        sent += pair_mask(mine, other, n, UINT32, me=2, other=1, **WHERE)
    uniform = stats.chisquare(np.bincount(sent.view(np.uint8), minlength=256)).pvalue
    correlation = abs(np.corrcoef(sent.view(np.int32).astype(np.float64), change)[0, 1])
    if masked:
        assert uniform > ALMOST_NEVER
        assert correlation < 5 / np.sqrt(n)
    else:
        assert uniform < ALMOST_NEVER and correlation > 0.99, "control: without masks both tell"


def test_a_sealed_message_opens_for_its_receiver_alone():
    a, b, c = (keys.new_secret() for _ in range(3))
    to_b = keys.agree(a, keys.public_of(b), "shares", "round", 1, 2)
    assert keys.agree(b, keys.public_of(a), "shares", "round", 1, 2) == to_b
    sealed = keys.seal(to_b, b"a share")
    assert keys.unseal(to_b, sealed) == b"a share"
    assert keys.seal(to_b, b"a share") != sealed
    others = (
        keys.agree(c, keys.public_of(a), "shares", "round", 1, 2),
        keys.agree(b, keys.public_of(a), "shares", "round", 2, 1),
        keys.agree(b, keys.public_of(a), "shares", "next round", 1, 2),
    )
    for key, text in (*((k, sealed) for k in others), (to_b, sealed[:-1] + bytes([sealed[-1] ^ 1])), (to_b, b"")):
        with pytest.raises(ValueError):
            keys.unseal(key, text)


def test_a_public_key_that_fixes_the_agreement_is_refused():
    with pytest.raises(ValueError):
        keys.agree(keys.new_secret(), bytes(32), "any")


@pytest.mark.parametrize(("holders", "threshold"), [((1,), 1), ((1, 2, 3), 2), ((2, 3, 5, 8, 9), 3), ((1, 2, 3, 4), 4)])
def test_any_threshold_of_holders_recover_a_secret(holders, threshold):
    for secret in (keys.new_secret(), bytes(32), b"\xff" * 32):
        shares = shamir.split(secret, holders, threshold=threshold)
        for size in range(threshold, len(holders) + 1):
            for some in itertools.combinations(holders, size):
                assert shamir.combine({i: shares[i] for i in some}, threshold=threshold) == secret


def test_fewer_than_the_threshold_fit_every_secret_alike():
    """With one share missing, for every secret there is exactly one value of it that yields this secret."""
    secret, other = keys.new_secret(), keys.new_secret()
    shares = shamir.split(secret, range(1, 6), threshold=3)
    two = {1: shares[1], 2: shares[2]}
    with pytest.raises(ValueError, match="2 shares, 3 are needed"):
        shamir.combine(two, threshold=3)
    # The parabola through (1, y1), (2, y2) and (0, another secret), at 3: 3 y2 - 3 y1 + y0 ... by finite differences.
    y1, y2 = (int.from_bytes(shares[i], "big") for i in (1, 2))
    y3 = (3 * y2 - 3 * y1 + int.from_bytes(other, "big")) % shamir.PRIME
    forged = {**two, 3: y3.to_bytes(shamir.SHARE_BYTES, "big")}
    assert shamir.combine(forged, threshold=3) == other
    assert shamir.combine({i: shares[i] for i in (1, 2, 3)}, threshold=3) == secret


def test_a_wrong_share_among_more_than_enough_is_noticed():
    shares = shamir.split(keys.new_secret(), range(1, 6), threshold=3)
    for wrong in range(1, 6):
        spoilt = {**shares, wrong: shamir.split(keys.new_secret(), range(1, 6), threshold=3)[wrong]}
        with pytest.raises(ValueError, match="do not belong to one secret"):
            shamir.combine(spoilt, threshold=3)


@pytest.mark.parametrize(("size", "holders", "threshold"), [(31, 3, 2), (32, 3, 4), (32, 3, 0)])
def test_a_split_that_cannot_work_is_refused(size, holders, threshold):
    with pytest.raises(ValueError, match="holders"):
        shamir.split(bytes(size), range(1, holders + 1), threshold=threshold)


def test_the_modulus_is_prime():
    """Lucas and Lehmer's test of a Mersenne number."""
    s = 4
    for _ in range(521 - 2):
        s = (s * s - 2) % shamir.PRIME
    assert s == 0
