"""Finding a study's report among reports, and the reverse: unit vectors (N, D) of both -> recall@k and median rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

CUTS = (1, 5, 10)


def retrieval(image: Tensor, text: Tensor, reports: Sequence[str]) -> dict[str, Any]:
    """`image_to_report` and `report_to_image`: recall@1/5/10, median rank, n; `distinct`: different reports among them.

    image, text: (N, D) unit vectors of studies and of their own reports. Studies whose reports read the same are hits of
    one another. None with a `reason` where there is nothing to tell apart.
    """
    if not len(image) == len(text) == len(reports):
        raise ValueError(f"{len(image)} images, {len(text)} text embeddings and {len(reports)} reports do not pair up")
    code = {report: i for i, report in enumerate(dict.fromkeys(reports))}
    if len(code) < 2:
        reason = "retrieval needs two studies with different reports"
        return {"image_to_report": None, "report_to_image": None, "n": len(reports), "reason": reason}
    of = torch.tensor([code[r] for r in reports])
    # A report's embedding is computed once: duplicates must tie to the last bit, or they would hide one another.
    first = torch.tensor([int((of == i).nonzero()[0, 0]) for i in range(len(code))])
    cosine = image.float().cpu() @ text.float().cpu()[first[of]].T
    hit = of[:, None] == of
    return {
        "image_to_report": _told(ranks(cosine, hit), len(code)),
        "report_to_image": _told(ranks(cosine.T, hit), len(code)),
    }


def ranks(similarity: Tensor, hit: Tensor) -> np.ndarray:
    """(Q, K) similarities and hits -> (Q,) rank of each query's best hit, 1 is best.

    rank = 1 + wrong candidates that are nearer + half of those just as near: the mean over the orders of a tie, so that a
    model that calls everything alike gains nothing. Other hits never push a hit back.
    """
    best = similarity.masked_fill(~hit, -torch.inf).amax(1, keepdim=True)
    nearer = ((similarity > best) & ~hit).sum(1)
    tied = ((similarity == best) & ~hit).sum(1)
    return (1 + nearer + tied / 2).numpy()


def _told(rank: np.ndarray, distinct: int) -> dict[str, Any]:
    recall = {f"recall@{k}": float((rank <= k).mean()) for k in CUTS}
    return {**recall, "median_rank": float(np.median(rank)), "n": len(rank), "distinct": distinct}
