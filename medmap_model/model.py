"""MedMAP: encoders of modalities, frozen text, fusion, a head per organ; batches in, losses or logits out.

Shapes: B records of one organ, M modality slots, D = embed_dim, E the text embedding, P public texts, C classes,
N tokens per modality, W width of the fusion's tokens.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.schema import ModelConfig
from configs.stages import FinetuneConfig, PretrainConfig
from medmap_model import objectives
from medmap_model.batch import Batch
from medmap_model.encoders import Encoded, Encoder, build_encoder, full_precision, refuse_running_statistics, summary
from medmap_model.fusion import FusionInput, build_fusion, drop_modalities, token_width
from medmap_model.fusion.medmap import pool_tokens
from medmap_model.groups import layout, trunks
from medmap_model.text import TextEncoder
from medmap_model.text.bank import PublicTexts
from medmap_model.vocabulary import Vocabulary


class Embedded(NamedTuple):
    """The volumes of a batch after their encoders, zeros where absent; all that a fusion needs of them.

    pooled: (B, M, D). tokens: (B, M, N, W), or None for a fusion that takes none.
    """

    pooled: Tensor
    tokens: Tensor | None


class Projection(nn.Module):
    """A modality's way into the shared space, and its learned embeddings: for the fusion, and for a shared encoder."""

    def __init__(self, channels: int, dim: int, *, width: int, stem_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * channels, dim)
        self.embedding = nn.Parameter(torch.randn(dim) * 0.02)
        self.tokens = nn.Linear(channels, width) if width else None
        self.stem = nn.Parameter(torch.randn(stem_channels) * 0.02) if stem_channels else None

    def forward(self, encoded: Encoded) -> Tensor:
        """Tokens and pooled vector of B volumes -> (B, D)."""
        return self.linear(summary(encoded))


class TextProjection(nn.Module):
    """The trainable part of the text side, and the positions of the learned temperature and bias."""

    def __init__(self, text_dim: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(text_dim, dim)
        self.temperature = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, embedding: Tensor) -> Tensor:
        """Frozen text embedding (N, E) -> (N, D)."""
        return self.linear(embedding)


class MedMAP(nn.Module):
    """Modality-aware vision-language model (arXiv 2602.23652; our reading where the paper is silent: docs/method.md).

    The text encoder is used once, for the vocabulary's public texts; it is not a part of the model and never trained.
    """

    texts: PublicTexts

    def __init__(self, config: ModelConfig, vocabulary: Vocabulary, text: TextEncoder) -> None:
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.trunks = trunks(config, vocabulary)
        dim, width = config.embed_dim, token_width(config.fusion, dim=config.embed_dim)
        members = list(self.trunks.values())
        self.encoders, self.projections = nn.ModuleDict(), nn.ModuleDict()
        for trunk in dict.fromkeys(members):
            self.encoders[trunk] = build_encoder(config.encoder)
        for modality, trunk in self.trunks.items():
            encoder = cast(Encoder, self.encoders[trunk])
            stem = encoder.stem_channels if members.count(trunk) > 1 else 0
            self.projections[modality] = Projection(encoder.channels, dim, width=width, stem_channels=stem)
        self.text_projection = TextProjection(text.dim, dim)
        self.fusion = build_fusion(config.fusion, dim=dim)
        self.heads = nn.ModuleDict({o.name: nn.Linear(dim, len(o.abnormalities)) for o in vocabulary.organs.values()})
        self.texts = PublicTexts(vocabulary, text)
        refuse_running_statistics(self)

    def slots(self, organ: str) -> tuple[str, ...]:
        """The modalities of an organ's slots, in order. Raises KeyError for an organ the vocabulary lacks."""
        return self.vocabulary.organs[organ].modalities

    def encode(self, volumes: Tensor, present: Tensor, organ: str) -> Embedded:
        """(B, M, D, H, W), (B, M) bool -> `Embedded`; what is absent is never computed.

        Volumes whose modalities share an encoder pass through it together.
        """
        b, m = present.shape
        slots = self.slots(organ)
        where = present.cpu()  # one wait for a GPU, not one per slot
        rows: list[Tensor] = []
        pooled: list[Tensor] = []
        tokens: list[Tensor] = []
        for trunk in dict.fromkeys(self.trunks[s] for s in slots):
            mine = [i for i, s in enumerate(slots) if self.trunks[s] == trunk]
            found = {i: index.to(volumes.device) for i in mine if len(index := where[:, i].nonzero()[:, 0])}
            if not found:
                continue
            encoded = self._through(trunk, volumes, {slots[i]: (i, index) for i, index in found.items()})
            at = 0
            for i, index in found.items():
                projection = self._projection(slots[i])
                part = Encoded(*(t[at : at + len(index)] for t in encoded))
                at += len(index)
                rows.append(index * m + i)
                pooled.append(projection(part))
                if projection.tokens is not None:
                    tokens.append(projection.tokens(pool_tokens(part.tokens, self.config.fusion.tokens)))
        if not rows:
            return self._nothing(volumes, b, m)
        order = torch.cat(rows)
        return Embedded(
            _placed(torch.cat(pooled), order, b, m), _placed(torch.cat(tokens), order, b, m) if tokens else None
        )

    def _through(self, trunk: str, volumes: Tensor, found: dict[str, tuple[int, Tensor]]) -> Encoded:
        """All volumes of an encoder's modalities, one modality after the other."""
        parts, told = [], []
        for modality, (slot, index) in found.items():
            volume = volumes[:, slot : slot + 1]
            parts.append(volume if len(index) == len(volumes) else volume.index_select(0, index))
            stem = self._projection(modality).stem
            if stem is not None:
                told.append(stem.expand(len(index), -1))
        volume = parts[0] if len(parts) == 1 else torch.cat(parts)
        return self.encoders[trunk](volume, torch.cat(told)) if told else self.encoders[trunk](volume)

    def encode_dense(self, volumes: Tensor, present: Tensor, organ: str) -> Embedded:
        """As `encode`, but every slot is computed and absent ones are zeroed: no shape depends on `present`.

        What `torch.func.vmap` and an exported graph need. Costs as much as if all modalities were there.
        """
        b = present.shape[0]  # a symbol when exported
        shown = present[:, :, None, None, None]
        volumes = torch.where(shown, volumes, torch.zeros_like(volumes))  # not a product: 0 * nan is nan
        pooled, tokens = [], []
        for slot, modality in enumerate(self.slots(organ)):
            projection, encoder = self._projection(modality), self.encoders[self.trunks[modality]]
            told = () if projection.stem is None else (projection.stem.expand(b, -1),)
            encoded = encoder(volumes[:, slot : slot + 1], *told)
            here = present[:, slot : slot + 1]
            pooled.append(projection(encoded) * here)
            if projection.tokens is not None:
                part = projection.tokens(pool_tokens(encoded.tokens, self.config.fusion.tokens))
                tokens.append(part * here[..., None])
        return Embedded(torch.stack(pooled, 1), torch.stack(tokens, 1) if tokens else None)

    def _nothing(self, volumes: Tensor, b: int, m: int) -> Embedded:
        width = token_width(self.config.fusion, dim=self.config.embed_dim)
        tokens = volumes.new_zeros(b, m, 1, width) if width else None
        return Embedded(volumes.new_zeros(b, m, self.config.embed_dim), tokens)

    def image_embeddings(self, embedded: Embedded, present: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors (B, M + 1, D) in the space shared with texts, and which are valid (B, M + 1); the last is the mean."""
        pooled = full_precision(embedded.pooled)
        count = present.sum(1)[:, None, None].clamp(min=1)
        mean = pooled.sum(1, keepdim=True) / count
        valid = torch.cat([present, present.any(1, keepdim=True)], 1)
        return F.normalize(torch.cat([pooled, mean], 1), dim=2), valid

    def text_embeddings(self, embedding: Tensor) -> Tensor:
        """Frozen text embeddings (..., E) -> unit vectors (..., D) in the space shared with images."""
        return F.normalize(self.text_projection(full_precision(embedding)), dim=-1)

    def class_embeddings(self, organ: str) -> Tensor:
        """(C, D) unit vectors: each class's prompt ensemble, the mean of its prompts' unit vectors in every template."""
        embedding, label = self.texts.ensemble(organ)
        each = self.text_embeddings(embedding)
        classes = range(len(self.vocabulary.organs[organ].abnormalities))
        return F.normalize(torch.stack([each[label == c].mean(0) for c in classes]), dim=1)

    def sharpness(self, config: PretrainConfig) -> objectives.Sharpness:
        """The learned temperature, within the bounds of the settings, and bias."""
        low, high = config.temperature_bounds
        tau = objectives.bounded_temperature(
            self.text_projection.temperature, start=config.temperature, bounds=(low, high)
        )
        return objectives.Sharpness(tau, self.text_projection.bias)

    def pretrain_loss(
        self, batch: Batch, config: PretrainConfig, *, queue: objectives.Queue | None = None, dense: bool = False
    ) -> dict[str, Tensor]:
        """Stage 1: the objective that `config.objective` names, with whatever other terms it asks for.

        Every present modality is an image, and so is the mean over them; texts are the batch's reports and the public
        bank. queue: past records of this round as further candidates. dense: as `encode_dense`. The term `loss` alone has
        a gradient.
        """
        embedded = (self.encode_dense if dense else self.encode)(batch.volumes, batch.present, batch.organ)
        with torch.autocast(batch.volumes.device.type, enabled=False):
            image, valid = self.image_embeddings(embedded, batch.present)
            sharpness = self.sharpness(config)
            terms = objectives.pretrain(self, batch, image, valid, sharpness, config, queue)
        return {"loss": terms.pop("loss"), **_detached(terms | {"temperature": sharpness.temperature})}

    def finetune_loss(
        self, batch: Batch, config: FinetuneConfig, *, progress: float, dense: bool = False
    ) -> dict[str, Tensor]:
        """Stage 2: loss = w * supervised + (1 - w) * alignment, w = `supervised_share` of progress.

        progress: 0..1 over the stage. dense: as `encode_dense`. Modality dropout draws from torch's global RNG. Terms: loss
        (the only one with a gradient), supervised, alignment.
        """
        present = drop_modalities(batch.present, rate=config.modality_dropout)
        embedded = (self.encode_dense if dense else self.encode)(batch.volumes, present, batch.organ)
        feature = self.fuse(embedded, present, batch.organ)
        organ = self.vocabulary.organs[batch.organ]
        supervised = objectives.supervised(
            full_precision(self.classify(feature, batch.organ)), batch.label, organ, config
        )
        share = objectives.supervised_share(progress, floor=config.supervised_floor)
        texts = full_precision(self.text_projection(self.texts.of_labels(batch.label, batch.organ)))
        # Of a multi-label organ, a patient who has none of the abnormalities has no text to align with.
        described = batch.label.masked_fill(batch.label == 0, -1) if organ.multi_label else batch.label
        aligned = objectives.alignment(full_precision(feature), texts, described)
        loss = share * supervised["loss"] + (1 - share) * aligned["loss"]
        terms = {"supervised": supervised["loss"], "alignment": aligned["loss"]}
        return {"loss": loss, **_detached(terms)}

    def _projection(self, modality: str) -> Projection:
        return cast(Projection, self.projections[modality])

    def fuse(self, embedded: Embedded, present: Tensor, organ: str) -> Tensor:
        """`Embedded`, (B, M) bool -> fused feature (B, D), guided by the organ's class-independent texts.

        present may hide more than was encoded: the fusion alone is then run again (`evaluation.missing`).
        """
        modality = torch.stack([self._projection(m).embedding for m in self.slots(organ)])
        query, modality_text = self.texts.query(organ), self.texts.modalities(organ)
        projected = self.text_projection(torch.cat([query[None], modality_text]))
        return self.fusion(FusionInput(*embedded, present, modality, projected[1:], projected[0]))

    def classify(self, feature: Tensor, organ: str) -> Tensor:
        """Fused feature (B, D) -> logits (B, C)."""
        return self.heads[organ](feature)

    def logits(self, batch: Batch) -> Tensor:
        """(B, C). Only the volumes and the organ's class-independent texts enter."""
        embedded = self.encode(batch.volumes, batch.present, batch.organ)
        return self.classify(self.fuse(embedded, batch.present, batch.organ), batch.organ)

    def probabilities(self, logits: Tensor, organ: str) -> Tensor:
        """(B, C) logits -> probabilities: over the classes, or of each class for a multi-label organ."""
        return logits.sigmoid() if self.vocabulary.organs[organ].multi_label else logits.softmax(1)


def _placed(found: Tensor, order: Tensor, b: int, m: int) -> Tensor:
    """Rows (R, ...) at places `order` of a flat (B M, ...) that is zero elsewhere -> (B, M, ...)."""
    empty = found.new_zeros(b * m, *found.shape[1:])
    return empty.index_copy(0, order, found).unflatten(0, (b, m))


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
