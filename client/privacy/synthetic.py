"""Made-up patients: what a site tries its model on before it touches a real one."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from medmap_model.batch import Batch
from medmap_model.model import MedMAP
from medmap_model.text.negatives import TURNS


def synthetic_batch(model: MedMAP, organ: str, *, patients: int, size: int, negatives: bool = False) -> Batch:
    """Noise of the right shapes, on the model's device and of its type, the same at every call.

    Every modality is there, every patient has a label and a report. size: voxels per edge. negatives: reports turned, as
    `stage.pretrain.hard_negatives` asks for.
    """
    generator, like = torch.Generator().manual_seed(0), next(model.parameters())
    spec, width = model.vocabulary.organs[organ], model.texts.embedding.shape[1]

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(patients, *shape, generator=generator).to(like)

    classes = 1 + torch.arange(patients, device=like.device) % max(1, len(spec.abnormalities) - 1)
    return Batch(
        organ=organ,
        volumes=noise(len(spec.modalities), size, size, size),
        present=torch.ones(patients, len(spec.modalities), dtype=torch.bool, device=like.device),
        label=classes,
        report=F.normalize(noise(width), dim=1),
        has_report=torch.ones(patients, dtype=torch.bool, device=like.device),
        negatives=F.normalize(noise(len(TURNS), width), dim=2) if negatives else None,
    )
