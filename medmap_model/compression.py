"""An update made small: the change of a module group as float16 or int8, with one scale per block of 256 numbers.

In: (n,) float32, the change. Out: (n,) float16 or int8, and (ceil(n / 256),) float32 scales; their product is the change but for
its rounding. Within a block the largest magnitude is 1 (float16) or 127 (int8) scales, so that nothing overflows and an error
is at most 1/254 (int8) of the block's largest change. Rounding to the nearest, so that a round asked again gives the same bits;
what it loses is the site's to add to its next change (error feedback: Seide et al. 2014; Karimireddy et al. 2019).
"""

from __future__ import annotations

import numpy as np

BLOCK = 256
LARGEST = {"float16": 1.0, "int8": 127.0}  # a number of the vector, by what it travels as


def blocks(n: int) -> int:
    """How many scales a change of n numbers has."""
    return -(-n // BLOCK)


def compress(change: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """(n,) float32 -> (n,) numbers of the dtype, a key of LARGEST, and their scales. Raises ValueError if not finite."""
    if not np.isfinite(change).all():
        raise ValueError("the change is not finite")
    tops = np.maximum.reduceat(np.abs(change), np.arange(0, len(change), BLOCK))
    scales = (tops / np.float32(LARGEST[dtype])).astype(np.float32)
    numbers = change / _each(np.where(scales > 0, scales, np.float32(1)), len(change))
    return (np.rint(numbers) if dtype == "int8" else numbers).astype(dtype), scales


def restore(numbers: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """(n,) float32: the change that `compress` was given, but for its rounding. Scales that are too large make it infinite."""
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32) * _each(scales, len(numbers))


def _each(scales: np.ndarray, n: int) -> np.ndarray:
    """(n,): every number's scale."""
    return np.repeat(scales, BLOCK)[:n]
