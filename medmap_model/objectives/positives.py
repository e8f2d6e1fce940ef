"""Who says what whom shows: labels (R,), reports (R, E) and prompts (P, E) in, boolean tables of positives out.

A pair that is neither known to agree nor known to differ is decided by the words of the two texts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Said(NamedTuple):
    """What is known of R records: label (R,) int64, -1 unknown; report (R, E) unit norm or zero; has_report (R,) bool."""

    label: Tensor
    report: Tensor
    has_report: Tensor


def reports_that_fit(rows: Said, columns: Said, *, positives: str, same_text: float) -> Tensor:
    """(R, C) bool: [i, j] is whether report j of the columns says what record i of the rows shows.

    positives="abnormality": same label where both are known (of a multi-label organ: the same set of classes), else as
    "text"; "text": cosine of the two reports is at least same_text. A missing report never is a positive.
    """
    same = (rows.report @ columns.report.T >= same_text) & rows.has_report[:, None]
    if positives == "abnormality":
        known = (rows.label >= 0)[:, None] & (columns.label >= 0)[None]
        same = torch.where(known, rows.label[:, None] == columns.label[None], same)
    return same & columns.has_report[None]


def report_positives(label: Tensor, report: Tensor, has_report: Tensor, *, positives: str, same_text: float) -> Tensor:
    """(B, B) bool: `reports_that_fit` within a batch, where a record's own report is always a positive."""
    records = Said(label, report, has_report)
    own = torch.eye(len(label), dtype=torch.bool, device=label.device)
    return reports_that_fit(records, records, positives=positives, same_text=same_text) | (own & has_report[None])


def prompt_positives(
    label: Tensor,
    report: Tensor,
    has_report: Tensor,
    prompt: Tensor,
    prompt_label: Tensor,
    *,
    positives: str,
    same_text: float,
    multi_label: bool = False,
) -> Tensor:
    """(B, P) bool: whether public prompt p says what record i shows; the rule of `reports_that_fit`.

    prompt (P, E) unit norm; prompt_label (P,): the class of a prompt of this organ, negative for another organ's, which
    never is a positive. multi_label: a label is a bit set of classes, and the prompts of each of them are positives.
    """
    same = (report @ prompt.T >= same_text) & has_report[:, None]
    if positives == "abnormality":
        of_class, asked = label[:, None], prompt_label.clamp(min=0)[None]
        shown = ((of_class.clamp(min=0) >> asked) & 1).bool() if multi_label else of_class == asked
        same = torch.where(of_class >= 0, shown, same)
    return same & (prompt_label >= 0)[None]
