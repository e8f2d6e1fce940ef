"""How long a manifest takes: generated tables and headers in; a table of processor seconds by rows out.

    python -m benchmarks.manifest                    8, 10,000 and 100,000 rows
    python -m benchmarks.manifest --rows 1000000

Each patient has the 8 phases of the liver and a report. `read` is the manifest without looking for its files, `found`
looks for each of them, `check` is `medmap-client check --headers-only`, which opens every volume, and `write` is what
`medmap-client ingest` writes. Seconds of the processor, to which other jobs and the disk add nothing; the volumes are
links to a few files of 8^3 voxels.
"""

from __future__ import annotations

import argparse
import gzip
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from client.check import check_site
from client.manifest import read_manifest
from client.sources.found import Found, Row, settle
from client.sources.write import write_manifest
from configs import load_vocabulary
from configs.schema import VolumesConfig

WORDS = load_vocabulary("medmom")
_LINKS = 10_000  # to one file: more than most disks allow are not needed
MODALITIES = WORDS.organs["liver"].modalities


def found_in(folder: Path, rows: int) -> Found:
    """Rows of a source, and the files that they name."""
    values = np.random.default_rng(0).integers(0, 99, (8, 8, 8)).astype(np.int16)
    volume = gzip.compress(nib.Nifti1Image(values, np.diag([4.0, 4, 4, 1])).to_bytes(), 1)
    found = Found()
    for i in range(rows):
        path = folder / f"{i // _LINKS}" / f"{i}.nii.gz"
        if i % _LINKS == 0:
            path.parent.mkdir()
            path.write_bytes(volume)
            first = path
        else:
            os.link(first, path)
        patient, modality = f"P{i // len(MODALITIES)}", MODALITIES[i % len(MODALITIES)]
        report = f"Lesion of {i // len(MODALITIES) % 40} mm in the right lobe, hyperintense on T2."
        found.rows.append(Row(patient, "A", modality, path, "liver", "hcc", report=report, site="north", split="train"))
    return found


def seconds(work: Callable[[], Any]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def measure(rows: int) -> dict[str, float]:
    """Column of the table -> seconds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found, path = found_in(folder, rows), folder / "manifest.csv"
        config, quiet = VolumesConfig(size=8), Console(quiet=True)
        return {
            "write": seconds(lambda: write_manifest(settle(found, WORDS).rows, path)),
            "read": seconds(lambda: read_manifest(path, WORDS, check_files=False)),
            "found": seconds(lambda: read_manifest(path, WORDS)),
            "check": seconds(lambda: check_site(path, WORDS, config, headers_only=True, progress=quiet)),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 10_000, 100_000])
    table = Table("rows", "write", "read", "found", "check", box=box.SIMPLE)
    for rows in parser.parse_args().rows:
        spent = measure(rows)
        table.add_row(f"{rows:,}", *(f"{spent[name]:.2f} s" for name in ("write", "read", "found", "check")))
    Console().print(table)


if __name__ == "__main__":
    main()
