"""Sums of clipped per-patient gradients: (parameters, a batch of patients) -> one vector per parameter, norm <= C each.

`torch.func.vmap(grad)` over the whole model in chunks of patients; a loop where a model will not go through vmap. Sums in
float32 or better, norms in float64. A patient whose gradient is not finite contributes nothing, and nobody is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from client.privacy.losses import RecordLoss, tensors
from medmap_model.batch import Batch
from medmap_model.encoders import refuse_running_statistics

Vectors = dict[str, Tensor]


_LARGEST = 1e30  # of a norm over C: beyond, C / norm has too few bits in float32 to keep the bound


class PatientGradients:
    """Clipped gradients of `loss(model, batch of one patient)` with respect to the named parameters.

    Frozen parameters and buffers are constants. clip_norm: C. chunk: patients per vmap call; 0: one at a time in a loop.
    Raises ModelError for a model with running statistics, which would leak unclipped.
    """

    def __init__(
        self, model: nn.Module, loss: RecordLoss, parameters: Iterable[str], *, clip_norm: float, chunk: int
    ) -> None:
        refuse_running_statistics(model)
        if not clip_norm > 0:
            raise ValueError(f"clip_norm={clip_norm}: take a number above 0")
        self.model, self.loss, self.clip_norm, self.chunk = model, loss, clip_norm, chunk
        self.names = list(parameters)
        self._shell = _Shell(model, loss)

    def clipped_sum(self, batch: Batch) -> Vectors:
        """Parameter -> sum over the batch's patients of their clipped gradients; zeros for an empty batch."""
        trained, constants = self._split()
        total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in trained.items()}
        for start in range(0, len(batch), max(1, self.chunk)):
            part = tensors(batch.rows(slice(start, start + max(1, self.chunk))))
            gradients = self._gradients(trained, constants, part, batch.organ)
            factor = self._factors(gradients)
            counts = factor > 0  # no product for the others: 0 * nan is nan
            for name, g in gradients.items():
                rows = g if counts.all() else g[counts]
                total[name].view(-1).addmv_(
                    rows.float().reshape(len(rows), total[name].numel()).T, factor[counts].float()
                )
        return total

    def each(self, batch: Batch) -> Vectors:
        """Parameter -> (patients, *shape): gradients as they are, not clipped. Of made-up patients only."""
        return self._gradients(*self._split(), tensors(batch), batch.organ)

    def _gradients(self, trained: Vectors, constants: Vectors, part: Vectors, organ: str) -> Vectors:
        """Parameter -> (patients, *shape)."""

        def of_one(weights: Vectors, record: Vectors) -> Tensor:
            one = Batch(organ=organ, **{k: v[None] for k, v in record.items()})
            values = {f"model.{k}": v for k, v in {**constants, **weights}.items()}
            return functional_call(self._shell, values, (one,))

        if self.chunk:
            return vmap(grad(of_one), (None, 0), randomness="different")(trained, part)
        each = [grad(of_one)(trained, {k: v[i] for k, v in part.items()}) for i in range(len(part["label"]))]
        return {name: torch.stack([g[name] for g in each]) for name in trained}

    def _factors(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """(patients,) float64: min(1, C / norm), and 0 where the norm is not finite or a factor would be no normal float32."""
        norms = [
            torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1, dtype=torch.float64) for g in gradients.values()
        ]
        norm = torch.stack(norms).norm(dim=0)
        factor = (self.clip_norm * (1 - 1e-6) / norm.clamp(min=1e-12)).clamp(max=1.0)
        return torch.where(norm <= _LARGEST * self.clip_norm, factor, torch.zeros_like(norm))

    def _split(self) -> tuple[Vectors, Vectors]:
        everything = {k: p.detach() for k, p in self.model.named_parameters()}
        trained = {name: everything[name] for name in self.names}
        constants = {k: v for k, v in everything.items() if k not in trained}
        return trained, constants | dict(self.model.named_buffers())


class _Shell(nn.Module):
    """Makes a loss of a model callable as a module, so that `functional_call` can swap the weights."""

    def __init__(self, model: nn.Module, loss: RecordLoss) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, batch: Batch) -> Tensor:
        return self._loss(self.model, batch)
