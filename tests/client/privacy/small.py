"""Small models in float64, patients for them, and what a patient moves; shared by the tests of adapters, engines and probe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from client.records import SiteRecords
from client.site import open_records
from client.training import Trainer
from configs import load_vocabulary
from configs.schema import Config, EncoderConfig, FusionConfig, ModelConfig, TextConfig
from configs.stages import FinetuneConfig, PretrainConfig
from medmap_model.batch import Batch
from medmap_model.model import MedMAP, build_model
from medmap_model.text import build_text_encoder
from medmap_model.vocabulary import Vocabulary
from tests.conftest import small_config
from tests.medmap_model.conftest import SPEC

C = 0.5
NAN = 3  # the patient whose volume is not finite
GROUPS = {
    "pretrain": ["encoder/T1", "encoder/C+A", "encoder/C-pre", "projection/T1", "projection/C+A", "text_projection"],
    "finetune": [
        *("encoder/T1", "encoder/C+A", "encoder/C-pre", "projection/T1", "projection/C+A", "projection/C-pre"),
        *("text_projection", "fusion", "head/liver"),
    ],
}


def finetune(model: nn.Module, batch: Batch) -> Tensor:
    return model.finetune_loss(batch, FinetuneConfig(modality_dropout=0.0), progress=0.5, dense=True)["loss"]


def pretrain(model: nn.Module, batch: Batch) -> Tensor:
    return model.pretrain_loss(batch, PretrainConfig(objective="bank"), dense=True)["loss"]


LOSSES = {"finetune": finetune, "pretrain": pretrain}


def build(
    fusion: str = "compact",
    encoder: EncoderConfig | None = None,
    spec: dict[str, Any] = SPEC,
    **changes: Any,
) -> MedMAP:
    config = ModelConfig(
        encoder=encoder or EncoderConfig(width=8, size=16),
        embed_dim=16,
        fusion=FusionConfig(kind=fusion, heads=2, dropout=0.0),
        **changes,
    )
    text = build_text_encoder(TextConfig(kind="hash", dim=32))
    return build_model(config, Vocabulary.from_dict(spec), text, seed=0).double().eval()


def patients(labels: tuple[int, ...] = (0, 1, 2, 0, -1, 1), *, size: int = 16) -> Batch:
    """Six patients with one to three modalities, one of them a thousand times as bright."""
    g = torch.Generator().manual_seed(0)
    present = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 1, 0], [1, 1, 1]]).bool()
    volumes = torch.randn(6, 3, size, size, size, generator=g, dtype=torch.float64) * present[..., None, None, None]
    volumes[1] *= 1e3
    report = F.normalize(torch.randn(6, 32, generator=g, dtype=torch.float64), dim=1)
    return Batch("liver", volumes, present, torch.tensor(labels), report, torch.ones(6, dtype=torch.bool))


def with_nan(batch: Batch) -> Batch:
    volumes = batch.volumes.clone()
    volumes[NAN, 0] = float("nan")
    return replace(batch, volumes=volumes)


def pick(batch: Batch, rows: list[int]) -> Batch:
    return batch._each(lambda t: t[rows])


def flat(vectors: dict[str, Tensor]) -> Tensor:
    return torch.cat([v.flatten() for v in vectors.values()]).double()


def moved(total: Callable[[Batch], dict[str, Tensor]], batch: Batch) -> list[float]:
    """How far the sum moves when a patient is taken away, for each; in units of C."""
    whole = flat(total(batch))
    rest = [[j for j in range(len(batch)) if j != i] for i in range(len(batch))]
    return [float((whole - flat(total(pick(batch, rows)))).norm()) / C for rows in rest]


def site(manifest: Path, cache: Path, *overrides: str) -> tuple[Config, Trainer, SiteRecords]:
    """A hospital that can train: settings, a model of its own, records."""
    config = small_config(
        "privacy=patient_dp", "privacy.noise_multiplier=2", "stage.pretrain.objective=bank", *overrides
    )
    model = build_model(config.model, load_vocabulary("medmom"), build_text_encoder(config.text), seed=0)
    return config, Trainer(model, config), open_records(config, (manifest,), cache)
