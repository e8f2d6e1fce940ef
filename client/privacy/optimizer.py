"""A step of DP-SGD: a clipped sum of patients in, noise added, divided by a fixed public number, then any optimiser.

Opacus' DPOptimizer (grad_sample_mode "no_op") with its two weak points replaced: sums come clipped from
`gradients.PatientGradients` and noise from `medmap_model.randomness.SecretRandom`, not from torch's global generator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor

from medmap_model.randomness import SecretRandom


class PatientDPOptimizer(DPOptimizer):
    """Wraps an optimiser over the named parameters; `step_on` is all that is called.

    expected_patients: sample_rate * public cohort size: the divisor, the same whoever was drawn. It may not depend on
    the draw, or the division itself would tell.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        clip_norm: float,
        expected_patients: float,
        secret: SecretRandom,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=clip_norm,
            expected_batch_size=expected_patients,
        )
        self._secret = secret

    def step_on(self, sums: Mapping[str, Tensor], named: Mapping[str, torch.nn.Parameter]) -> None:
        """Noise, division and one step. sums: name -> clipped sum, for every parameter of the optimiser."""
        for name, parameter in named.items():
            parameter.summed_grad = sums[name]  # type: ignore[attr-defined]
        self.add_noise()
        self.scale_grad()
        self.original_optimizer.step()
        for parameter in named.values():
            parameter.summed_grad, parameter.grad = None, None  # type: ignore[attr-defined]

    def add_noise(self) -> None:
        """Gaussian noise of noise_multiplier * clip_norm on every coordinate, whether or not anybody was drawn."""
        std = float(self.noise_multiplier) * float(self.max_grad_norm)
        sizes = [p.numel() for p in self.params]
        noise = self._secret.normal((sum(sizes),), std=std).split(sizes)  # drawn once: many layers are small
        for p, drawn in zip(self.params, noise, strict=True):
            total: Any = p.summed_grad
            p.grad = (total.double() + drawn.to(total.device).view_as(total)).to(
                p.dtype
            )  # rounded last: post-processing

    @property
    def accumulated_iterations(self) -> int:
        """One clipped sum is one step."""
        return 1
