"""Small real hospitals for tests: NIfTI volumes in which tumour patients have a bright ball."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from configs import load
from configs.schema import Config

SMALL = (
    "text=hash", "engine.workers=1", "engine.device=cpu", "data.volumes.size=16", "data.volumes.spacing_mm=4", "data.volumes.crop=centre",
    "model.embed_dim=32", "model.encoder.width=4", "stage.pretrain.rounds=1", "stage.finetune.rounds=2", "bootstrap=50",
)  # fmt: skip


# A file of tests stays in one process: these are the long ones, the longest first, and those that mostly wait beside those that work.
# The rest follows as it comes.
FIRST = (
    "faults/test_faults.py",
    "simulation/test_experiment.py",
    "faults/test_privately.py",
    "faults/test_story.py",
    "server/test_running_deployed.py",
    "server/test_kits.py",
    "simulation/test_flwr_run.py",
    "simulation/test_sweep.py",
    "simulation/test_federation.py",
    "simulation/test_secure_federation.py",
    "server/test_export.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of FIRST first; `make test` keeps the order that this gives."""
    rank = {Path(__file__).parent / name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: rank.get(item.path, len(FIRST)))


def small_config(*overrides: str) -> Config:
    """A config that trains in a second."""
    return load([*SMALL, *overrides])


def write_hospital(folder: Path, modalities: Sequence[str], *, patients: int = 12, seed: int = 0) -> Path:
    """A hospital of brain patients, every other one with a bright ball; splits train, val, test, common. Its manifest."""
    rng = np.random.default_rng([seed, *map(ord, folder.name)])
    folder.mkdir(parents=True, exist_ok=True)
    grid = np.stack(np.meshgrid(*[np.arange(16)] * 3, indexing="ij"))
    rows = []
    for split, n in (("train", patients), ("val", 4), ("test", 6), ("common", 6)):
        for i in range(n):
            tumour, patient = i % 2, f"{folder.name}-{split}-{i}"
            centre = rng.uniform(5, 10, 3)
            ball = (((grid - centre[:, None, None, None]) ** 2).sum(0) < 9) * tumour
            for modality in modalities:
                volume = rng.normal(100, 5, (16, 16, 16)) + 80 * ball
                name = f"{patient}-{modality}.nii.gz"
                nib.save(nib.Nifti1Image(volume.astype(np.int16), np.diag([4, 4, 4, 1.0])), folder / name)
                report = "Ring-enhancing mass, a tumour." if tumour else "Normal brain, no mass."
                rows.append(
                    [
                        patient,
                        f"{patient}-1",
                        modality,
                        name,
                        "brain",
                        "tumour" if tumour else "no_tumour",
                        report,
                        split,
                    ]
                )
    with (folder / "manifest.csv").open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["patient_id", "study_id", "modality", "image", "organ", "abnormality", "report", "split"])
        writer.writerows(rows)
    return folder / "manifest.csv"


@pytest.fixture(scope="session")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two hospitals with other modalities: name -> manifest."""
    root = tmp_path_factory.mktemp("hospitals")
    return {
        "east": write_hospital(root / "east", ["T1", "FLAIR"]),
        "west": write_hospital(root / "west", ["T2", "FLAIR"]),
    }


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where prepared volumes of the session go."""
    return tmp_path_factory.mktemp("cache")
