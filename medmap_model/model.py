"""MedMAP: encoders per modality, frozen text, fusion and a head per organ; batches of one organ in, losses or logits out."""

from __future__ import annotations

from typing import NamedTuple

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
    """A modality's way into the shared space: pooled (B, P) -> (B, D), and the modality's own embedding (D,)."""

    def __init__(self, pooled_dim: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(pooled_dim, dim)
        self.embedding = nn.Parameter(torch.randn(dim) * 0.02)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.linear(pooled)


class TextProjection(nn.Module):
    """The trainable part of the text side: frozen embedding (N, E) -> (N, D), and the learned temperature's position."""

    def __init__(self, text_dim: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(text_dim, dim)
        self.temperature = nn.Parameter(torch.zeros(()))

    def forward(self, embedding: Tensor) -> Tensor:
        return self.linear(embedding)


class MedMAP(nn.Module):
    """Modality-aware vision-language model (arXiv 2602.23652; our reading where the paper is silent: docs).

    B records of one organ, M modality slots, D = embed_dim. The text encoder is used here once, for the vocabulary's
    public prompts and queries; it is not a part of the model and never trained.
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
        """Buffers: prompts (P, E), prompt_labels (organs, P), queries (organs, E), class_texts (organs, C max, E)."""
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
        """(B, M, D, H, W), (B, M) bool -> (B, M, embed_dim); zeros where absent. Absent slots are never computed."""
        b, m = present.shape
        where = present.cpu()
        rows, parts = [], []
        for slot, modality in enumerate(self.slots(organ)):
            index = where[:, slot].nonzero()[:, 0].to(volumes.device)
            n = len(index)
            if n == 0:
                continue
            volume = volumes[:, slot : slot + 1]
            if n < b:
                volume = volume.index_select(0, index)
            if n == 1 and volume.device.type == "cpu":
                # A single volume falls off oneDNN's convolution; two are faster than one.
                volume = volume.expand(2, -1, -1, -1, -1)
            out = self.projections[modality](self.encoders[modality](volume).pooled)
            parts.append(out[:n])
            rows.append(index * m + slot)
        if not parts:
            return volumes.new_zeros(b, m, self.config.embed_dim)
        found = torch.cat(parts)
        empty = found.new_zeros(b * m, self.config.embed_dim)
        return empty.index_copy(0, torch.cat(rows), found).view(b, m, -1)

    def pretrain_loss(self, batch: Batch, config: PretrainConfig) -> dict[str, Tensor]:
        """Stage 1: asymmetric multi-positive contrast of images with reports and public prompts.

        loss = a (prompts + reports) / (their number) + (1 - a) back, a = config.image_to_text. Every present modality
        and the mean over them is an image. Terms: loss, image_to_prompts, image_to_reports, reports_to_image,
        temperature. A term without a positive is 0.
        """
        embedding = self.encode(batch.volumes, batch.present, batch.organ)
        with torch.autocast(embedding.device.type, enabled=False):
            embedding = embedding.float()
            weight = batch.present.to(embedding.dtype)[..., None]
            mean = embedding.sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
            image = F.normalize(torch.cat([embedding, mean], 1), dim=2)
            valid = torch.cat([batch.present, batch.present.any(1, keepdim=True)], 1)
            text = F.normalize(self.text_projection(torch.cat([batch.report.float(), self.prompts])), dim=1)
            report, prompt = text[: len(batch)], text[len(batch) :]
            tau = objectives.bounded_temperature(
                self.text_projection.temperature,
                start=config.temperature,
                bounds=(config.temperature_bounds[0], config.temperature_bounds[1]),
            )
            rule = {"positives": config.positives, "same_text": config.same_text}
            says = objectives.report_positives(batch.label, batch.report, batch.has_report, **rule)
            terms = {
                "image_to_reports": objectives.contrastive(image, valid, report, says, batch.has_report, tau),
                "reports_to_image": objectives.contrastive_back(image, valid, report, says, batch.has_report, tau),
            }
            forward = terms["image_to_reports"]
            if config.prompt_bank:
                labels = self.prompt_labels[self._index[batch.organ]]
                shows = objectives.prompt_positives(
                    batch.label, batch.report, batch.has_report, self.prompts, labels, **rule
                )
                everything = torch.ones_like(labels, dtype=torch.bool)
                terms["image_to_prompts"] = objectives.contrastive(image, valid, prompt, shows, everything, tau)
                forward = (forward + terms["image_to_prompts"]) / 2
            share = config.image_to_text
            loss = share * forward + (1 - share) * terms["reports_to_image"]
        return {"loss": loss, **terms, "temperature": tau}

    def finetune_loss(self, batch: Batch, config: FinetuneConfig, *, progress: float) -> dict[str, Tensor]:
        """Stage 2: w supervised + (1 - w) alignment, w = `supervised_share` of the progress (0..1) in the stage.

        Modality dropout draws from torch's global RNG. Terms: loss, supervised, alignment.
        """
        present = drop_modalities(batch.present, rate=config.modality_dropout)
        feature = self.fuse(batch.volumes, present, batch.organ)
        supervised = objectives.cross_entropy(
            self.heads[batch.organ](feature).float(), batch.label, smoothing=config.label_smoothing
        )
        share = objectives.supervised_share(progress, floor=config.supervised_floor)
        texts = self.text_projection(self.class_texts[self._index[batch.organ]])
        aligned = objectives.alignment(feature.float(), texts.float()[batch.label.clamp(min=0)], batch.label)
        return {
            "loss": share * supervised + (1 - share) * aligned,
            "supervised": supervised,
            "alignment": aligned,
        }

    def fuse(self, volumes: Tensor, present: Tensor, organ: str) -> Tensor:
        """(B, M, D, H, W), (B, M) bool -> fused feature (B, embed_dim), guided by the organ's query."""
        embedding = self.encode(volumes, present, organ)
        modality = torch.stack([self.projections[m].embedding for m in self.slots(organ)])
        query = self.text_projection(self.queries[self._index[organ]])
        return self.fusion(embedding, present, modality, query)

    def logits(self, batch: Batch) -> Tensor:
        """(B, classes of the organ). Only the volumes and the organ's class-independent query enter."""
        return self.heads[batch.organ](self.fuse(batch.volumes, batch.present, batch.organ))


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
