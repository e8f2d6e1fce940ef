"""Peak memory of a site against its number of patients: phantom brains on disk in; a table of MB and of patients per second out.

    python -m benchmarks.memory                     100 and 1000 patients x 4 modalities, 24^3 voxels
    python -m benchmarks.memory --patients 50 500 --cache-gb 0.05

Each site is opened (cold: every volume is prepared) and two passes are made, in a process of its own, with 16 MB of cubes held in
memory. Reports are there, their embeddings are of MiniLM's width.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

WIDTH = 384  # of a report's embedding


def write_patients(folder: Path, patients: int) -> Path:
    """A site of phantom brains that all train; the path of its manifest."""
    from configs import load_vocabulary
    from configs.schema import PhantomConfig, SitesConfig
    from simulation.phantom import generate
    from simulation.sites import plan_sites

    vocabulary = load_vocabulary("medmom")
    config = SitesConfig(
        kind="iid", count=1, organs=["brain"], patients=patients, validation_patients=0, test_patients=0,
        common_patients=0, external_patients=0,
    )  # fmt: skip
    specs = plan_sites(config, vocabulary, seed=0)
    return generate(specs, PhantomConfig(), vocabulary, folder, seed=0) / specs[0].name / "manifest.csv"


def measure(manifest: Path, cache: Path, cache_gb: float) -> dict[str, float]:
    """In this process: peak MB before, after opening and after two passes; seconds of opening and of a pass."""
    import torch

    from client.records import SiteRecords
    from configs import load_vocabulary
    from configs.schema import VolumesConfig

    torch.set_num_threads(1)
    before, begun = _peak_mb(), time.perf_counter()
    records = SiteRecords(
        [manifest], vocabulary=load_vocabulary("medmom"), volumes=VolumesConfig(memory_mb=16, cache_gb=cache_gb),
        embed=lambda texts: torch.zeros(len(texts), WIDTH), cache_dir=cache,
    )  # fmt: skip
    opened, opened_mb = time.perf_counter(), _peak_mb()
    for epoch in range(2):
        assert sum(len(b) for b in records.train_batches(batch_size=8, seed=epoch, augment=None))
    spent = time.perf_counter() - opened
    return {
        "before": before, "opened": opened_mb, "peak": _peak_mb(), "open_s": opened - begun, "pass_s": spent / 2,
        "disk": sum(p.stat().st_size for p in (cache / "cubes").rglob("*") if p.is_file()) / 1e6,
    }  # fmt: skip


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--cache-gb", type=float, default=0.0, help="bound on the disk; 0: none")
    parser.add_argument("--measure", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        manifest, cache = args.measure
        print(json.dumps(measure(manifest, cache, args.cache_gb)))
        return
    table = Table(
        "patients", "MB before", "opened", "after two passes", "open, s", "pass, s", "cubes on disk, MB", box=box.SIMPLE
    )
    with tempfile.TemporaryDirectory() as folder:
        for patients in args.patients:
            place = Path(folder) / str(patients)
            manifest = write_patients(place / "data", patients)
            command = [sys.executable, "-m", "benchmarks.memory", "--cache-gb", str(args.cache_gb), "--measure"]
            shown = subprocess.run(
                [*command, str(manifest), str(place / "cache")], check=True, capture_output=True, text=True
            ).stdout
            r = json.loads(shown)
            row = [f"{r[k]:.0f}" for k in ("before", "opened", "peak")] + [
                f"{r[k]:.1f}" for k in ("open_s", "pass_s", "disk")
            ]
            table.add_row(str(patients), *row)
    Console().print(table)


if __name__ == "__main__":
    main()
