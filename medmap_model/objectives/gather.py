"""The texts of a batch: its own reports (B), past reports (Q), turned reports (B K), and the public bank (P).

T = B + Q + B K, in this order: objectives rely on the first B being the records' own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from configs.stages import PretrainConfig
from medmap_model.batch import Batch
from medmap_model.objectives.base import Past, Texts
from medmap_model.objectives.positives import Said, prompt_positives, report_positives, reports_that_fit
from medmap_model.objectives.queue import Records

if TYPE_CHECKING:
    from medmap_model.model import MedMAP


def report_texts(
    model: MedMAP, batch: Batch, config: PretrainConfig, records: Records | None
) -> tuple[Texts, Past | None]:
    """The reports to contrast with, and the images of the past ones (None without a queue)."""
    b = len(batch)
    mine = Said(batch.label, batch.report, batch.has_report)
    embedding, candidate = [batch.report], [batch.has_report]
    positive = [report_positives(*mine, positives=config.positives, same_text=config.same_text)]
    if records is not None:
        positive.append(_fit(mine, records.said, config))
        embedding.append(records.report)
        candidate.append(records.has_report)
    turned = batch.negatives if config.hard_negatives else None
    if turned is not None:
        embedding.append(turned.flatten(0, 1))
        positive.append(positive[0].new_zeros(b, b * turned.shape[1]))
    texts = Texts(model.text_embeddings(torch.cat(embedding)), torch.cat(positive, 1), torch.cat(candidate))
    if turned is not None:
        shared = texts.candidate.expand(b, 1, -1)
        texts = texts._replace(candidate=torch.cat([shared, _own(turned)], 2))
    if records is None:
        return texts, None
    fit = torch.cat([_fit(records.said, said, config) for said in (mine, records.said)], 1)
    none = fit.new_zeros(len(fit), texts.positive.shape[1] - fit.shape[1])
    return texts, Past(records.image, records.valid, torch.cat([fit, none], 1))


def _fit(rows: Said, columns: Said, config: PretrainConfig) -> Tensor:
    return reports_that_fit(rows, columns, positives=config.positives, same_text=config.same_text)


def _own(turned: Tensor) -> Tensor:
    """(B, K, E) -> (B, 1, B K) bool: a turned report that there is contradicts its own record; of others it says nothing."""
    there = turned.abs().sum(2) > 0
    own = torch.eye(len(turned), dtype=torch.bool, device=turned.device)
    return (own[:, :, None] & there[None]).flatten(1)[:, None]


def bank_texts(model: MedMAP, batch: Batch, slots: int, config: PretrainConfig) -> Texts:
    """The vocabulary's public texts; one that is about a modality may be compared with that modality's images alone."""
    bank = model.texts.bank(batch.organ, config.bank)
    positive = prompt_positives(
        batch.label,
        batch.report,
        batch.has_report,
        bank.embedding,
        bank.label,
        positives=config.positives,
        same_text=config.same_text,
        multi_label=model.vocabulary.organs[batch.organ].multi_label,
    )
    slot = torch.arange(slots, device=bank.slot.device)[:, None]
    candidate = (bank.slot < 0) | (bank.slot == slot)  # (S, T)
    return Texts(model.text_embeddings(bank.embedding), positive, candidate[None])
