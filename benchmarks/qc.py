"""What `medmap-client qc` says of clean simulated volumes, how many swapped names it finds, and what it costs.

python -m benchmarks.qc            # two to five minutes; prints the figures of docs/qc.md
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from rich.console import Console

from client.qc.labels import doubts
from client.qc.limits import Limits, read_limits
from client.qc.remarks import Volume
from client.qc.run import examine
from configs import load_vocabulary
from configs.schema import PhantomConfig
from simulation.phantom import KINDS, generate
from simulation.sites import OrganShare, SiteSpec

PRODUCTS = {"regions": (24, {"brain": 48, "liver": 48}), "full": (96, {"brain": 18, "liver": 10})}  # voxels; patients
SCANNERS = {"brain": "reference-3T", "liver": "aster-3T"}
SWAPS = (("T1", "T2"), ("T2", "FLAIR"), ("T1", "FLAIR"))
TRIALS = 20


def measured(product: str, folder: Path, limits: Limits) -> list[Volume]:
    """The volumes of both hospitals, one per organ; prints what was said of them."""
    vocabulary, (size, counts) = load_vocabulary("medmom"), PRODUCTS[product]
    specs = []
    for organ, patients in counts.items():
        mix = {kind: 1 / len(KINDS[organ]) for kind in KINDS[organ]}
        share = OrganShare(patients, 0, 0, 0, vocabulary.organs[organ].modalities, mix)
        specs.append(SiteSpec(organ, SCANNERS[organ], {organ: share}))
    generate(specs, PhantomConfig(workers=1, product=product, size=size), vocabulary, folder, seed=3)
    begun = time.process_time()
    found = examine(folder / "manifest.csv", vocabulary, limits, progress=Console(quiet=True))
    spent = time.process_time() - begun
    said = Counter(f"{r.grade} {r.check}" for r in found.remarks)
    print(
        f"{product}: {len(found.volumes)} clean volumes, {spent:.1f} s of processor time; {dict(said) or 'no remark'}"
    )
    return found.volumes


def swaps(volumes: list[Volume], limits: Limits) -> None:
    """One patient's two names are swapped, several times; prints how often both sides were found, and what else was doubted."""
    brains = [v for v in volumes if v.study.organ == "brain"]
    features, patients = np.stack([v.features for v in brains]), [v.study.patient_id for v in brains]
    place = {(v.study.patient_id, v.modality): i for i, v in enumerate(brains)}
    rng = np.random.default_rng(0)
    for a, b in SWAPS:
        hits = extra = 0
        for patient in rng.choice(sorted(set(patients)), TRIALS):
            names, swapped = [v.modality for v in brains], {place[patient, a], place[patient, b]}
            names[place[patient, a]], names[place[patient, b]] = b, a
            found = {doubt.place for doubt in doubts(features, names, patients, limits.labels)}
            hits, extra = hits + len(found & swapped), extra + len(found - swapped)
        print(f"  {a} and {b} swapped: {hits} of {2 * TRIALS} found, {extra} others doubted")


def main() -> None:
    """Print everything."""
    limits = read_limits()
    for product in PRODUCTS:
        with tempfile.TemporaryDirectory() as folder:
            volumes = measured(product, Path(folder), limits)
        swaps(volumes, limits)


if __name__ == "__main__":
    main()
