"""The hospitals' scanners: field, pulse sequences, noise, bias, resolution and slice thickness, by name.

`scanner(name, strength)` gives the settings; a name with a number behind a slash ("aster-3T/2") is another machine of
the same make: its own timings and artefacts, drawn from the name alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Scanner:
    """One machine with its protocol. Times in ms, angles in degrees, lengths in mm.

    t1: TR, TE (MPRAGE or spin echo). t2, flair, body_t2: TR, TE. dynamic: TR, TE, flip of the 3D gradient echo.
    noise: standard deviation of each channel, relative to the signal of reference tissue. bias: standard deviation of
    the log coil-sensitivity coefficients. curve: exponent of the vendor's intensity curve. slice_axis: 0 sagittal,
    1 coronal, 2 axial. gain: arbitrary units per signal of reference tissue.
    """

    name: str = "reference-3T"
    field_t: float = 3.0
    mprage: bool = True
    t1: tuple[float, float] = (2000, 2.6)
    t2: tuple[float, float] = (5000, 95)
    flair: tuple[float, float] = (9000, 100)
    dynamic: tuple[float, float, float] = (4.1, 1.3, 12)
    body_t2: tuple[float, float] = (3500, 90)
    b_value: float = 700
    fat_suppression: float = 0.9
    noise: float = 0.02
    bias: float = 0.08
    curve: float = 1.0
    blur_mm: float = 0.6
    slice_mm: float = 1.0
    slice_axis: int = 2
    gain: float = 800


REFERENCE = Scanner()
# Spin echo cannot be half an MPRAGE: a spin-echo site is compared with this timing instead of the reference's.
SPIN_ECHO_T1 = (600.0, 12.0)

SCANNERS: dict[str, Scanner] = {
    s.name: s
    for s in (
        REFERENCE,
        Scanner("aster-3T", 3.0, True, (2000, 2.6), (5000, 95), (9000, 90), (4.1, 1.3, 12), (3500, 90), 800, 0.95,
                0.04, 0.20, 1.0, 0.6, 1.0, 2, 700),
        Scanner("birch-1.5T", 1.5, False, (600, 12), (4000, 102), (8000, 120), (4.6, 2.0, 15), (4500, 100), 500, 0.8,
                0.08, 0.15, 0.65, 1.4, 6.0, 2, 2100),
        Scanner("cedar-3T", 3.0, False, (700, 10), (3000, 80), (11000, 125), (3.6, 1.7, 10), (2500, 80), 1000, 0.9,
                0.06, 0.45, 1.5, 0.7, 4.0, 1, 350),
        Scanner("dune-0.5T", 0.5, False, (500, 15), (3500, 110), (7000, 110), (6.0, 2.6, 25), (3000, 70), 400, 0.6,
                0.15, 0.15, 0.9, 2.0, 7.0, 0, 1200),
        Scanner("ember-1.5T", 1.5, False, (450, 9), (6000, 120), (9500, 100), (5.2, 1.1, 9), (5500, 130), 700, 0.75,
                0.07, 0.30, 1.8, 1.1, 5.0, 2, 500),
        Scanner("fjord-3T", 3.0, True, (1900, 3.2), (4200, 85), (8500, 140), (3.9, 1.4, 13), (2000, 110), 900, 0.85,
                0.10, 0.38, 0.75, 0.9, 5.0, 0, 1600),
        Scanner("grove-1.5T", 1.5, False, (550, 14), (2800, 75), (7500, 95), (5.0, 2.3, 18), (3800, 65), 600, 0.7,
                0.11, 0.42, 1.25, 1.7, 6.0, 1, 950),
    )
}  # fmt: skip
MAKES = tuple(SCANNERS)[1:-1]
EXTERNAL = "grove-1.5T"

# Shares can only go up to 1, and the arbitrary gain is never scaled.
_CAP = {"fat_suppression": 1.0}
_FIXED = {"name", "mprage", "slice_axis", "gain"}


def scanner(name: str, strength: float) -> Scanner:
    """The settings of a scanner, `strength` of the way from the reference machine (0) to its own (1).

    Numbers move geometrically; at 0 all machines are the reference. Raises KeyError for an unknown name.
    """
    make, _, copy = name.partition("/")
    own = SCANNERS[make]
    if copy:
        own = _another(own, name)
    if strength == 0:
        return replace(REFERENCE, name=name)
    start = REFERENCE if own.mprage else replace(REFERENCE, t1=SPIN_ECHO_T1)
    values: dict[str, Any] = {"name": name}
    for f in fields(Scanner):
        if f.name in _FIXED:
            continue
        a, b = getattr(start, f.name), getattr(own, f.name)
        if isinstance(a, tuple):
            values[f.name] = tuple(x * (y / x) ** strength for x, y in zip(a, b, strict=True))
        else:
            values[f.name] = min(a * (b / a) ** strength, _CAP.get(f.name, np.inf))
    return replace(own, **values)


def _another(make: Scanner, name: str) -> Scanner:
    """Another machine of a make: timings off by about 10 %, artefacts by about 30 %, its own gain and slice axis."""
    seed = int.from_bytes(hashlib.sha256(f"scanner:{name}".encode()).digest()[:8])
    rng = np.random.default_rng(seed)

    def near(value: Any, sd: float) -> Any:
        if isinstance(value, tuple):
            return tuple(float(v * np.exp(rng.normal(0, sd))) for v in value)
        return float(value * np.exp(rng.normal(0, sd)))

    timings = {k: near(getattr(make, k), 0.1) for k in ("t1", "t2", "flair", "dynamic", "body_t2", "b_value")}
    artefacts = {k: near(getattr(make, k), 0.3) for k in ("noise", "bias", "blur_mm", "slice_mm")}
    return replace(
        make,
        **timings,
        **artefacts,
        curve=near(make.curve, 0.15),
        fat_suppression=min(1.0, near(make.fat_suppression, 0.05)),
        slice_axis=int(rng.integers(3)),
        gain=float(np.exp(rng.uniform(np.log(200), np.log(3000)))),
    )
