"""Shamir's secret sharing (1979): any `threshold` holders together know a 32-byte secret, fewer know nothing of it."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping

PRIME = 2**521 - 1  # a Mersenne prime, above every 32-byte number
SECRET_BYTES = 32
SHARE_BYTES = 66


def split(secret: bytes, holders: Iterable[int], *, threshold: int) -> dict[int, bytes]:
    """Holder (a number from 1) -> its share, 66 bytes: the value there of a random polynomial of degree threshold - 1.

    Raises ValueError.
    """
    points = sorted(set(holders))
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= len(points) or points[0] < 1:
        raise ValueError(
            f"{len(secret)} bytes among {len(points)} holders, {threshold} needed: take {SECRET_BYTES} bytes, holders from "
            "1 on, and as many as are needed or more"
        )
    coefficients = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return {x: _value(coefficients, x).to_bytes(SHARE_BYTES, "big") for x in points}


def combine(shares: Mapping[int, bytes], *, threshold: int) -> bytes:
    """The secret from `threshold` shares or more. Raises ValueError for too few, and for shares that do not belong together.

    A wrong share among exactly `threshold` cannot be seen here but by chance.
    """
    points = sorted(shares)
    if len(points) < threshold:
        raise ValueError(f"{len(points)} shares, {threshold} are needed")
    values = {x: int.from_bytes(shares[x], "big") for x in points}
    found = _at_zero({x: values[x] for x in points[:threshold]})
    others = [_at_zero({x: values[x] for x in (*points[1:threshold], extra)}) for extra in points[threshold:]]
    if any(other != found for other in others) or found >= 2 ** (8 * SECRET_BYTES):
        raise ValueError("the shares do not belong to one secret")
    return found.to_bytes(SECRET_BYTES, "big")


def _value(coefficients: list[int], x: int) -> int:
    total = 0
    for c in reversed(coefficients):
        total = (total * x + c) % PRIME
    return total


def _at_zero(values: Mapping[int, int]) -> int:
    """Lagrange's interpolation at 0."""
    total = 0
    for x, y in values.items():
        numerator = denominator = 1
        for other in values:
            if other != x:
                numerator = numerator * other % PRIME
                denominator = denominator * (other - x) % PRIME
        total = (total + y * numerator * pow(denominator, -1, PRIME)) % PRIME
    return total
