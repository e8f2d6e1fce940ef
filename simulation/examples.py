"""A few test patients to look at: one slice per modality, the report, what the federated model says of them, and why.

With `evaluation.interpret` an example says which modality mattered, and has an overlay beside every slice: where the true
class's probability falls when a small cube is hidden (`medmap_model.evaluation.interpret.occlusion`).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.manifest import Study
from client.records import SiteRecords
from client.site import open_records
from client.training import Trainer
from configs.schema import Config
from medmap_model.batch import Batch
from medmap_model.vocabulary import Vocabulary
from simulation.conditions import Hospital, cache_dir, load_predictions
from simulation.evaluate import choose_test_set

PER_ORGAN = 3
_FULL_COLOUR = 0.1  # a fall of the probability below which no overlay gets its strongest colour
_OPACITY = 0.7


def write_examples(
    run_dir: Path, hospitals: Sequence[Hospital], config: Config, vocabulary: Vocabulary, trainer: Trainer
) -> None:
    """`examples/examples.json` and PNG slices: up to PER_ORGAN patients per organ, each of another hospital and class.

    The first patients in file order, whatever the model says of them: nothing is picked for looking good.
    """
    known = choose_test_set(config, hospitals, run_dir).known
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
            stem = f"{organ.name}-{taken}"
            pictures = _slices(study, organ.modalities, folder, stem)
            importance: dict[str, float] = {}
            if config.evaluation.interpret:
                batch = _batch_of(records, split, organ.name, index, known)
                importance = _explain(batch, trainer, config, pictures, folder, stem)
            examples.append(
                {
                    "site": hospital.entry.name,
                    "organ": organ.name,
                    "patient": study.patient_id,
                    "abnormality": study.abnormality,
                    "report": study.report,
                    "probabilities": {a: float(x) for a, x in zip(organ.abnormalities, p, strict=True)},
                    "modalities": [{k: v for k, v in p.items() if k != "offset_mm"} for p in pictures],
                    **({"importance": importance} if importance else {}),
                }
            )
    (folder / "examples.json").write_text(json.dumps(examples, indent=1) + "\n", encoding="utf-8")


def _slices(study: Study, order: Sequence[str], folder: Path, stem: str) -> list[dict[str, Any]]:
    """One axial slice per modality, through the largest part of the lesion, as a radiologist looks at it.

    offset_mm: how far the slice is above the volume's middle.
    """
    from matplotlib.image import imsave

    mask = (_read(study.mask) or (None,))[0] if study.mask else None
    pictures = []
    for modality in order:
        if modality not in study.images:
            continue
        found = _read(study.images[modality])
        if found is None:  # a bad volume, left out of training as well, and named there
            continue
        volume, spacing_mm = found
        k = volume.shape[2] // 2
        if mask is not None and mask.shape == volume.shape and mask.any():
            k = int(mask.sum((0, 1)).argmax())
        picture = _turned(volume[:, :, k])
        low, high = np.percentile(picture, [1, 99.5])
        name = f"{stem}-{''.join(c if c.isalnum() else '_' for c in modality)}.png"
        imsave(folder / name, _zoomed(picture), cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
        offset_mm = (k - (volume.shape[2] - 1) / 2) * spacing_mm
        pictures.append({"name": modality, "image": name, "offset_mm": offset_mm})
    return pictures


def _batch_of(records: SiteRecords, split: str, organ: str, index: int, known: frozenset[str]) -> Batch:
    """One patient of a test set as a batch, without the modalities that the model never saw."""
    for batch in records.eval_batches(split=split, organ=organ):
        if index < len(batch):
            row = batch.rows(slice(index, index + 1))
            keep = torch.tensor([m in known for m in records.vocabulary.organs[organ].modalities])
            return replace(row, present=row.present & keep)
        index -= len(batch)
    raise IndexError(f"{organ} has no patient {index} more in {split}")


def _explain(
    batch: Batch, trainer: Trainer, config: Config, pictures: list[dict[str, Any]], folder: Path, stem: str
) -> dict[str, float]:
    """Modality -> importance; adds an `overlay` to the pictures of the modalities that the model saw.

    The gray of an overlay is what the model saw: the prepared cube. Its slice is that of the picture where cubes are cut
    from the middle of the volume (`crop=centre`), else the cube's middle one.
    """
    from medmap_model.evaluation.interpret import modality_importance, occlusion
    from medmap_model.evaluation.missing import encode_all

    volumes, slots = config.data.volumes, trainer.model.slots(batch.organ)
    with torch.autocast(trainer.device.type, dtype=torch.bfloat16, enabled=trainer.bf16):
        importance = modality_importance(trainer.model, encode_all(trainer.model, [batch]))[0]
        heat = occlusion(
            trainer.model,
            batch.to(trainer.device),
            window_voxels=max(2, volumes.size // 4),
            stride_voxels=max(1, volumes.size // 6),
        )
    seen = heat[0].float().cpu().numpy().clip(0)
    strongest = max(float(seen.max()), _FULL_COLOUR)
    for picture in pictures:
        slot = slots.index(picture["name"])
        if not batch.present[0, slot]:
            continue
        offset = picture["offset_mm"] / volumes.spacing_mm if volumes.crop == "centre" else 0.0
        k = int(np.clip(round((volumes.size - 1) / 2 + offset), 0, volumes.size - 1))
        name = picture["image"].removesuffix(".png") + "-overlay.png"
        _write_overlay(folder / name, batch.volumes[0, slot, :, :, k].numpy(), seen[slot, :, :, k] / strongest)
        picture["overlay"] = name
    return {m: float(v) for m, v in zip(slots, importance, strict=True) if np.isfinite(v)}


def _write_overlay(path: Path, grey: np.ndarray, heat: np.ndarray) -> None:
    """A heat map, 0 to 1, over a grey slice: the hotter, the more opaque. The colours read without colour vision too."""
    from matplotlib import colormaps
    from matplotlib.image import imsave

    low, high = np.percentile(grey, [1, 99.5])
    base = ((_turned(grey) - low) / max(high - low, 1e-6)).clip(0, 1)[..., None]
    hot = _turned(heat)[..., None]
    opacity = _OPACITY * hot
    colour = colormaps["inferno"](0.4 + 0.55 * hot[..., 0])[..., :3]  # its dark end would not show on grey
    imsave(path, _zoomed(((1 - opacity) * base + opacity * colour).clip(0, 1)))


def _turned(axial: np.ndarray) -> np.ndarray:
    """(X, Y) in RAS -> a picture: the patient's right on the viewer's left, anterior up."""
    return axial[::-1, ::-1].T


def _zoomed(picture: np.ndarray) -> np.ndarray:
    """Small pictures enlarged by whole pixels."""
    zoom = max(1, 144 // max(picture.shape[:2]))
    return picture.repeat(zoom, 0).repeat(zoom, 1)


def _read(path: Path) -> tuple[np.ndarray, float] | None:
    """A 3D volume in RAS and its slices' distance in mm, or None for a file that cannot be shown."""
    import nibabel as nib

    try:
        image = nib.as_closest_canonical(nib.load(path))
        volume = np.asarray(image.dataobj, dtype=np.float32)
    except (OSError, EOFError, ValueError, zlib.error, nib.filebasedimages.ImageFileError):
        return None
    return (volume, float(image.header.get_zooms()[2])) if volume.ndim == 3 else None
