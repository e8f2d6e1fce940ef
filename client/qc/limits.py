"""When a measure is worth a warning or a failure (configs/qc.yaml, or a file of the hospital's own), typed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from configs import ROOT
from configs.documents import read_document
from configs.setting import setting

DEFAULTS = ROOT / "qc.yaml"


@dataclass(frozen=True)
class Limit:
    """Of one measure. Beyond: above, or below where low values are bad; none: no such limit."""

    warning: float | None = setting(None, "a warning beyond this value")
    failed: float | None = setting(None, "a failure beyond this value")
    outliers: bool = setting(True, "a warning where a volume is far from the site's others of its modality")


@dataclass(frozen=True)
class Outliers:
    """When a volume is far from the others."""

    score: float = setting(6.0, "robust z-score: distance from the median in deviations by the MAD", minimum=2)
    least: int = setting(8, "fewer volumes of a modality have no outliers", minimum=4)
    spread: float = setting(
        0.05, "least deviation, of the median: where all are alike, a little is not far", minimum=0, maximum=1
    )


@dataclass(frozen=True)
class Labels:
    """When a modality's name is doubted."""

    least: int = setting(10, "patients that a modality needs", minimum=5)
    sure: float = setting(
        0.9,
        "share of volumes told right from which on, for both modalities, a doubt is a failure",
        minimum=0.5,
        maximum=1,
    )
    confused: float = setting(
        0.1,
        "two modalities of which more than this share looks rather like the other are never doubted",
        minimum=0,
        maximum=0.5,
    )
    probability: float = setting(0.999, "that the name is wrong", minimum=0.5, maximum=1)


@dataclass(frozen=True)
class Limits:
    """All of it: a section per measure, named as in `client.qc.measures`."""

    edge_mm: Limit = field(default_factory=Limit)
    view_mm: Limit = field(default_factory=Limit)
    tilt_deg: Limit = field(default_factory=Limit)
    cnr: Limit = field(default_factory=Limit)
    noise: Limit = field(default_factory=Limit)
    bias: Limit = field(default_factory=Limit)
    ghosting: Limit = field(default_factory=Limit)
    spike: Limit = field(default_factory=Limit)
    saturated: Limit = field(default_factory=Limit)
    middle: Limit = field(default_factory=Limit)
    filled: Limit = field(default_factory=Limit)
    outliers: Outliers = field(default_factory=Outliers)
    labels: Labels = field(default_factory=Labels)


def read_limits(path: Path = DEFAULTS) -> Limits:
    """Raises ConfigError: file, line, setting, what to do. A measure that the file leaves out has no limit of its own."""
    return read_document(path, Limits)
