"""Scanners told apart by their files' headers: studies in, a cluster per patient out (`scanner-1` is the largest).

A volume is its voxel edges (mm) and its matrix along right-left, front-back and down-up, as logarithms: twice as thick is as
far as half as thick. Values are taken relative to the modality's median over all patients, so that a patient who lacks a
sequence is not a scanner of his or her own. k-means (Lloyd's, scipy's k-means++ start).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from client.cache import read_files
from client.grids import HEADER_BYTES, VolumeError, read_grid
from client.manifest import Spacing, Study
from configs.setting import ConfigError

COLUMN = "scanner_cluster"
_RESTARTS = 10

Points = NDArray[np.float64]


def scanner_clusters(studies: Sequence[Study], count: int, *, seed: int) -> dict[str, str]:
    """Patient -> cluster. A patient without a readable header joins the largest.

    Raises ConfigError where the headers do not show `count` different scanners.
    """
    features = _features(studies)
    names = sorted(features)
    points = (
        np.array([features[name] for name in names]).reshape(len(names), 6).round(6)
    )  # no cluster of rounding errors
    different = len(np.unique(points, axis=0))
    if different < count:
        raise ConfigError(
            f"sites.count={count}: the headers show {different} different scanner settings; take that many or fewer"
        )
    labels = _k_means(points, count, seed)
    by_size = [cluster for cluster, _ in Counter(labels.tolist()).most_common()]
    called = {cluster: f"scanner-{place + 1}" for place, cluster in enumerate(by_size)}
    found = {name: called[label] for name, label in zip(names, labels.tolist(), strict=True)}
    return {s.patient_id: found.get(s.patient_id, "scanner-1") for s in studies}


def _features(studies: Sequence[Study]) -> dict[str, Points]:
    """Patient -> (6,), the mean over the patient's volumes of what differs from the modality's median."""
    volumes = [
        (study.patient_id, modality, point)
        for study in studies
        for modality, path in study.images.items()
        if (point := _header(path, study.spacings.get(modality))) is not None
    ]
    usual = {m: np.median([p for _, other, p in volumes if other == m], axis=0) for m in {m for _, m, _ in volumes}}
    by_patient: dict[str, list[Points]] = {}
    for patient, modality, point in volumes:
        by_patient.setdefault(patient, []).append(point - usual[modality])
    return {patient: np.mean(points, axis=0) for patient, points in by_patient.items()}


def _header(path: Path, spacing_mm: Spacing | None) -> Points | None:
    """Logarithms of voxel edges and matrix, in RAS order, (6,); None where the header cannot be read."""
    contents, _ = read_files({"": path}, HEADER_BYTES)
    try:
        grid = read_grid(contents.get("", b""), spacing_mm)
    except VolumeError:
        return None
    order = np.argsort(io_orientation(grid.affine)[:, 0])
    return np.log(np.concatenate([grid.spacing_mm[order], np.array(grid.shape, float)[order]]))


def _k_means(points: Points, count: int, seed: int) -> NDArray[np.int32]:
    """The best of several starts, (N,) labels with every cluster in use."""
    from scipy.cluster.vq import ClusterError, kmeans2

    best, least = None, np.inf
    for start in range(_RESTARTS):
        try:
            centres, labels = kmeans2(
                points, count, minit="++", missing="raise", rng=np.random.default_rng([seed, start])
            )
        except ClusterError:  # a cluster ran empty: another start
            continue
        spread = float(((points - centres[labels]) ** 2).sum())
        if spread < least:
            best, least = labels, spread
    if best is None:
        raise ConfigError(f"sites.count={count}: the headers do not fall into so many clusters; take a smaller number")
    return best
