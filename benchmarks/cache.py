"""First epoch against the later ones: small generated .nii.gz files in; a table of seconds and ratios out.

    python -m benchmarks.cache                     60 patients x 4 modalities, 48^3 voxels of 2 mm
    python -m benchmarks.cache --voxels 24 --spacing-mm 4     files that need no resampling

An epoch hands out every training patient once, in batches of 8, without augmentation. The scans are moved away
before the second epoch, so that nothing can read them. MONAI does the same work with its own transforms and
PersistentDataset. nibabel reads the files alone, each epoch anew, without a transform. GB/s: of float32 cubes handed out;
of nibabel, of the float32 volumes that it read.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.ndimage import gaussian_filter

from client.records import SiteRecords
from configs import load_vocabulary
from configs.schema import VolumesConfig

MODALITIES = ("T1", "T1ce", "T2", "FLAIR")
BATCH = 8
VOLUMES = VolumesConfig(spacing_mm=4.0, size=24, crop="centre")


def write_site(folder: Path, *, patients: int, voxels: int, spacing_mm: float) -> Path:
    """A manifest and its volumes: smooth noise, int16, as a scanner's export."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    base = [gaussian_filter(rng.random((voxels,) * 3), 2) for _ in range(8)]
    affine = np.diag([spacing_mm] * 3 + [1.0])
    manifest = folder / "manifest.csv"
    with manifest.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["patient_id", "study_id", "modality", "image", "split"])
        for patient in range(patients):
            for modality in MODALITIES:
                values = (base[rng.integers(8)] * 4000 + rng.normal(0, 40, (voxels,) * 3)).clip(0).astype(np.int16)
                name = f"{patient}-{modality}.nii.gz"
                (folder / name).write_bytes(gzip.compress(nib.Nifti1Image(values, affine).to_bytes(), 1))
                writer.writerow([f"P{patient}", "A", modality, name, "train"])
    return manifest


def seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def best_of(work: Callable[[], Any], repeats: int = 5) -> float:
    """The least of several: other jobs on the machine only ever add."""
    return min(seconds(work) for _ in range(repeats))


def ours(manifest: Path, cache: Path) -> Iterator[tuple[str, float]]:
    """(what, seconds) of this project."""

    def records(memory_mb: int = 2048) -> SiteRecords:
        volumes = VolumesConfig(**{**vars(VOLUMES), "memory_mb": memory_mb})
        words = load_vocabulary("medmom")
        return SiteRecords(
            [manifest], vocabulary=words, volumes=volumes, embed=lambda t: torch.zeros(len(t), 8), cache_dir=cache
        )

    def epoch(site: SiteRecords) -> None:
        assert sum(1 for _ in site.train_batches(batch_size=BATCH, seed=0, augment=None))

    held: list[SiteRecords] = []

    def first() -> None:
        held.append(records())
        epoch(held[0])

    yield "first epoch", seconds(first)
    yield "warm start", best_of(lambda: epoch(records()))
    with moved_away(manifest.parent):
        yield "second epoch", best_of(lambda: epoch(held[0]))
        on_disk = held.pop()
        on_disk._in_memory.clear()
        yield "second epoch, from disk", best_of(lambda: epoch(on_disk))


def monai(manifest: Path, cache: Path) -> Iterator[tuple[str, float]]:
    """(what, seconds) of MONAI's PersistentDataset."""
    from monai import transforms as t
    from monai.data import DataLoader, PersistentDataset

    keys, edge = list(MODALITIES), [VOLUMES.size] * 3
    chain = t.Compose(
        [
            t.LoadImaged(keys, ensure_channel_first=True),
            t.Orientationd(keys, axcodes="RAS", labels=None),
            t.Spacingd(keys, pixdim=[VOLUMES.spacing_mm] * 3),
            t.ScaleIntensityRangePercentilesd(keys, 0.5, 99.5, 0.0, 1.0, clip=True),
            t.ResizeWithPadOrCropd(keys, edge),
            t.ConcatItemsd(keys, "volumes"),
            t.SelectItemsd(["volumes"]),
        ]
    )
    patients: dict[str, dict[str, str]] = {}
    with manifest.open(newline="") as file:
        for row in csv.DictReader(file):
            patients.setdefault(row["patient_id"], {})[row["modality"]] = str(manifest.parent / row["image"])
    data = PersistentDataset(list(patients.values()), chain, cache_dir=cache)

    def epoch() -> None:
        for batch in DataLoader(data, batch_size=BATCH, shuffle=True):
            assert batch["volumes"].shape[1:] == (len(keys), *edge)

    yield "first epoch", seconds(epoch)
    with moved_away(manifest.parent):
        yield "second epoch", best_of(epoch, 3)


def nibabel(manifest: Path, cache: Path) -> Iterator[tuple[str, float]]:
    """(what, seconds) of reading every file."""
    with manifest.open(newline="") as file:
        images = [manifest.parent / row["image"] for row in csv.DictReader(file)]

    def epoch() -> None:
        for image in images:
            assert np.asarray(nib.load(image).dataobj, np.float32).ndim == 3  # type: ignore[attr-defined]

    yield "first epoch", seconds(epoch)
    yield "second epoch", best_of(epoch, 3)


class moved_away:
    """The scans are not there for as long as this lasts."""

    def __init__(self, folder: Path) -> None:
        self.names = folder, folder.with_name(folder.name + "-away")

    def __enter__(self) -> None:
        self.names[0].rename(self.names[1])

    def __exit__(self, *_: object) -> None:
        self.names[1].rename(self.names[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=60)
    parser.add_argument("--voxels", type=int, default=48, help="edge of a generated volume")
    parser.add_argument("--spacing-mm", type=float, default=2.0, help="its voxel size")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("", "", "seconds", "volumes/s", "GB/s", "first/this", box=box.SIMPLE)
    volumes = args.patients * len(MODALITIES)
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder) / "site"
        manifest = write_site(site, patients=args.patients, voxels=args.voxels, spacing_mm=args.spacing_mm)
        for name, work in (("MedMAP-FL", ours), ("MONAI PersistentDataset", monai), ("nibabel", nibabel)):
            edge = args.voxels if work is nibabel else VOLUMES.size
            first = 0.0
            for what, spent in work(manifest, Path(folder) / name):
                first = first or spent
                rate = volumes / spent
                gigabytes = rate * edge**3 * 4 / 1e9
                table.add_row(name, what, f"{spent:.4f}", f"{rate:,.0f}", f"{gigabytes:.3f}", f"{first / spent:.1f}")
                name = ""
    Console().print(table)
    print(f"{args.patients} patients x {len(MODALITIES)} volumes of {args.voxels}^3 voxels, {args.spacing_mm:g} mm")


if __name__ == "__main__":
    main()
