"""MedMAP: encoders per modality, frozen text, fusion, a head per organ; batches in, losses or logits out.

Shapes: B records of one organ, M modality slots, D = embed_dim, E the text embedding, P public prompts.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.schema import FinetuneConfig, ModelConfig, PretrainConfig
from medmap_model import objectives
from medmap_model.batch import Batch
from medmap_model.encoders import build_encoder, refuse_running_statistics
from medmap_model.fusion import Fusion, drop_modalities
from medmap_model.groups import layout
from medmap_model.text import TextEncoder
from medmap_model.vocabulary import Vocabulary

_OTHER_ORGAN = -2


class Projection(nn.Module):
    """A modality's way into the shared space, and the modality's own embedding (D,) for the fusion."""

    def __init__(self, pooled_dim: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(pooled_dim, dim)
        self.embedding = nn.Parameter(torch.randn(dim) * 0.02)

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, pooled_dim) -> (B, D)."""
        return self.linear(pooled)


class TextProjection(nn.Module):
    """The trainable part of the text side, and the position of the learned temperature."""

    def __init__(self, text_dim: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(text_dim, dim)
        self.temperature = nn.Parameter(torch.zeros(()))

    def forward(self, embedding: Tensor) -> Tensor:
        """Frozen text embedding (N, E) -> (N, D)."""
        return self.linear(embedding)


class MedMAP(nn.Module):
    """Modality-aware vision-language model (arXiv 2602.23652; our reading where the paper is silent: docs).

    The text encoder is used once, for the vocabulary's public prompts and queries; it is not a part of the
    model and never trained.
    """

    prompts: Tensor
    prompt_labels: Tensor
    queries: Tensor
    class_texts: Tensor

    def __init__(self, config: ModelConfig, vocabulary: Vocabulary, text: TextEncoder) -> None:
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        dim = config.embed_dim
        self.encoders, self.projections = nn.ModuleDict(), nn.ModuleDict()
        for modality in vocabulary.modalities:
            encoder = build_encoder(config.encoder)
            self.encoders[modality] = encoder
            self.projections[modality] = Projection(encoder.pooled_dim, dim)
        self.text_projection = TextProjection(text.dim, dim)
        self.fusion = Fusion(dim=dim, layers=config.fusion_layers, heads=config.fusion_heads, dropout=config.dropout)
        self.heads = nn.ModuleDict({o.name: nn.Linear(dim, len(o.abnormalities)) for o in vocabulary.organs.values()})
        self._embed_vocabulary(text)
        refuse_running_statistics(self)

    def _embed_vocabulary(self, text: TextEncoder) -> None:
        """Buffers: prompts (P, E), and per organ prompt_labels (P,), queries (E,), class_texts (C max, E)."""
        organs = list(self.vocabulary.organs.values())
        self._index = {o.name: i for i, o in enumerate(organs)}
        bank = [(i, c, t) for i, o in enumerate(organs) for c, ts in enumerate(o.prompts.values()) for t in ts]
        prompts = text.embed([t for _, _, t in bank])
        labels = torch.full((len(organs), len(bank)), _OTHER_ORGAN)
        for p, (i, c, _) in enumerate(bank):
            labels[i, p] = c
        widest = max(len(o.abnormalities) for o in organs)
        means = torch.zeros(len(organs), widest, text.dim)
        for i, o in enumerate(organs):
            for c in range(len(o.abnormalities)):
                means[i, c] = prompts[labels[i] == c].mean(0)
        self.register_buffer("prompts", prompts, persistent=False)
        self.register_buffer("prompt_labels", labels, persistent=False)
        self.register_buffer("queries", text.embed([o.query for o in organs]), persistent=False)
        self.register_buffer("class_texts", means, persistent=False)

    def slots(self, organ: str) -> tuple[str, ...]:
        """The modalities of an organ's slots, in order. Raises KeyError for an organ the vocabulary lacks."""
        return self.vocabulary.organs[organ].modalities

    def encode(self, volumes: Tensor, present: Tensor, organ: str) -> Tensor:
        """(B, M, D, H, W), (B, M) bool -> (B, M, embed_dim); zeros where absent, which is never computed."""
        b, m = present.shape
        where = present.cpu()  # one wait for a GPU, not one per slot
        rows, parts = [], []
        for slot, modality in enumerate(self.slots(organ)):
            index = where[:, slot].nonzero()[:, 0].to(volumes.device)
            if len(index) == 0:
                continue
            volume = volumes[:, slot : slot + 1]
            if len(index) < b:
                volume = volume.index_select(0, index)
            parts.append(self.projections[modality](self.encoders[modality](volume).pooled))
            rows.append(index * m + slot)
        if not parts:
            return volumes.new_zeros(b, m, self.config.embed_dim)
        found = torch.cat(parts)
        empty = found.new_zeros(b * m, self.config.embed_dim)
        return empty.index_copy(0, torch.cat(rows), found).view(b, m, -1)

    def pretrain_loss(self, batch: Batch, config: PretrainConfig) -> dict[str, Tensor]:
        """Stage 1: `objectives.asymmetric_contrast` of images with in-batch reports and the public prompts.

        Every present modality is an image, and so is the mean over them. Terms: loss (the only one with a gradient),
        image_to_reports, image_to_prompts, reports_to_image, temperature. A term without any positive is 0.
        """
        embedding = self.encode(batch.volumes, batch.present, batch.organ)
        with torch.autocast(embedding.device.type, enabled=False):
            image, valid = self._images(embedding.float(), batch.present)
            raw = torch.cat([batch.report.float(), self.prompts])
            report, prompt = F.normalize(self.text_projection(raw), dim=1).split([len(batch), len(self.prompts)])
            tau = self._temperature(config)
            terms = objectives.asymmetric_contrast(
                image,
                valid,
                self._reports(batch, report, config),
                self._prompts(batch, prompt, config) if config.prompt_bank else None,
                tau,
                share=config.image_to_text,
            )
        return {"loss": terms.pop("loss"), **_detached(terms | {"temperature": tau})}

    @staticmethod
    def _images(embedding: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """(B, M, D), (B, M) -> unit vectors (B, M + 1, D) and validity (B, M + 1); the last is the mean."""
        count = present.sum(1)[:, None, None].clamp(min=1)
        mean = embedding.sum(1, keepdim=True) / count
        valid = torch.cat([present, present.any(1, keepdim=True)], 1)
        return F.normalize(torch.cat([embedding, mean], 1), dim=2), valid

    def _temperature(self, config: PretrainConfig) -> Tensor:
        low, high = config.temperature_bounds
        position = self.text_projection.temperature
        return objectives.bounded_temperature(position, start=config.temperature, bounds=(low, high))

    @staticmethod
    def _reports(batch: Batch, projected: Tensor, config: PretrainConfig) -> objectives.Texts:
        """The batch's own reports: (B, D)."""
        positive = objectives.report_positives(
            batch.label, batch.report, batch.has_report, positives=config.positives, same_text=config.same_text
        )
        return objectives.Texts(projected, positive, batch.has_report)

    def _prompts(self, batch: Batch, projected: Tensor, config: PretrainConfig) -> objectives.Texts:
        """The vocabulary's public prompts, of this organ and (always negative) of the others: (P, D)."""
        labels = self.prompt_labels[self._index[batch.organ]]
        positive = objectives.prompt_positives(
            batch.label,
            batch.report,
            batch.has_report,
            self.prompts,
            labels,
            positives=config.positives,
            same_text=config.same_text,
        )
        return objectives.Texts(projected, positive, torch.ones_like(labels, dtype=torch.bool))

    def finetune_loss(self, batch: Batch, config: FinetuneConfig, *, progress: float) -> dict[str, Tensor]:
        """Stage 2: loss = w * supervised + (1 - w) * alignment, w = `supervised_share` of progress.

        progress: 0..1 over the stage. Modality dropout draws from torch's global RNG. Terms: loss (the only one
        with a gradient), supervised, alignment.
        """
        present = drop_modalities(batch.present, rate=config.modality_dropout)
        feature = self.fuse(batch.volumes, present, batch.organ)
        supervised = objectives.cross_entropy(
            self.heads[batch.organ](feature).float(), batch.label, smoothing=config.label_smoothing
        )
        share = objectives.supervised_share(progress, floor=config.supervised_floor)
        texts = self.text_projection(self.class_texts[self._index[batch.organ]])
        aligned = objectives.alignment(feature.float(), texts.float()[batch.label.clamp(min=0)], batch.label)
        loss = share * supervised + (1 - share) * aligned
        return {"loss": loss, **_detached({"supervised": supervised, "alignment": aligned})}

    def _projection(self, modality: str) -> Projection:
        return cast(Projection, self.projections[modality])

    def fuse(self, volumes: Tensor, present: Tensor, organ: str) -> Tensor:
        """(B, M, D, H, W), (B, M) bool -> fused feature (B, embed_dim), guided by the organ's query."""
        embedding = self.encode(volumes, present, organ)
        modality = torch.stack([self._projection(m).embedding for m in self.slots(organ)])
        query = self.text_projection(self.queries[self._index[organ]])
        return self.fusion(embedding, present, modality, query)

    def logits(self, batch: Batch) -> Tensor:
        """(B, classes of the organ). Only the volumes and the organ's class-independent query enter."""
        return self.heads[batch.organ](self.fuse(batch.volumes, batch.present, batch.organ))


def _detached(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Terms to report: the loss alone carries the gradient."""
    return {name: value.detach() for name, value in terms.items()}


class GroupSize(NamedTuple):
    """A module group's size; megabytes (10^6 bytes) of float32, the same in memory and on the wire."""

    name: str
    parameters: int
    megabytes: float


def build_model(config: ModelConfig, vocabulary: Vocabulary, text: TextEncoder, *, seed: int) -> MedMAP:
    """A model whose weights depend on the seed only; the global RNG is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return MedMAP(config, vocabulary, text)


def describe(model: nn.Module) -> list[GroupSize]:
    """One row per module group, in the order of the groups."""
    sizes = {g: sum(shape.numel() for _, shape in rows) for g, rows in layout(model).items()}
    return [GroupSize(g, n, n * 4 / 1e6) for g, n in sizes.items()]
