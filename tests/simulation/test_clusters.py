"""Scanners told apart by their files' headers, whatever sequences a patient lacks and along whatever axes voxels are stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.manifest import read_manifest
from configs import load_vocabulary
from configs.setting import ConfigError
from medmap_model.vocabulary import Vocabulary
from simulation.clusters import scanner_clusters
from tests.client.sources.trees import nifti


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return load_vocabulary("medmom")


SCANNERS = ((0.9, 0.9, 5.0), (1.0, 1.0, 1.0), (0.5, 0.5, 3.0))


def scanned(root: Path, *, patients: int = 18) -> Path:
    """Patients of three scanners in turn, T1 thin and T2 twice as thick; of every fifth T1 alone; one header unreadable."""
    rng = np.random.default_rng(0)
    lines = ["patient_id,study_id,modality,image,organ,abnormality"]
    for i in range(patients):
        edges = np.array(SCANNERS[0 if i >= 15 else i % 3]) * rng.uniform(0.97, 1.03)
        for modality in ("T1",) if i % 5 == 0 else ("T1", "T2"):
            affine = np.diag([*(edges * (1, 1, 1 if modality == "T1" else 2)), 1.0])
            affine = affine[:, [2, 0, 1, 3]] if i % 2 else affine  # stored along other axes: the same scanner
            nifti(root / f"{i}-{modality}.nii.gz", shape=(8, 8, 8), affine=affine)
            lines.append(f"P{i},A,{modality},{i}-{modality}.nii.gz,brain,{('tumour', 'no_tumour')[i % 2]}")
    (root / "broken.nii.gz").write_bytes(b"no image")
    lines.append("P99,A,T1,broken.nii.gz,brain,tumour")
    (root / "manifest.csv").write_text("\n".join(lines) + "\n")
    return root / "manifest.csv"


def test_scanners_are_found_in_the_headers(vocabulary: Vocabulary, tmp_path: Path) -> None:
    studies = read_manifest(scanned(tmp_path), vocabulary).studies
    cluster = scanner_clusters(studies, 3, seed=0)
    truth = {f"P{i}": 0 if i >= 15 else i % 3 for i in range(18)}
    pairs = {(truth[p], cluster[p]) for p in truth}
    assert len(pairs) == 3 and (0, "scanner-1") in pairs
    assert cluster["P99"] == "scanner-1"
    assert scanner_clusters(studies, 3, seed=0) == cluster
    with pytest.raises(ConfigError, match=r"sites\.count=19: the headers show 18 different"):
        scanner_clusters(studies, 19, seed=0)


def test_a_wrong_header_does_not_make_another_scanner(vocabulary: Vocabulary, tmp_path: Path) -> None:
    manifest = scanned(tmp_path)
    header, *lines = manifest.read_text().splitlines()
    right = scanner_clusters(read_manifest(manifest, vocabulary).studies, 3, seed=0)
    nifti(tmp_path / "10-T1.nii.gz", shape=(8, 8, 8), affine=np.diag([60.0, 60, 60, 1]))  # his only volume
    spoilt = scanner_clusters(read_manifest(manifest, vocabulary).studies, 3, seed=0)
    assert list(spoilt.values()).count(spoilt["P10"]) == 1
    corrected = [f"{line},{'1 1 1' if line.startswith('P10,') else ''}" for line in lines]
    manifest.write_text("\n".join([f"{header},spacing_mm", *corrected]) + "\n")
    assert scanner_clusters(read_manifest(manifest, vocabulary).studies, 3, seed=0) == right
