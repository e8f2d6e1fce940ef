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
from client.privacy.shares import Share, add_weighted, norms, rows
from medmap_model.batch import Batch
from medmap_model.encoders import refuse_running_statistics

Vectors = dict[str, Tensor]


_LARGEST = 1e30  # of a norm over C: beyond, C / norm has too few bits in float32 to keep the bound


class PatientGradients:
    """Clipped gradients of `loss(model, batch of one patient)` with respect to the named parameters.

    Frozen parameters and buffers are constants. clip_norm: C. chunk: patients per vmap call; 0: one at a time in a loop.
    Raises ModelError for a model with running statistics, which would leak unclipped.
    """

    kind = "vmap"

    def __init__(
        self, model: nn.Module, loss: RecordLoss, parameters: Iterable[str], *, clip_norm: float, chunk: int
    ) -> None:
        refuse_running_statistics(model)
        if not clip_norm > 0:
            raise ValueError(f"clip_norm={clip_norm}: take a number above 0")
        self.model, self.loss, self.clip_norm, self.chunk = model, loss, clip_norm, chunk
        self.names = list(parameters)
        self._shell = Shell(model, loss)

    def clipped_sum(self, batch: Batch) -> Vectors:
        """Parameter -> sum over the batch's patients of their clipped gradients; zeros for an empty batch."""
        trained, constants = self._split()
        total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in trained.items()}
        at_once = max(1, self.chunk)
        for start in range(0, len(batch), at_once):
            part = tensors(batch.rows(slice(start, start + at_once)))
            gradients = self._gradients(trained, constants, part, batch.organ)
            if gradients:
                factor = self._factors(norms(gradients.values(), at_once=at_once))
                for name, share in gradients.items():
                    add_weighted(total[name], share, factor)
        return total

    def each(self, batch: Batch) -> Vectors:
        """Parameter -> (patients, *shape): gradients as they are, not clipped. Of made-up patients only."""
        trained, constants = self._split()
        found = self._gradients(trained, constants, tensors(batch), batch.organ)
        none = {n: p.new_zeros(len(batch), *p.shape) for n, p in trained.items() if n not in found}
        return {n: rows(share).reshape(len(batch), *trained[n].shape) for n, share in found.items()} | none

    def _gradients(self, trained: Vectors, constants: Vectors, part: Vectors, organ: str) -> Mapping[str, Share]:
        """Parameter -> what each patient gives it; a parameter that no loss used may be left out."""

        def of_one(weights: Vectors, record: Vectors) -> Tensor:
            one = Batch(organ=organ, **{k: v[None] for k, v in record.items()})
            values = {f"model.{k}": v for k, v in {**constants, **weights}.items()}
            return functional_call(self._shell, values, (one,))

        if self.chunk:
            return vmap(grad(of_one), (None, 0), randomness="different")(trained, part)
        each = [grad(of_one)(trained, {k: v[i] for k, v in part.items()}) for i in range(len(part["label"]))]
        return {name: torch.stack([g[name] for g in each]) for name in trained}

    def _factors(self, norm: Tensor) -> Tensor:
        """(patients,) float64: min(1, C / norm), and 0 where the norm is not finite or a factor would be no normal float32."""
        factor = (self.clip_norm * (1 - 1e-6) / norm.clamp(min=1e-12)).clamp(max=1.0)
        return torch.where(norm <= _LARGEST * self.clip_norm, factor, torch.zeros_like(norm))

    def _split(self) -> tuple[Vectors, Vectors]:
        everything = {k: p.detach() for k, p in self.model.named_parameters()}
        trained = {name: everything[name] for name in self.names}
        constants = {k: v for k, v in everything.items() if k not in trained}
        return trained, constants | dict(self.model.named_buffers())


class Shell(nn.Module):
    """Makes a loss of a model callable as a module, so that `functional_call` can swap the weights."""

    def __init__(self, model: nn.Module, loss: RecordLoss) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, batch: Batch) -> Tensor:
        """A scalar."""
        return self._loss(self.model, batch)
