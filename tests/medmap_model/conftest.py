"""A small vocabulary of two organs that share a modality, a hash text encoder, and batches of either organ."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from configs.schema import EncoderConfig, FusionConfig, ModelConfig, TextConfig
from medmap_model.batch import Batch
from medmap_model.model import MedMAP, build_model
from medmap_model.text import TextEncoder, build_text_encoder
from medmap_model.vocabulary import Vocabulary

SPEC = {
    "name": "test",
    "organs": {
        "brain": {
            "modalities": ["T1", "FLAIR"],
            "query": "Brain MRI. Is there a tumour?",
            "prompts": {"no_tumour": ["Normal brain."], "tumour": ["Brain mass.", "Meningioma."]},
        },
        "liver": {
            "modalities": ["T1", "C+A", "C-pre"],
            "query": "Liver MRI. Which lesion?",
            "prompts": {"cyst": ["Hepatic cyst."], "fnh": ["Focal nodular hyperplasia."], "hcc": ["HCC."]},
        },
    },
}


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return Vocabulary.from_dict(SPEC)


@pytest.fixture(scope="session")
def text() -> TextEncoder:
    return build_text_encoder(TextConfig(kind="hash", dim=32))


@pytest.fixture(scope="session", params=["compact", "medmap"])
def model_config(request: pytest.FixtureRequest) -> ModelConfig:
    return ModelConfig(encoder=EncoderConfig(width=8), embed_dim=16, fusion=FusionConfig(kind=request.param, heads=2))


@pytest.fixture
def model(model_config: ModelConfig, vocabulary: Vocabulary, text: TextEncoder) -> MedMAP:
    return build_model(model_config, vocabulary, text, seed=0)


@pytest.fixture
def make_batch(vocabulary: Vocabulary, text: TextEncoder) -> Callable[..., Batch]:
    """make_batch(organ, present, labels, reports): reports are texts, None where there is none."""

    def make(
        organ: str = "liver",
        present: list[list[int]] | None = None,
        labels: list[int] | None = None,
        reports: list[str | None] | None = None,
        size: int = 16,
        seed: int = 0,
    ) -> Batch:
        slots = len(vocabulary.organs[organ].modalities)
        there = torch.tensor(present or [[1] * slots] * 4).bool()
        n = len(there)
        written = reports if reports is not None else [f"report {i}" for i in range(n)]
        volumes = torch.randn(n, slots, size, size, size, generator=torch.Generator().manual_seed(seed))
        embedded = text.embed([r or "" for r in written])
        has = torch.tensor([r is not None for r in written])
        return Batch(
            organ=organ,
            volumes=volumes * there[..., None, None, None],
            present=there,
            label=torch.tensor(labels if labels is not None else [i % 2 for i in range(n)]),
            report=embedded * has[:, None],
            has_report=has,
        )

    return make
