"""A manifest in, Nyul's scale of each modality of its training patients out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from client.cache import read_files, workers_for
from client.manifest import Study, read_manifest
from client.preprocess.nyul import Landmarks, scale_of
from client.problems import DataError
from client.volumes import prepare
from configs import load_vocabulary
from configs.schema import Config


def learn(manifest: Path, config: Config) -> dict[str, Landmarks]:
    """Modality -> scale, in the vocabulary's order; volumes that cannot be used count for nothing. Raises DataError."""
    vocabulary = load_vocabulary(config.data.vocabulary)
    volumes = replace(config.data.volumes, standardise="nyul", crop="centre")  # so that no mask is asked for
    studies = [s for s in read_manifest(manifest, vocabulary, check_files=False).studies if s.split == "train"]

    def of(study: Study) -> dict[str, Landmarks]:
        return prepare(read_files(study.images)[0], None, volumes, study.spacings, organ=study.organ).landmarks

    rows: dict[str, list[Landmarks]] = {}
    with workers_for(studies) as pool:
        for found in pool.map(of, studies):
            for modality, row in found.items():
                rows.setdefault(modality, []).append(row)
    if not rows:
        raise DataError(f"{manifest} has no training volume that can be used: put patients into the split `train`", [])
    return {modality: scale_of(rows[modality]) for modality in vocabulary.modalities if modality in rows}
