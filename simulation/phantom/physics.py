"""MR signal equations: tissue parameters (K,) -> signal of each tissue (K,), relative to proton density 1.

Times in ms, flip angles in degrees, contrast agent in mmol/l. Textbook forms (Bernstein, King, Zhou: Handbook of MRI
Pulse Sequences, 2004); relaxation times at 3 T are typical literature values, scaled to other fields.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

# Longitudinal relaxivity of a gadolinium chelate, per (mmol/l) and s; plasma at 37 C is 3.5 to 5.
RELAXIVITY = 4.3
FAT_T1_MS = 350.0
WATER_LIKE_T1_MS = 2500.0  # free fluid hardly changes T1 with the field


@dataclass(frozen=True)
class Tissues:
    """Relaxation times, proton density, fat share and diffusivity (1e-3 mm2/s) of K tissues, each (K,)."""

    t1_ms: Vector
    t2_ms: Vector
    density: Vector
    fat: Vector
    diffusivity: Vector

    def at_field(self, field_t: float) -> Tissues:
        """The same tissues at another field: T1 of solid tissue grows as its cube root, T2 shrinks a little."""
        ratio = field_t / 3.0
        solid = self.t1_ms < WATER_LIKE_T1_MS
        return replace(
            self,
            t1_ms=np.where(solid, self.t1_ms * ratio**0.33, self.t1_ms),
            t2_ms=np.where(solid, self.t2_ms * ratio**-0.1375, self.t2_ms),
        )

    def vary(self, rng: np.random.Generator, sd: float) -> Tissues:
        """One patient's tissues: every value off by a factor of standard deviation `sd`."""
        t1, t2, adc = np.clip(rng.normal(1, sd, (3, len(self.t1_ms))), 1 - 3 * sd, 1 + 3 * sd)
        return replace(self, t1_ms=self.t1_ms * t1, t2_ms=self.t2_ms * t2, diffusivity=self.diffusivity * adc)

    def with_contrast(self, agent_mmol: Vector) -> Tissues:
        """T1 shortened by contrast agent of a concentration per tissue."""
        return replace(self, t1_ms=1 / (1 / self.t1_ms + agent_mmol * RELAXIVITY / 1000))


def spin_echo(tissues: Tissues, *, tr_ms: float, te_ms: float) -> Vector:
    """Spin echo (also fast spin echo at its effective echo time)."""
    recovery = 1 - np.exp(-tr_ms / tissues.t1_ms)
    return tissues.density * recovery * np.exp(-te_ms / tissues.t2_ms)


def inversion_spin_echo(tissues: Tissues, *, tr_ms: float, te_ms: float, ti_ms: float) -> Vector:
    """Inversion recovery spin echo, magnitude."""
    t1 = tissues.t1_ms
    recovery = np.abs(1 - 2 * np.exp(-ti_ms / t1) + np.exp(-tr_ms / t1))
    return tissues.density * recovery * np.exp(-te_ms / tissues.t2_ms)


def nulling_time(t1_ms: float, *, tr_ms: float) -> float:
    """Inversion time at which `inversion_spin_echo` gives no signal for a T1: how FLAIR suppresses fluid."""
    return float(t1_ms * np.log(2 / (1 + np.exp(-tr_ms / t1_ms))))


def mprage(tissues: Tissues, *, tr_ms: float, te_ms: float, ti_ms: float = 900.0) -> Vector:
    """Inversion-prepared gradient echo at its k-space centre, magnitude."""
    t1 = tissues.t1_ms
    recovery = np.abs(1 - 2 * np.exp(-ti_ms / t1) / (1 + np.exp(-tr_ms / t1)))
    return tissues.density * recovery * np.exp(-te_ms / tissues.t2_ms)


def _spoiled(t1_ms: Vector | float, tr_ms: float, flip_deg: float) -> Vector:
    flip, decay = np.deg2rad(flip_deg), np.exp(-tr_ms / np.asarray(t1_ms, np.float64))
    return np.asarray(np.sin(flip) * (1 - decay) / (1 - np.cos(flip) * decay))


def spoiled_gradient_echo(
    tissues: Tissues, *, tr_ms: float, te_ms: float, flip_deg: float, fat_suppression: float
) -> Vector:
    """3D T1-weighted spoiled gradient echo with fat suppression (1: no fat signal). T2* is taken as 0.6 T2."""
    water = _spoiled(tissues.t1_ms, tr_ms, flip_deg) * (1 - tissues.fat)
    fat = _spoiled(FAT_T1_MS, tr_ms, flip_deg) * tissues.fat * (1 - fat_suppression)
    return tissues.density * (water + fat) * np.exp(-te_ms / (0.6 * tissues.t2_ms))


def dixon(tissues: Tissues, *, opposed: bool, tr_ms: float = 120.0, flip_deg: float = 60.0) -> Vector:
    """Dual-echo gradient echo: water and fat add (in phase) or cancel (opposed phase)."""
    water = tissues.density * (1 - tissues.fat) * _spoiled(tissues.t1_ms, tr_ms, flip_deg)
    fat = tissues.density * tissues.fat * _spoiled(FAT_T1_MS, tr_ms, flip_deg)
    echo_ms = 1.15 if opposed else 2.3
    return np.abs(water - fat if opposed else water + fat) * np.exp(-echo_ms / (0.6 * tissues.t2_ms))


def fat_suppressed_t2(tissues: Tissues, *, tr_ms: float, te_ms: float, fat_suppression: float) -> Vector:
    """T2-weighted fast spin echo with fat suppression."""
    return spin_echo(tissues, tr_ms=tr_ms, te_ms=te_ms) * (1 - tissues.fat * fat_suppression)


def diffusion(tissues: Tissues, *, b_value: float, te_ms: float = 65.0) -> Vector:
    """Diffusion-weighted echo-planar image at a b-value in s/mm2; fat is fully suppressed."""
    weighting = np.exp(-te_ms / tissues.t2_ms) * np.exp(-b_value * tissues.diffusivity / 1000)
    return tissues.density * weighting * (1 - tissues.fat)
