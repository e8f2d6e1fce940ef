"""The check that trains: a batch of each stage on a few of the site's own patients, in a process of its own.

A crash or a lack of memory ends that process and is one failed row. Its model is thrown away: nothing leaves, and no ledger is
opened. What it prepares of the volumes stays in the site's cache, where training finds it.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from client.manifest import ManifestError, Study
from client.preflight.data import UNREADABLE
from client.preflight.rows import Row, Subject
from client.table import read_table
from configs import to_json

TIMEOUT_S = 900.0
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}  # the dry run sends nothing, and asks nobody
_TAIL = 8  # lines of the process's own words


def dry_run(subject: Subject, *, timeout_s: float = TIMEOUT_S) -> Row:
    """One training batch of each stage; under privacy also a private step on made-up patients."""
    try:
        found, problems = subject.scanned
    except ManifestError:
        return UNREADABLE
    if problems:
        return Row("skipped", "training does not start before the manifest's rows are mended")
    few = few_patients(found.studies, _batch_size(subject))
    if not few:
        return Row("failed", "Of no organ two patients to train on", "Put patients into the split `train`")
    cache = subject.site.cache_dir
    cache.mkdir(parents=True, exist_ok=True)
    # It holds names of patients: in the cache they are as protected as the volumes there.
    with tempfile.TemporaryDirectory(prefix="check-", dir=cache) as folder:
        _write(Path(folder) / "manifest.csv", found.path, few)
        task = {"config": to_json(subject.config), "site_yaml": str(subject.path.resolve())}
        (Path(folder) / "task.json").write_text(json.dumps(task), encoding="utf-8")
        command = [sys.executable, "-P", "-m", "client.preflight.one_batch", folder]
        try:
            with subject.progress.status("One batch of each stage"):
                done = subprocess.run(
                    command, env=os.environ | _OFFLINE, capture_output=True, text=True, timeout=timeout_s, check=False
                )
        except subprocess.TimeoutExpired:
            remedy = "Ask the coordinator for a smaller model, batch or volume size; or this machine is busy"
            return Row("failed", f"One batch of each stage took more than {timeout_s:.0f} s", remedy)
        result = Path(folder) / "result.json"
        said = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {}
        return _row(said, done.returncode, tuple(done.stderr.strip().splitlines()[-_TAIL:]))


def few_patients(studies: Iterable[Study], batch_size: int) -> list[Study]:
    """The first training studies of each organ, one a patient, as many as a batch holds; organs with one patient are left out."""
    chosen: dict[str, dict[str, Study]] = {}
    for study in studies:
        of_organ = chosen.setdefault(study.organ, {})
        if study.split == "train" and len(of_organ) < batch_size:
            of_organ.setdefault(study.patient_id, study)
    return [study for of_organ in chosen.values() if len(of_organ) > 1 for study in of_organ.values()]


def _batch_size(subject: Subject) -> int:
    return max(subject.config.stage.pretrain.batch_size, subject.config.stage.finetune.batch_size)


def _write(path: Path, whole: Path, studies: Iterable[Study]) -> None:
    """The rows of these studies, with whole paths."""
    wanted = {row for study in studies for row in study.rows.values()}
    header, rows = read_table(whole.read_bytes(), [])
    places = [header.index(name) for name in ("image", "mask") if name in header]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for number, cells in rows:
            if number in wanted:
                full = {i: str((whole.parent / cells[i].strip()).absolute()) for i in places if cells[i].strip()}
                writer.writerow([full.get(i, cell) for i, cell in enumerate(cells)])


def _row(said: dict[str, Any], code: int, tail: tuple[str, ...]) -> Row:
    less = "Close other programs; else ask the coordinator for a smaller model, or for stage.*.micro_batch"
    if said.get("error") == "OutOfMemoryError":
        return Row("failed", "The GPU's memory is too small for a batch", less, tail)
    if code < 0:
        return Row("failed", f"The process was ended by signal {-code}; 9 is most often a lack of memory", less, tail)
    if said.get("error") == "Diverged":
        remedy = "Look for volumes of another scale; else ask the coordinator for a lower learning rate"
        return Row("failed", "The loss is not a finite number", remedy, (said["text"],))
    if "error" in said:
        details = (said["text"],) if said["expected"] else (said["text"], *tail)
        return Row(
            "failed", f"It ended with {said['error']}", "Do what the line below says, or ask the coordinator", details
        )
    if "seconds" not in said:
        return Row("failed", f"The process ended with code {code} and said nothing", "Show the coordinator this", tail)
    seconds = ", ".join(f"{name} {s:.1f} s" for name, s in said["seconds"].items())
    memory = f"{said['memory_mb']:,.0f} MB at its peak"
    if said["gpu_memory_mb"] is not None:
        memory += f", {said['gpu_memory_mb']:,.0f} MB of the GPU"
    return Row("ok", f"A batch of {said['patients']} patients on {said['device']}: {seconds}; {memory}")
