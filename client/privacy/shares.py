"""What each patient of a chunk gives to one parameter: its gradients as rows, or the two factors they are products of.

Shapes: P patients, T places at which a layer applies its weight to a patient's data, K inputs and O outputs of the weight there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Outer(NamedTuple):
    """inputs (P, T, K) and slopes (P, T, O): a patient's gradient of a weight (O, K) is slopes^T inputs, never written out.

    The norm follows from the factors ("ghost norm": Goodfellow 2015, arXiv 1510.01799; Li et al. 2022, arXiv 2110.05679) and the
    weighted sum over patients is one product, so that nothing of the size P O K is ever kept.
    """

    inputs: Tensor
    slopes: Tensor


Share = Tensor | Outer  # a tensor: (P, *shape)


def is_cheaper(*, places: int, inputs: int, outputs: int) -> bool:
    """Whether factors beat rows: two float64 Gram matrices against one product in float32."""
    return 2 * places * (inputs + outputs) < inputs * outputs


def rows(share: Share) -> Tensor:
    """(P, *shape) or, of factors, (P, O, K)."""
    return share.slopes.transpose(1, 2) @ share.inputs if isinstance(share, Outer) else share


def merged(shares: list[Share]) -> Share:
    """What a parameter gets of a patient in all its uses: gradients add up before anybody takes a norm."""
    if len(shares) == 1:
        return shares[0]
    factors = [s for s in shares if isinstance(s, Outer)]
    if len(factors) == len(shares):
        return Outer(*(torch.cat(column, 1) for column in zip(*factors, strict=True)))
    parts = [rows(s) for s in shares]
    return torch.stack([p.reshape(parts[0].shape) for p in parts]).sum(0)


def norms(shares: Iterable[Share], *, at_once: int) -> Tensor:
    """(P,) float64: the norm of each patient's gradients of all parameters together, never too small.

    at_once: patients that a sum may be of; P may be fewer, and a patient's norm must not depend on how many others there are.

    Of rows it is the norm of the very numbers that are summed. The sum of factors is computed anew, in the type of the
    model: what rounding could add there at most is added to the norm, or a patient whose terms cancel could pass the bound.
    """
    found = [_of_factors(s, at_once) if isinstance(s, Outer) else _of_rows(s) for s in shares]
    return torch.stack(found).norm(dim=0)


def add_weighted(total: Tensor, share: Share, factor: Tensor) -> None:
    """total += sum over patients of factor * gradient. total: float32. factor: (P,); where it is 0 nothing is read."""
    counts = factor > 0  # no product for the others: 0 * nan is nan
    if not counts.all():
        share = Outer(*(t[counts] for t in share)) if isinstance(share, Outer) else share[counts]
        factor = factor[counts]
    if isinstance(share, Outer):
        weighted = share.slopes * factor.to(share.slopes.dtype)[:, None, None]
        total += (weighted.flatten(0, 1).T @ share.inputs.flatten(0, 1)).view(total.shape)
    else:
        total.view(-1).addmv_(share.float().reshape(len(share), total.numel()).T, factor.float())


def _of_rows(share: Tensor) -> Tensor:
    return torch.linalg.vector_norm(share.reshape(len(share), -1), dim=1, dtype=torch.float64)


def _of_factors(share: Outer, at_once: int) -> Tensor:
    """|sum_t s_t x_t^T|^2 = sum over t, u of (x_t . x_u)(s_t . s_u), in float64; then what rounding may add to the sum."""
    inputs, slopes = (t.double() for t in share)
    gram = (inputs @ inputs.transpose(1, 2)).mul_(slopes @ slopes.transpose(1, 2))
    norm = gram.sum((1, 2)).clamp(min=0).sqrt()  # nan stays nan
    terms = (inputs.norm(dim=2) * slopes.norm(dim=2)).sum(1)
    summands = at_once * share.inputs.shape[1] + 2  # of all patients: they are summed in one product
    unseen = (
        torch.finfo(torch.float64).eps ** 0.5
    )  # terms that cancel to less than this leave no trace in float64 squares
    return norm + terms * max(summands * torch.finfo(share.inputs.dtype).eps / 2, unseen)
