"""A vocabulary's public texts as frozen embeddings: buffers of the model, computed once, never trained, never sent.

P prompts, A attributes, E text embedding, C classes, M modality slots.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from medmap_model.text.encoder import TextEncoder
from medmap_model.vocabulary import Vocabulary

OTHER_ORGAN = -2


class Bank(NamedTuple):
    """Public texts seen from one organ.

    embedding: (T, E). label: (T,) class of this organ, or OTHER_ORGAN: never a positive. slot: (T,) the modality slot
    that the text is about, -1 where it is about the study: such a text may be compared with every image.
    """

    embedding: Tensor
    label: Tensor
    slot: Tensor


class PublicTexts(nn.Module):
    """Prompts and attributes of every class, the query of every organ and the text of every modality."""

    embedding: Tensor
    _organ: Tensor
    _label: Tensor
    _slot: Tensor
    _ensemble: Tensor
    _ensemble_organ: Tensor
    _ensemble_label: Tensor
    _queries: Tensor
    _modalities: Tensor

    def __init__(self, vocabulary: Vocabulary, text: TextEncoder) -> None:
        super().__init__()
        organs = list(vocabulary.organs.values())
        self.vocabulary, self._index = vocabulary, {o.name: i for i, o in enumerate(organs)}
        rows = [(i, c, -1, t) for i, o in enumerate(organs) for c, ts in enumerate(o.prompts.values()) for t in ts]
        self._prompts = len(rows)
        rows += [
            (i, o.abnormalities.index(c), o.modalities.index(m), t)
            for i, o in enumerate(organs)
            for c, by_modality in o.attributes.items()
            for m, ts in by_modality.items()
            for t in ts
        ]
        self.register_buffer("embedding", text.embed([r[3] for r in rows]), persistent=False)
        self.register_buffer("_organ", torch.tensor([r[0] for r in rows]), persistent=False)
        self.register_buffer("_label", torch.tensor([r[1] for r in rows]), persistent=False)
        self.register_buffer("_slot", torch.tensor([r[2] for r in rows]), persistent=False)
        ensemble = [
            (i, c, t) for i, o in enumerate(organs) for c, name in enumerate(o.abnormalities) for t in o.ensemble(name)
        ]
        self.register_buffer("_ensemble", text.embed([r[2] for r in ensemble]), persistent=False)
        self.register_buffer("_ensemble_organ", torch.tensor([r[0] for r in ensemble]), persistent=False)
        self.register_buffer("_ensemble_label", torch.tensor([r[1] for r in ensemble]), persistent=False)
        self.register_buffer("_queries", text.embed([o.query for o in organs]), persistent=False)
        texts = [(o.name, [o.modality_text(m) for m in o.modalities]) for o in organs]
        self._starts = {}
        flat: list[str] = []
        for name, ts in texts:
            self._starts[name] = (len(flat), len(flat) + len(ts))
            flat += ts
        self.register_buffer("_modalities", text.embed(flat), persistent=False)

    def bank(self, organ: str, kind: str) -> Bank:
        """kind: prompts, attributes or both. Attributes are those of this organ alone; prompts of others are negatives."""
        mine = self._organ == self._index[organ]
        prompt = torch.arange(len(mine), device=mine.device) < self._prompts
        wanted = {"prompts": prompt, "attributes": ~prompt & mine, "both": prompt | mine}[kind]
        label = torch.where(mine, self._label, OTHER_ORGAN)
        return Bank(self.embedding[wanted], label[wanted], self._slot[wanted])

    def ensemble(self, organ: str) -> tuple[Tensor, Tensor]:
        """((T, E), (T,)): each class's prompts in each template of the organ, and the class of each.

        The mean of a class's unit vectors is its zero-shot classifier (CLIP, arXiv 2103.00020, section 3.1.4).
        """
        mine = self._ensemble_organ == self._index[organ]
        return self._ensemble[mine], self._ensemble_label[mine]

    def query(self, organ: str) -> Tensor:
        """(E,): the organ's class-independent question."""
        return self._queries[self._index[organ]]

    def modalities(self, organ: str) -> Tensor:
        """(M, E): what each modality slot of the organ is."""
        start, stop = self._starts[organ]
        return self._modalities[start:stop]

    def classes(self, organ: str) -> Tensor:
        """(C, E): the mean of each class's prompts."""
        bank = self.bank(organ, "prompts")
        count = len(self.vocabulary.organs[organ].abnormalities)
        return torch.stack([bank.embedding[bank.label == c].mean(0) for c in range(count)])

    def of_labels(self, label: Tensor, organ: str) -> Tensor:
        """(B,) labels -> (B, E): the text of each record's class (multi-label: the mean over its classes).

        A record whose label is not known gets class 0's: it must not count.
        """
        member = targets(
            label, len(self.vocabulary.organs[organ].abnormalities), self.vocabulary.organs[organ].multi_label
        )
        member = member.to(self.embedding.dtype)
        return member @ self.classes(organ) / member.sum(1, keepdim=True).clamp(min=1)


def targets(label: Tensor, classes: int, multi_label: bool) -> Tensor:
    """(B,) labels -> (B, C) float, 1 where the class is there; class 0 of an unknown label (it must not count)."""
    known = label.clamp(min=0)[:, None]
    index = torch.arange(classes, device=label.device)
    return ((known >> index) & 1 if multi_label else known == index).float()
