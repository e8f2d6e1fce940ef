"""Modality-aware aggregation: each module group is averaged over the sites that own it.

In: per site, group -> flat float32 vector. Out: group -> flat float32 vector, weighted by the volumes (encoders, projections)
or studies (the rest) behind it. A group that nobody returned keeps its value. One running sum per group is held, in
float64: a float32 times a whole number below 2^29 is exact there, so the result does not depend on the order of replies
but for a last-bit tie. Weights come from the cards that sites showed when they joined; a reply cannot raise its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from medmap_model.compression import blocks, restore

Vectors = dict[str, np.ndarray]
_FLOAT32 = np.dtype(np.float32)


class UpdateRefused(ValueError):
    """An update that may not enter the average; the message names the module group and what is wrong with it."""


def check(
    update: Mapping[str, Any],
    owned: Mapping[str, int],
    current: Mapping[str, np.ndarray],
    *,
    dtype: np.dtype = _FLOAT32,
) -> None:
    """Raise UpdateRefused unless the update holds exactly the groups owned, whole and finite.

    current: the global model. dtype: of the vectors; another where they are masked.
    """
    for group, vector in update.items():
        if group not in current:
            raise UpdateRefused(f"unknown module group '{group}'")
        if group not in owned:
            raise UpdateRefused(f"module group '{group}' is not one that this site owns")
        expected = current[group]
        if vector.dtype != dtype:
            raise UpdateRefused(f"module group '{group}' is {vector.dtype}, {dtype} is expected")
        if vector.shape != expected.shape:
            raise UpdateRefused(
                f"module group '{group}' has shape {tuple(vector.shape)}, {tuple(expected.shape)} is expected"
            )
        if not (finite := np.isfinite(vector)).all():
            bad = int(finite.argmin())
            raise UpdateRefused(f"module group '{group}' is not finite (first at position {bad})")
    missing = sorted(set(owned) - set(update))
    if missing:
        raise UpdateRefused(f"module group '{missing[0]}' is missing")


def restored(
    numbers: Mapping[str, np.ndarray],
    scales: Mapping[str, np.ndarray],
    owned: Mapping[str, int],
    current: Mapping[str, np.ndarray],
    *,
    dtype: np.dtype,
) -> Vectors:
    """The update that a compressed change stands for, group -> (n,) float32; may be infinite. Raises UpdateRefused.

    numbers, scales: as `medmap_model.compression` makes them of the change from current, the global model.
    """
    check(numbers, owned, current, dtype=dtype)
    try:
        check(scales, owned, {group: np.empty(blocks(len(current[group]))) for group in owned})
    except UpdateRefused as error:
        raise UpdateRefused(f"its scales: {error}") from None
    with np.errstate(over="ignore"):
        return {group: current[group] + restore(vector, scales[group]) for group, vector in numbers.items()}


class Aggregator:
    """The running average of one round.

    current: the global model, group -> (n,) float32.
    """

    def __init__(self, current: Mapping[str, np.ndarray]) -> None:
        self.current = current
        self._sums: dict[str, np.ndarray] = {}
        self._weights: dict[str, int] = {}

    def add(self, update: Mapping[str, np.ndarray], owned: Mapping[str, int]) -> None:
        """Check an update, then add it whole. owned: group -> weight. Raises UpdateRefused and adds nothing."""
        check(update, owned, self.current)
        for group, vector in update.items():
            weight = owned[group]
            if group in self._sums:
                self._sums[group] += np.multiply(vector, weight, dtype=np.float64)
            else:
                self._sums[group] = np.multiply(vector, weight, dtype=np.float64)
            self._weights[group] = self._weights.get(group, 0) + weight

    def result(self) -> Vectors:
        """The next global model: averaged groups, and the untouched ones as they were."""
        return {
            group: (self._sums[group] / self._weights[group]).astype(np.float32) if group in self._sums else vector
            for group, vector in self.current.items()
        }
