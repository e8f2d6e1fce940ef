"""What `medmap-client qc` says of clean simulated volumes, how many swapped names it finds, and what it costs.

python -m benchmarks.qc            # three to ten minutes; prints the figures of docs/qc.md
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
SCANNERS = {
    "brain": ("reference-3T", "aster-3T"),
    "liver": ("aster-3T",),
}  # swaps are as easy to find as a scanner makes them
SWAPS = {
    "brain": (("T1", "T2"), ("T2", "FLAIR"), ("T1", "FLAIR")),
    "liver": (("T2WI", "InPhase"), ("DWI", "C-pre"), ("C-pre", "C+V")),
}
TRIALS = 20


def measured(product: str, organ: str, scanner: str, folder: Path, limits: Limits) -> list[Volume]:
    """The volumes of a hospital; prints what was said of them."""
    vocabulary, (size, counts) = load_vocabulary("medmom"), PRODUCTS[product]
    mix = {kind: 1 / len(KINDS[organ]) for kind in KINDS[organ]}
    share = OrganShare(counts[organ], 0, 0, 0, vocabulary.organs[organ].modalities, mix)
    spec = SiteSpec(organ, scanner, {organ: share})
    generate([spec], PhantomConfig(workers=1, product=product, size=size), vocabulary, folder, seed=3)
    begun = time.process_time()
    found = examine(folder / "manifest.csv", vocabulary, limits, progress=Console(quiet=True))
    spent = time.process_time() - begun
    said = Counter(f"{r.grade} {r.check}" for r in found.remarks)
    print(
        f"{product}, {organ}, {scanner}: {len(found.volumes)} clean volumes, {spent:.1f} s of processor time; "
        f"{dict(said) or 'no remark'}"
    )
    return found.volumes


def swaps(volumes: list[Volume], organ: str, limits: Limits) -> None:
    """One patient's two names are swapped, several times; prints how often both sides were found, and what else was doubted."""
    features, patients = np.stack([v.features for v in volumes]), [v.study.patient_id for v in volumes]
    place = {(v.study.patient_id, v.modality): i for i, v in enumerate(volumes)}
    rng = np.random.default_rng(0)
    for a, b in SWAPS[organ]:
        hits = extra = 0
        for patient in rng.choice(sorted(set(patients)), TRIALS):
            names, swapped = [v.modality for v in volumes], {place[patient, a], place[patient, b]}
            names[place[patient, a]], names[place[patient, b]] = b, a
            found = {doubt.place for doubt in doubts(features, names, patients, limits.labels)}
            hits, extra = hits + len(found & swapped), extra + len(found - swapped)
        print(f"  {a} and {b} swapped: {hits} of {2 * TRIALS} found, {extra} others doubted")


def main() -> None:
    """Print everything."""
    limits = read_limits()
    for product in PRODUCTS:
        for organ, scanners in SCANNERS.items():
            for scanner in scanners:
                with tempfile.TemporaryDirectory() as folder:
                    volumes = measured(product, organ, scanner, Path(folder), limits)
                swaps(volumes, organ, limits)


if __name__ == "__main__":
    main()
