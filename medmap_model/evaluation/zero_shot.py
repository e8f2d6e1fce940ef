"""Detection without a head: the mean image embedding (N, D) against the class prompts (C, D) -> probabilities (N, C)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from configs.stages import PretrainConfig
from medmap_model.evaluation.missing import Encodings
from medmap_model.model import MedMAP


@torch.no_grad()
def study_embeddings(model: MedMAP, encodings: Encodings) -> tuple[Tensor, Tensor]:
    """(N, D) unit vectors, the mean over each study's modalities in the shared space, and (N,) bool: has any modality."""
    image, valid = model.image_embeddings(encodings.embedded, encodings.present)
    return image[:, -1], valid[:, -1]


@torch.no_grad()
def zero_shot(model: MedMAP, encodings: Encodings, config: PretrainConfig) -> np.ndarray:
    """(N, C) softmax of cosine / learned temperature (CLIP, arXiv 2103.00020, section 3.1.4, with prompt ensembles).

    A multi-label organ gets a sigmoid per class. Only volumes and public prompts enter. A study without any modality
    gets equal probabilities.
    """
    image, valid = study_embeddings(model, encodings)
    sharpness = model.sharpness(config)
    cosine = image @ model.class_embeddings(encodings.organ).T
    logits = cosine / sharpness.temperature
    if model.vocabulary.organs[encodings.organ].multi_label:
        logits = logits + sharpness.bias
    p = model.probabilities(logits, encodings.organ)
    p[~valid] = 1 / p.shape[1]
    return p.float().cpu().numpy()
