"""CPU time of the phantom: milliseconds per study to simulate and to write, by product, size and organ, on one core.

python -m benchmarks.phantom            # a few studies of each
python -m benchmarks.phantom --studies 40
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from configs.schema import PhantomConfig
from simulation.phantom import dataset
from simulation.phantom.kinds import KINDS
from simulation.phantom.plan import single_case
from simulation.phantom.scanners import MAKES
from simulation.phantom.study import make_study
from simulation.phantom.tissues import MODALITIES

SHAPES = (("regions", 16), ("regions", 24), ("regions", 32), ("regions", 48), ("regions", 64), ("full", 96))


def measure(organ: str, config: PhantomConfig, studies: int, folder: Path) -> tuple[float, float, float]:
    """Mean CPU ms to simulate, mean CPU ms to simulate and write, and kB on disk, per study with all modalities."""
    kinds = list(KINDS[organ])
    cases = [
        single_case(organ, kinds[i % len(kinds)], f"{organ}-{config.size}-{i}", scanner=MAKES[i % len(MAKES)])
        for i in range(studies)
    ]
    make_study(cases[0], config, seed=0)  # reads the template
    start = time.process_time()
    for case in cases:
        make_study(case, config, seed=0)
    simulated = time.process_time()
    for case in cases:
        dataset.write_patient(dataset.Job(case, config, folder, 0, False))
    written = time.process_time()
    size = sum(p.stat().st_size for c in cases for p in (folder / c.patient_id).iterdir())
    return 1e3 * (simulated - start) / studies, 1e3 * (written - simulated) / studies, size / studies / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=14, help="per row; a full view takes a third of it")
    studies = parser.parse_args().studies
    print("CPU ms per study, one core; all modalities (brain 4, liver 8)")
    print(f"{'product':9}{'size':>5}  {'organ':7}{'volumes':>8}{'simulate':>10}{'with writing':>14}{'kB':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for product, size in SHAPES:
            for organ in KINDS:
                config = PhantomConfig(product=product, size=size)
                count = studies if product == "regions" else max(3, studies // 3)
                simulated, total, kilobytes = measure(organ, config, count, Path(folder))
                row = f"{product:9}{size:>5}  {organ:7}{len(MODALITIES[organ]):>8}"
                print(f"{row}{simulated:>10.1f}{total:>14.1f}{kilobytes:>8.0f}", flush=True)


if __name__ == "__main__":
    main()
