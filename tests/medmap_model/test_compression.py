"""Compressed changes: how far off they are, that they travel, and that error feedback leaves nothing behind in the long run."""

from __future__ import annotations

import numpy as np
import pytest

from medmap_model.compression import BLOCK, blocks, compress, restore
from medmap_model.contract import decode_vector, encode_vector


def change(n: int, seed: int = 0) -> np.ndarray:
    """Magnitudes over eight powers of ten, as of layers that move fast beside layers that hardly do."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=n) * 10.0 ** np.repeat(rng.uniform(-8, 0, blocks(n)), BLOCK)[:n]).astype(np.float32)


@pytest.mark.parametrize("n", [1, 255, 256, 257, 5000])
@pytest.mark.parametrize(("dtype", "largest_error"), [("int8", 1 / 254), ("float16", 2**-11)])
def test_the_error_is_a_share_of_its_own_blocks_largest_change(n, dtype, largest_error):
    vector = change(n)
    numbers, scales = compress(vector, dtype)
    assert (numbers.dtype, numbers.shape, scales.dtype, scales.shape) == (dtype, (n,), np.float32, (blocks(n),))
    back = restore(numbers, scales)
    assert back.dtype == np.float32
    for at in range(0, n, BLOCK):
        part = slice(at, at + BLOCK)
        assert np.abs(back[part] - vector[part]).max() <= 1.0001 * largest_error * np.abs(vector[part]).max()


def test_one_large_number_spoils_its_own_block_only():
    vector = change(2 * BLOCK)
    quiet = restore(*compress(vector, "int8"))
    vector[3] = 1e30
    loud = restore(*compress(vector, "int8"))
    np.testing.assert_array_equal(loud[BLOCK:], quiet[BLOCK:])
    assert (loud[4:BLOCK] == 0).all(), "control: beside it nothing is left"


@pytest.mark.parametrize("dtype", ["int8", "float16"])
@pytest.mark.parametrize("value", [0.0, 1e-45, 3.4e38, -3.4e38])
def test_numbers_at_the_edge_stay_finite(dtype, value):
    vector = np.full(300, value, np.float32)
    back = restore(*compress(vector, dtype))
    assert np.isfinite(back).all()
    np.testing.assert_allclose(back, vector, rtol=1e-3, atol=1e-40)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match="not finite"):
        compress(np.array([1, value], np.float32), "int8")


@pytest.mark.parametrize("dtype", ["int8", "float16"])
@pytest.mark.parametrize("n", [0, 1, 3, 4097])
def test_the_numbers_travel_bit_for_bit(dtype, n):
    numbers = np.arange(n).astype(dtype)
    back = decode_vector(encode_vector(numbers))
    assert back.dtype == numbers.dtype
    np.testing.assert_array_equal(back, numbers)


def summed(dtype: str, *, feedback: bool, rounds: int = 300) -> tuple[float, float]:
    """(largest error of the sum of many compressed changes, its bound: what one round may lose)."""
    rng = np.random.default_rng(1)
    steady = np.append(rng.uniform(-1e-3, 1e-3, 511), 1.0).astype(
        np.float32
    )  # beside a large one small ones round to nothing
    exact, sent, left = np.zeros(512), np.zeros(512), np.zeros(512, np.float32)
    for _ in range(rounds):
        target = steady + left if feedback else steady
        back = restore(*compress(target, dtype))
        left = target - back
        exact += steady
        sent += back
    return float(np.abs(sent - exact).max()), 1.01 * float(np.abs(steady).max()) / 254


def test_with_error_feedback_the_sum_of_many_rounds_is_off_by_one_rounding_only():
    error, one_rounding = summed("int8", feedback=True)
    assert error <= 1.1 * one_rounding
    error, one_rounding = summed("int8", feedback=False)
    assert error > 20 * one_rounding, "control: without it small changes never arrive"
