"""All measures by name: unit, what is bad about them, and the function; a volume in, name -> number or reason out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from client.qc.bias import bias
from client.qc.contrast import cnr, noise
from client.qc.geometry import edge_mm, tilt_deg, view_mm
from client.qc.ghosting import ghosting
from client.qc.intensity import filled, middle, saturated, spike
from client.qc.regions import NotMeasured, Regions


@dataclass(frozen=True)
class Measure:
    """name: also its section in configs/qc.yaml. bad: `high`, `low`, or `either`, whose limits are lower ones."""

    name: str
    title: str
    bad: str
    of: Callable[[Regions], float]
    unit: str = ""


MEASURES = (
    Measure("edge_mm", "coarsest edge", "high", edge_mm, "mm"),
    Measure("view_mm", "smallest view", "either", view_mm, "mm"),
    Measure("tilt_deg", "tilt", "high", tilt_deg, "degrees"),
    Measure("cnr", "contrast to noise", "low", cnr),
    Measure("noise", "grain", "high", noise),
    Measure("bias", "bias field", "high", bias),
    Measure("ghosting", "ghosting", "high", ghosting),
    Measure("spike", "brightest voxel", "high", spike),
    Measure("saturated", "at the ceiling", "high", saturated),
    Measure("middle", "histogram's middle", "either", middle),
    Measure("filled", "tissue in view", "either", filled),
)


def measure(regions: Regions) -> tuple[dict[str, float], dict[str, str]]:
    """(name -> value, name -> why there is none)."""
    values, reasons = {}, {}
    with np.errstate(all="ignore"):  # what overflows is no number, and said to be none
        for one in MEASURES:
            try:
                value = float(one.of(regions))
            except NotMeasured as why:
                reasons[one.name] = str(why)
                continue
            if math.isfinite(value):
                values[one.name] = value
            else:
                reasons[one.name] = "its values are too large to be reckoned with"
    return values, reasons
