"""AdamW (Loshchilov and Hutter, arXiv 1711.05101) for the steps of one round, by torch's own fused kernel."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.adamw import adamw


class AdamW:
    """What `torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)` does, bit for bit.

    That class loads torch's compiler: a second and 120 MB in each process of a site, which Flower starts anew for every
    message. Parameters without a gradient are left as they are.
    """

    def __init__(self, parameters: Iterable[Tensor], *, lr: float, weight_decay: float) -> None:
        self.parameters, self.lr, self.weight_decay = list(parameters), lr, weight_decay
        self._state: dict[Tensor, tuple[Tensor, Tensor, Tensor]] = {}  # two moments, and the steps so far

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for p in self.parameters:
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One step along the gradients there are."""
        used = [p for p in self.parameters if p.grad is not None]
        if not used:
            return
        for p in used:
            if p not in self._state:
                self._state[p] = (torch.zeros_like(p), torch.zeros_like(p), torch.zeros((), device=p.device))
        means, squares, steps = (list(part) for part in zip(*(self._state[p] for p in used), strict=True))
        adamw(
            used, [p.grad for p in used if p.grad is not None], means, squares, [], steps, fused=True, amsgrad=False,
            maximize=False, beta1=0.9, beta2=0.999, eps=1e-8, lr=self.lr, weight_decay=self.weight_decay,
        )  # fmt: skip
