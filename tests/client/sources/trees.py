"""Tiny folders made to each data set's layout exactly, with NIfTI of a few voxels."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

PHASES = ("T2WI", "DWI", "In Phase", "Out Phase", "C-pre", "C+A", "C+V", "C+Delay")
SHAPE = (16, 14, 6)


def nifti(path: Path, shape: Sequence[int] = SHAPE, affine: np.ndarray | None = None, seed: int = 0) -> Path:
    values = np.random.default_rng(seed).integers(50, 200, shape).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(values, np.diag([-1.0, -1, 1, 1]) if affine is None else affine)
    raw = image.to_bytes()
    path.write_bytes(gzip.compress(raw, 1) if path.name.endswith("gz") else raw)
    return path


def lesion(category: int, box: Sequence[int]) -> dict[str, object]:
    names = ("x_min", "y_min", "z_min", "x_max", "y_max", "z_max")
    return {"category": category, "bbox": {"3D_box": dict(zip(names, box, strict=True))}}


def lld(
    root: Path,
    patients: Mapping[str, Sequence[int]],
    *,
    spacing_mm: Sequence[float] = (0.8, 0.7),
    thickness_mm: float = 5.5,
    box: Sequence[int] = (3, 4, 1, 9, 8, 3),
) -> Path:
    """Whole volumes and Annotation.json; patient -> the categories of its lesions."""
    told = {}
    for n, (patient, categories) in enumerate(patients.items()):
        told[patient] = []
        for k, phase in enumerate(PHASES):
            study, series = f"1.2.840.{n}", f"1.2.840.{n}.{k}"
            nifti(root / "images" / patient / study / f"{series}.nii.gz", seed=100 * n + k)
            item = {"studyUID": study, "seriesUID": series, "phase": phase, "pixel_spacing": list(spacing_mm)}
            lesions = {str(i): lesion(c, box) for i, c in enumerate(categories)}
            told[patient].append({**item, "slice_thickness": thickness_mm, "annotation": {"lesion": lesions}})
    (root / "labels").mkdir(parents=True, exist_ok=True)
    (root / "labels" / "Annotation.json").write_text(json.dumps({"Annotation_info": told}))
    return root


def lld_crops(root: Path, lists: Mapping[str, Sequence[str]], folders: Sequence[str]) -> Path:
    """classification_dataset: a folder per lesion, a file per phase; lists: name -> lines."""
    top = root / "classification_dataset"
    for n, folder in enumerate(folders):
        for k, phase in enumerate(PHASES):
            nifti(top / "images" / folder / f"{phase}.nii.gz", seed=100 * n + k)
    (top / "labels").mkdir(parents=True, exist_ok=True)
    for name, lines in lists.items():
        (top / "labels" / name).write_text("\n".join(lines) + "\n")
    return root


def brats_case(folder: Path, case: str, suffixes: Sequence[str], join: str = "_", end: str = ".nii.gz") -> None:
    for n, suffix in enumerate(suffixes):
        nifti(folder / case / f"{case}{join}{suffix}{end}", seed=n)


def lesion_study(folder: Path, *, bright: Mapping[str, float], centre: Sequence[int] = (26, 10, 24)) -> dict[str, Path]:
    """Volumes with a body of 100 and a ball of 4 voxels' radius (2 mm voxels, RAS) `bright` times that, and its mask."""
    grid = np.stack(np.meshgrid(*[np.arange(36)] * 3, indexing="ij"))
    affine = np.diag([2.0, 2, 2, 1])
    body = ((grid > 2) & (grid < 33)).all(0)
    ball = ((grid - np.array(centre)[:, None, None, None]) ** 2).sum(0) <= 16
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, factor in bright.items():
        values = np.where(ball, 100 * factor, 100) * body
        paths[name] = folder / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(values.astype(np.int16), affine), paths[name])
    paths["mask"] = folder / "mask.nii.gz"
    nib.save(nib.Nifti1Image(ball.astype(np.uint8), affine), paths["mask"])
    return paths
