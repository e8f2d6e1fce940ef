"""How long many volumes take `medmap-client`: generated files in; a table of seconds and of peak memory by volumes out.

    python -m benchmarks.manifest                    8, 10,000 and 100,000 volumes
    python -m benchmarks.manifest --volumes 1000000

Each patient has the four modalities of a BraTS case. Each volume, 8^3 voxels, is a file of its own and lies elsewhere in its
scanner, as no two real ones lie alike. `ingest` is `medmap-client ingest brats`, `check` is `medmap-client check
--headers-only`, which opens every volume: each a process of its own, Python's start included. `cpu` are seconds of the
processor, to which other jobs and the disk add nothing: the files were just written, so that they come from memory.
Writes benchmarks/results/manifest.csv.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import resource
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results" / "manifest.csv"
KINDS = ("flair", "t1", "t1ce", "t2")
_ORIGIN_AT = (292, 308, 324)  # bytes of the sform's last column in a NIfTI-1 header


def write_volumes(folder: Path, count: int) -> None:
    """FOLDER/BraTS2021_00000/BraTS2021_00000_t1.nii.gz and so on."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 99, (8, 8, 8)).astype(np.int16)
    plain = bytearray(nib.Nifti1Image(values, np.diag([4.0, 4, 4, 1])).to_bytes())
    for i in range(count):
        case = f"BraTS2021_{i // len(KINDS):05d}"
        for place in _ORIGIN_AT:
            struct.pack_into("<f", plain, place, rng.normal())
        path = folder / case / f"{case}_{KINDS[i % len(KINDS)]}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(plain, 1))


def spent(*arguments: str) -> dict[str, float]:
    """Of a command of medmap-client, in a process of its own."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.manifest", "--measure", *arguments]
    shown = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    wall_s = time.perf_counter() - begun
    return {**json.loads(shown.splitlines()[-1]), "wall_s": wall_s}


def measure(arguments: list[str]) -> None:
    """Run the command in this process, and print what it took."""
    from client.cli import app

    try:
        app(arguments)
    except SystemExit as ended:
        if ended.code:
            raise
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"cpu_s": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss / 1e3}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, nargs="+", default=[8, 10_000, 100_000])
    parser.add_argument("--measure", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return measure(args.measure)
    rows = []
    for count in args.volumes:
        with tempfile.TemporaryDirectory() as name:
            data, manifest = Path(name) / "data", Path(name) / "manifest.csv"
            write_volumes(data, count)
            for command in (
                ("ingest", "brats", str(data), "-o", str(manifest)),
                ("check", str(manifest), "--headers-only"),
            ):
                used = {what: round(value, 2) for what, value in spent(*command).items()}
                rows.append({"volumes": count, "command": command[0], **used})
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    table = Table(*rows[0], box=box.SIMPLE)
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
