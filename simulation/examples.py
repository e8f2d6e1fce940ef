"""A few test patients to look at: one slice per modality, the report, and what the federated model says of them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from client.manifest import Study
from client.site import open_records
from configs.schema import Config
from medmap_model.vocabulary import Vocabulary
from simulation.conditions import Hospital, cache_dir, load_predictions

PER_ORGAN = 3


def write_examples(run_dir: Path, hospitals: Sequence[Hospital], config: Config, vocabulary: Vocabulary) -> None:
    """`examples/examples.json` and PNG slices: up to PER_ORGAN patients per organ, each of another hospital and class.

    The first patients in file order, whatever the model says of them: nothing is picked for looking good.
    """
    folder = run_dir / "examples"
    folder.mkdir(exist_ok=True)
    predictions = load_predictions(run_dir, "federated")
    examples: list[dict[str, Any]] = []
    for organ in vocabulary.organs.values():
        seen: set[str | None] = set()
        taken = 0
        for hospital in hospitals:
            records = open_records(config, hospital.entry.manifests, cache_dir(config, run_dir))
            split = "test" if hospital.external else "common"
            key = (hospital.entry.name, split, organ.name)
            if key not in predictions or taken == PER_ORGAN:
                continue
            studies = records.studies(split=split, organ=organ.name)
            index = next((i for i, s in enumerate(studies) if s.abnormality not in seen), 0)
            if not studies:
                continue
            study, p = studies[index], predictions[key][1][index]
            seen.add(study.abnormality)
            taken += 1
            examples.append(
                {
                    "site": hospital.entry.name,
                    "organ": organ.name,
                    "patient": study.patient_id,
                    "abnormality": study.abnormality,
                    "report": study.report,
                    "probabilities": {a: float(x) for a, x in zip(organ.abnormalities, p, strict=True)},
                    "modalities": _slices(study, organ.modalities, folder, f"{organ.name}-{taken}"),
                }
            )
    (folder / "examples.json").write_text(json.dumps(examples, indent=1) + "\n", encoding="utf-8")


def _slices(study: Study, order: Sequence[str], folder: Path, stem: str) -> list[dict[str, str]]:
    """One axial slice per modality, through the largest part of the lesion, as a radiologist looks at it."""
    from matplotlib.image import imsave

    mask = _read(study.mask) if study.mask else None
    pictures = []
    for modality in order:
        if modality not in study.images:
            continue
        volume = _read(study.images[modality])
        if volume is None:  # a bad volume, left out of training as well, and named there
            continue
        k = volume.shape[2] // 2
        if mask is not None and mask.shape == volume.shape and mask.any():
            k = int(mask.sum((0, 1)).argmax())
        picture = volume[::-1, ::-1, k].T  # RAS: the patient's right on the viewer's left, anterior up
        low, high = np.percentile(picture, [1, 99.5])
        zoom = max(1, 144 // max(picture.shape))
        name = f"{stem}-{''.join(c if c.isalnum() else '_' for c in modality)}.png"
        imsave(
            folder / name,
            np.kron(picture, np.ones((zoom, zoom))),
            cmap="gray",
            vmin=low,
            vmax=max(high, low + 1e-6),
        )
        pictures.append({"name": modality, "image": name})
    return pictures


def _read(path: Path) -> np.ndarray | None:
    """A 3D volume in RAS, or None for a file that cannot be shown."""
    import nibabel as nib

    try:
        volume = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj, dtype=np.float32)
    except (OSError, EOFError, ValueError, zlib.error, nib.filebasedimages.ImageFileError):
        return None
    return volume if volume.ndim == 3 else None
