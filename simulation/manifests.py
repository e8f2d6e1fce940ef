"""A manifest's patients as hospitals on disk: `data.manifest` in; a manifest for each hospital, below the run's folder, out."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from client.manifest import read_manifest
from client.site import SiteEntry
from client.table import read_table
from configs.schema import Config
from configs.setting import ConfigError
from medmap_model.vocabulary import Vocabulary
from server.progress import Event, Progress
from simulation.clusters import COLUMN, scanner_clusters
from simulation.conditions import Hospital
from simulation.partition import Row, external_name, partition_manifest


def manifest_hospitals(config: Config, vocabulary: Vocabulary, run_dir: Path, progress: Progress) -> list[Hospital]:
    """The hospitals, each with `run_dir`/sites/NAME/manifest.csv; those of an earlier partition there are removed.

    Says how many patients have no place in any. Raises ConfigError, ManifestError.
    """
    if not config.data.manifest:
        raise ConfigError("data.kind=manifest needs data.manifest=PATH: a CSV with one row per volume")
    path = Path(config.data.manifest).absolute()
    # a missing file is a bad volume: skipped, or a stop, by policy
    studies = read_manifest(path, vocabulary, check_files=False).studies
    header, lines = read_table(path.read_bytes(), [])
    rows = [dict(zip(header, map(str.strip, cells), strict=False)) for _, cells in lines]
    for row in rows:
        for column in ("image", "mask"):
            if row.get(column):
                row[column] = str(path.parent / row[column])
    if config.sites.kind == "scanner_clusters":
        cluster = scanner_clusters(studies, config.sites.count, seed=config.seed)
        for row in rows:
            row[COLUMN] = cluster[row["patient_id"]]
    placed = partition_manifest(rows, config.sites, vocabulary, seed=config.seed)
    _tell_left_out(rows, (row for mine in placed.values() for row in mine), progress)
    _tidy(run_dir / "sites", placed)
    hospitals = []
    for name, mine in placed.items():
        target = run_dir / "sites" / name / "manifest.csv"
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, list(dict.fromkeys(k for row in mine for k in row)))
            writer.writeheader()
            writer.writerows(mine)
        hospitals.append(Hospital(SiteEntry(name, (target,)), name == external_name(config.sites)))
    return hospitals


def _tell_left_out(rows: Iterable[Row], placed: Iterable[Row], progress: Progress) -> None:
    everybody = {row["patient_id"] for row in rows}
    if lost := len(everybody) - len({row["patient_id"] for row in placed}):
        why = "no hospital has their organ, or theirs has none of their modalities"
        progress(Event("message", "run", text=f"{lost} of {len(everybody)} patients are left out: {why}"))


def _tidy(folder: Path, names: Iterable[str]) -> None:
    """Remove the manifests of other hospitals: whoever looks into the folder would take them for a part of this partition."""
    for old in folder.glob("*/manifest.csv"):
        if old.parent.name not in names:
            old.unlink()
            with suppress(OSError):  # somebody keeps more there
                old.parent.rmdir()
