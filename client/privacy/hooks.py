"""Gradients per patient by Opacus' hooks instead of `vmap`: a check from another school, for the models that allow it.

Opacus (Yousefpour et al. 2021, arXiv 2109.12298) takes the first axis of whatever enters a layer for the patients. Where it
is not, or where a parameter is used outside its layer's own call, the result is wrong without a word. So this engine is
tried on made-up patients first (`engines.refuse_if_wrong`) and refused wherever a loop says otherwise: in MedMAP, for the text
projection, through which texts pass rather than patients, and for all of MedMAP's own fusion.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from opacus.grad_sample import GradSampleHooks
from torch import Tensor, nn

from client.privacy.gradients import PatientGradients, Vectors
from client.privacy.losses import RecordLoss, alike
from configs.setting import ConfigError
from medmap_model.batch import Batch
from medmap_model.model import MedMAP


class HookGradients(PatientGradients):
    """As `PatientGradients`, with the gradients of a chunk of patients from one backward pass with hooks.

    Raises ConfigError for a convolution that pads with anything but zeros: Opacus would take zeros.
    """

    kind = "hooks"

    def __init__(
        self, model: nn.Module, loss: RecordLoss, parameters: list[str], *, clip_norm: float, chunk: int
    ) -> None:
        super().__init__(model, loss, parameters, clip_norm=clip_norm, chunk=chunk)
        for name, layer in model.named_modules():
            if isinstance(layer, nn.modules.conv._ConvNd) and layer.padding_mode != "zeros":
                raise ConfigError(
                    f"privacy.engine=hooks: {name} pads with padding_mode={layer.padding_mode}, for which Opacus takes zeros and "
                    "gives wrong gradients; take privacy.engine=auto"
                )

    def clipped_sum(self, batch: Batch) -> Vectors:
        """Patients are taken in parts in which the mean loss times the number of patients is the sum of their losses."""
        several = cast(MedMAP, self.model).vocabulary.organs[batch.organ].multi_label
        total = super().clipped_sum(batch.rows(slice(0, 0)))
        for part in alike(batch, multi_label=several):
            for name, sums in super().clipped_sum(part).items():
                total[name] += sums
        return total

    def _gradients(self, trained: Vectors, constants: Vectors, part: Vectors, organ: str) -> Vectors:
        batch = Batch(organ=organ, **part)
        with _hooked(self.model, self.names) as named, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Full backward hook is firing")  # a first layer's input has no gradient
            (len(batch) * self._shell(batch)).backward()
            return {name: _rows(p, name, len(batch)) for name, p in named.items()}


@contextmanager
def _hooked(model: nn.Module, names: list[str]) -> Iterator[dict[str, nn.Parameter]]:
    """The named parameters with Opacus' hooks on their layers; afterwards the model is as it was.

    Opacus hooks layers in training mode only, so those that hold a trained parameter are put into it; the mode of the others,
    which may draw (dropout), stays.
    """
    everything = dict(model.named_parameters())
    named = {name: everything[name] for name in names}
    wanted = {name: p.requires_grad for name, p in everything.items()}
    holders = [m for n in names if not (m := model.get_submodule(n.rpartition(".")[0])).training]
    for name, parameter in everything.items():
        parameter.requires_grad_(name in named)
    for holder in holders:
        holder.training = True
    hooks = None
    try:
        hooks = GradSampleHooks(model, loss_reduction="sum", strict=True)
        yield named
    finally:
        if hooks is not None:
            hooks.cleanup()
        for holder in holders:
            holder.training = False
        for name, parameter in everything.items():
            parameter.requires_grad_(wanted[name])
            parameter.grad = None
        for module in model.modules():
            for left in ("activations", "max_batch_len"):
                if hasattr(module, left):
                    delattr(module, left)


def _rows(parameter: nn.Parameter, name: str, patients: int) -> Tensor:
    """(patients, *shape); zeros where the loss did not use the parameter."""
    found = cast(Tensor | None, getattr(parameter, "grad_sample", None))
    if found is None and parameter.grad is None:
        return parameter.new_zeros(patients, *parameter.shape)
    if found is None or found.shape != (patients, *parameter.shape):
        raise RuntimeError(f"it has no gradient per patient of {name}")
    return found.detach()
