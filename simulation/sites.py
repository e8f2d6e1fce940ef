"""Which virtual hospitals there are: a list of `SiteSpec`, made from the `sites` config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class OrganShare:
    """What one hospital has of one organ.

    train/val/test: patients per split, in the hospital's own label mix; common: balanced test patients.
    modalities: the slots it owns. mix: kind of patient -> probability (phantom kinds, or the vocabulary's abnormalities).
    """

    train: int
    val: int
    test: int
    common: int
    modalities: tuple[str, ...]
    mix: Mapping[str, float]


@dataclass(frozen=True)
class SiteSpec:
    """One virtual hospital. `external`: never trained on, all its patients are test patients."""

    name: str
    scanner: str
    organs: Mapping[str, OrganShare]
    missing_rate: float = 0.0
    unreported_rate: float = 0.0
    external: bool = False
