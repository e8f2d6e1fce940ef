"""Tissue tables at 3 T and each hospital's protocol: scanner and modalities -> signal of every tissue, (M, K).

Columns: T1 and T2 in ms, proton density, fat share, diffusivity in 1e-3 mm2/s, contrast agent in mmol/l (brain: after
injection; liver: arterial, portal venous, delayed). Values are textbook-typical, lesions chosen so that the enhancement
pattern of each class follows from the equations (LI-RADS v2018 terms for the liver).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from simulation.phantom import physics
from simulation.phantom.grid import Array, Rng
from simulation.phantom.physics import Tissues
from simulation.phantom.scanners import Scanner

BRAIN_BASE = ("gm", "wm", "csf")
BRAIN: dict[str, tuple[float, ...]] = {
    "gm": (1400, 95, 0.82, 0, 0.8, 0.006),
    "wm": (850, 72, 0.70, 0, 0.7, 0.004),
    "csf": (4200, 1600, 1.00, 0, 3.0, 0),
    "necrosis": (2600, 350, 0.92, 0, 2.2, 0.01),
    "tumour_rim": (1500, 110, 0.85, 0, 1.0, 0.42),
    "brain_oedema": (1350, 150, 0.88, 0, 1.5, 0.006),
    "glioma": (1550, 145, 0.87, 0, 1.4, 0.005),
    "meningioma": (1400, 92, 0.80, 0, 0.9, 0.50),
    "spot": (1350, 135, 0.84, 0, 1.2, 0.004),
}
# The first fifteen are the labels of the abdominal template, in its order.
LIVER_BASE = (
    "air", "fat", "muscle", "liver", "spleen", "kidney_cortex", "kidney_medulla", "artery", "vein", "portal_vein",
    "bone", "csf", "bowel", "gallbladder", "pancreas",
)  # fmt: skip
LIVER: dict[str, tuple[float, ...]] = {
    "air": (1000, 1, 0, 0, 3, 0, 0, 0),
    "fat": (380, 70, 0.95, 0.92, 0.3, 0, 0.02, 0.02),
    "muscle": (1400, 33, 0.72, 0.02, 1.5, 0.05, 0.15, 0.20),
    "liver": (800, 36, 0.78, 0.06, 1.1, 0.15, 0.75, 0.55),
    "spleen": (1320, 62, 0.83, 0, 0.85, 0.95, 0.90, 0.60),
    "kidney_cortex": (1150, 78, 0.85, 0, 1.9, 1.5, 1.2, 0.9),
    "kidney_medulla": (1550, 82, 0.87, 0, 2.0, 0.25, 1.0, 1.1),
    "artery": (1850, 140, 0.90, 0, 2.2, 2.2, 1.2, 0.8),
    "vein": (1850, 130, 0.90, 0, 2.2, 0.25, 1.35, 0.85),
    "portal_vein": (1850, 130, 0.90, 0, 2.2, 0.45, 1.4, 0.85),
    "bone": (590, 50, 0.55, 0.5, 0.5, 0.1, 0.25, 0.25),
    "csf": (4000, 1500, 1, 0, 3, 0, 0, 0),
    "bowel": (2200, 300, 0.90, 0.02, 2.4, 0.02, 0.03, 0.03),
    "gallbladder": (2800, 800, 0.97, 0, 2.9, 0, 0, 0),
    "pancreas": (730, 46, 0.80, 0.06, 1.3, 0.8, 0.6, 0.45),
    "hcc": (1050, 62, 0.84, 0.10, 0.95, 1.05, 0.42, 0.25),
    "hcc_capsule": (1000, 55, 0.80, 0.03, 1.0, 0.2, 0.8, 0.95),
    "hemangioma_nodule": (1500, 190, 0.92, 0, 1.8, 1.9, 1.4, 1.0),
    "hemangioma": (1550, 190, 0.92, 0, 1.9, 0.03, 0.25, 0.85),
    "cyst": (3200, 900, 0.99, 0, 2.9, 0, 0, 0),
    "fnh": (870, 46, 0.80, 0.05, 1.15, 1.3, 0.80, 0.60),
    "fnh_scar": (1500, 110, 0.86, 0, 1.6, 0.05, 0.30, 0.95),
    "metastasis_rim": (1150, 75, 0.85, 0, 0.85, 0.65, 0.6, 0.35),
    "metastasis_core": (1350, 95, 0.86, 0, 1.15, 0.05, 0.18, 0.22),
    "icc_rim": (1150, 80, 0.85, 0, 0.95, 0.45, 0.5, 0.55),
    "icc_core": (1300, 95, 0.86, 0, 1.25, 0.06, 0.45, 1.15),
    "abscess_wall": (1250, 95, 0.86, 0, 1.3, 0.85, 1.0, 1.0),
    "pus": (2000, 220, 0.94, 0, 0.55, 0, 0, 0),
    "liver_oedema": (1100, 62, 0.83, 0, 1.4, 0.6, 0.75, 0.55),
}
TABLES = {"brain": BRAIN, "liver": LIVER}
BASE = {"brain": BRAIN_BASE, "liver": LIVER_BASE}
# Signals are relative to the mean of these: an organ's everyday brightness.
REFERENCE_TISSUE = {"brain": ("gm", "wm"), "liver": ("liver", "spleen")}
MODALITIES = {
    "brain": ("T1", "T1ce", "T2", "FLAIR"),
    "liver": ("T2WI", "DWI", "InPhase", "OutPhase", "C-pre", "C+A", "C+V", "C+Delay"),
}
# Column of the contrast agent behind each phase; None: before injection.
_AGENT = {"T1ce": 0, "C+A": 0, "C+V": 1, "C+Delay": 2}
_VARIATION = 0.06  # between patients, of every tissue parameter


def index(organ: str) -> dict[str, int]:
    """Tissue name -> position in the tables."""
    return {name: i for i, name in enumerate(TABLES[organ])}


class Body:
    """One patient's tissues: what every scanner would find in the same patient."""

    def __init__(self, organ: str, rng: Rng) -> None:
        table = np.array(list(TABLES[organ].values()), np.float64).T
        self.organ = organ
        self.tissues = Tissues(*table[:5]).vary(rng, _VARIATION)
        agent = table[5:].T
        # Uptake varies by tissue, and the timing of each phase shifts it for all tissues at once.
        timing = rng.normal(1, 0.25 if organ == "brain" else 0.12, agent.shape[1])
        self.agent = agent * np.clip(rng.normal(1, 0.1, agent.shape), 0.7, 1.3) * np.clip(timing, 0.4, 1.6)
        if organ == "liver":  # from lean to fatty livers
            fat = self.tissues.fat.copy()
            fat[index("liver")["liver"]] = np.clip(np.exp(rng.normal(np.log(0.05), 0.5)), 0.02, 0.2)
            self.tissues = Tissues(
                self.tissues.t1_ms, self.tissues.t2_ms, self.tissues.density, fat, self.tissues.diffusivity
            )

    def signals(self, modalities: Sequence[str], scanner: Scanner) -> Array:
        """Signal of every tissue in every modality, relative to the organ's reference tissue, (M, K)."""
        tissues = self.tissues.at_field(scanner.field_t)
        rows = [self._signal(m, tissues, scanner) for m in modalities]
        names = index(self.organ)
        reference = [names[name] for name in REFERENCE_TISSUE[self.organ]]
        return np.stack([row / row[reference].mean() for row in rows]).astype(np.float32)

    def _signal(self, modality: str, tissues: Tissues, s: Scanner) -> NDArray[np.float64]:
        if modality in _AGENT:
            tissues = tissues.with_contrast(self.agent[:, _AGENT[modality]])
        match modality:
            case "T1" | "T1ce":
                if s.mprage:
                    return physics.mprage(tissues, tr_ms=s.t1[0], te_ms=s.t1[1])
                return physics.spin_echo(tissues, tr_ms=s.t1[0], te_ms=s.t1[1])
            case "T2":
                return physics.spin_echo(tissues, tr_ms=s.t2[0], te_ms=s.t2[1])
            case "FLAIR":
                fluid = physics.nulling_time(BRAIN["csf"][0], tr_ms=s.flair[0])
                return physics.inversion_spin_echo(tissues, tr_ms=s.flair[0], te_ms=s.flair[1], ti_ms=fluid)
            case "T2WI":
                return physics.fat_suppressed_t2(
                    tissues, tr_ms=s.body_t2[0], te_ms=s.body_t2[1], fat_suppression=s.fat_suppression
                )
            case "DWI":
                return physics.diffusion(tissues, b_value=s.b_value)
            case "InPhase" | "OutPhase":
                return physics.dixon(tissues, opposed=modality == "OutPhase")
        tr, te, flip = s.dynamic
        return physics.spoiled_gradient_echo(
            tissues, tr_ms=tr, te_ms=te, flip_deg=flip, fat_suppression=s.fat_suppression
        )
