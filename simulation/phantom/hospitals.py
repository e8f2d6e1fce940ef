"""The six hospitals of the mixed partition: scanner, modalities, size and label mix of each, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One organ of a mixed hospital: size relative to sites.patients, slots, label mix."""

    size: float
    modalities: tuple[str, ...]
    mix: Mapping[str, float]


def _brain(size: float, modalities: str, *mix: float) -> Part:
    kinds = ("normal", "glioblastoma", "low_grade_glioma", "metastasis", "meningioma")
    return Part(size, tuple(modalities.split()), dict(zip(kinds, mix, strict=True)))


def _liver(size: float, modalities: str, *mix: float) -> Part:
    kinds = ("hcc", "hemangioma", "cyst", "fnh", "metastasis", "icc", "abscess")
    return Part(size, tuple(modalities.split()), dict(zip(kinds, mix, strict=True)))


_ALL_LIVER = "T2WI DWI InPhase OutPhase C-pre C+A C+V C+Delay"
# Hospitals that differ in everything, ordered so that the first few already have every organ.
MIXED: tuple[tuple[str, str, dict[str, Part]], ...] = (
    ("north", "aster-3T", {"brain": _brain(1, "T1 T1ce T2 FLAIR", 0.50, 0.40, 0.05, 0.03, 0.02)}),
    ("south", "ember-1.5T", {"liver": _liver(1, _ALL_LIVER, 0.04, 0.30, 0.20, 0.38, 0.03, 0.03, 0.02)}),
    (
        "east",
        "cedar-3T",
        {
            "brain": _brain(0.7, "T1ce FLAIR", 0.60, 0.02, 0.03, 0.30, 0.05),
            "liver": _liver(1, "C-pre C+A C+V C+Delay", 0.40, 0.02, 0.02, 0.04, 0.26, 0.24, 0.02),
        },
    ),
    (
        "west",
        "dune-0.5T",
        {
            "brain": _brain(0.7, "T1 T2", 0.40, 0.02, 0.03, 0.05, 0.50),
            "liver": _liver(1, "T2WI DWI InPhase OutPhase", 0.04, 0.26, 0.40, 0.02, 0.02, 0.02, 0.24),
        },
    ),
    ("lakeside", "birch-1.5T", {"brain": _brain(1, "T1 T2 FLAIR", 0.35, 0.05, 0.50, 0.08, 0.02)}),
    (
        "hillside",
        "fjord-3T",
        {"liver": _liver(1, "T2WI DWI C+A C+V", 0.20, 0.02, 0.02, 0.02, 0.26, 0.22, 0.26)},
    ),
)
