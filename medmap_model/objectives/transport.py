"""Entropic partial optimal transport: costs (..., R, T) and capacities in, a plan (..., R, T) of a set total mass out."""

from __future__ import annotations

import torch
from torch import Tensor

_NEVER = -1e4  # logarithm of the kernel from dummy to dummy: finite, so that no difference of potentials is nan


def partial_plan(cost: Tensor, rows: Tensor, columns: Tensor, *, mass: float, epsilon: float) -> Tensor:
    """argmin <pi, cost> + epsilon * sum pi log pi, with row sums <= rows, column sums <= columns, sum pi = m.

    cost (..., R, T); rows (..., R) and columns (..., T) >= 0, 0 takes no part. m = mass * the smaller of both totals.
    Log-domain Sinkhorn (Cuturi 2013, arXiv 1306.0895) after the reduction of Chapel et al. 2020 (arXiv 2002.08276):
    a dummy row and a dummy column, free to reach, take what is not transported, and never each other's mass. The
    number of steps follows from epsilon alone (100 at 0.05), so that no GPU is waited for: the total is then met to 1e-3,
    and row and column sums to 1 %.
    """
    total = mass * torch.minimum(rows.sum(-1), columns.sum(-1))[..., None]
    left_rows, left_columns = rows.sum(-1, keepdim=True) - total, columns.sum(-1, keepdim=True) - total
    a = _log(torch.cat([rows, left_columns], -1))
    b = _log(torch.cat([columns, left_rows], -1))
    kernel = torch.nn.functional.pad(-cost / epsilon, (0, 1, 0, 1))
    kernel[..., -1, -1] = _NEVER
    u, v = torch.zeros_like(a), torch.zeros_like(b)
    for _ in range(min(2000, max(50, round(5 / epsilon)))):
        u = a - torch.logsumexp(kernel + v[..., None, :], -1)
        v = b - torch.logsumexp(kernel + u[..., :, None], -2)
    plan = (kernel + u[..., :, None] + v[..., None, :]).exp()[..., :-1, :-1]
    part = (rows > 0)[..., :, None] & (columns > 0)[..., None, :]
    return plan.masked_fill(~part, 0.0)


def _log(mass: Tensor) -> Tensor:
    return mass.clamp(min=1e-30).log()
