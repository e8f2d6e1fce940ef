"""Gradients per patient of a layer's weight and bias, from the layer's input and the gradient of its output.

Rows: N inputs of a layer, each of one patient; a patient may have several (volumes through a shared encoder) or none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv3d_weight

from client.privacy.shares import Outer, Share, is_cheaper


class Owners:
    """Whose each of N rows is: `patient` (N,) holds numbers below `patients`, in any order.

    most: rows that a patient may have, by the model and not by who is here: it decides how norms are taken, and no patient's
    norm may depend on how many volumes another one has. Raises ValueError when a patient has more.
    """

    def __init__(self, patient: Tensor, *, patients: int, most: int = 1) -> None:
        self.patient, self.patients, self.most = patient, patients, most
        if len(patient) and int(torch.bincount(patient).max()) > most:
            raise ValueError(f"a patient has more than {most} rows")
        self.own = most == 1 and len(patient) == patients and bool((patient == torch.arange(patients)).all())

    def summed(self, found: Tensor) -> Tensor:
        """(N, ...) -> (P, ...): what a patient has in several rows adds up; zeros for a patient without any."""
        if self.own:  # row i is patient i's
            return found
        total = found.new_zeros(self.patients, *found.shape[1:])
        return total.index_add_(0, self.patient.to(found.device), found)

    def lined_up(self, found: Tensor) -> Tensor:
        """(N, T, F) -> (P, most T, F): a patient's rows one behind the other, zeros behind them."""
        if self.own:
            return found
        earlier = (self.patient[:, None] == self.patient).tril(-1).sum(1)  # rows of the same patient
        total = found.new_zeros(self.patients * self.most, *found.shape[1:])
        total[(self.patient * self.most + earlier).to(found.device)] = found
        return total.unflatten(0, (self.patients, self.most)).flatten(1, 2)


Rule = Callable[[nn.Module, Tensor, Tensor, Owners, Collection[str]], dict[str, Share]]


def _linear(layer: nn.Module, x: Tensor, slope: Tensor, owners: Owners, wanted: Collection[str]) -> dict[str, Share]:
    """x (N, ..., K), slope (N, ..., O)."""
    x, slope = (t.reshape(len(t), -1, t.shape[-1]) for t in (x, slope))
    return _of_weight(x, slope, owners, wanted) | _of_bias(slope.sum(1), owners, wanted)


def _convolution(
    layer: nn.Module, x: Tensor, slope: Tensor, owners: Owners, wanted: Collection[str]
) -> dict[str, Share]:
    """x (N, I, D, H, W), slope (N, O, d, h, w)."""
    assert isinstance(layer, nn.Conv3d)
    found = _of_bias(slope.flatten(2).sum(2), owners, wanted)
    if "weight" not in wanted:
        return found
    places = slope[0, 0].numel()
    if (
        layer.groups == 1
        and set(layer.dilation) == {1}
        and is_cheaper(places=places * owners.most, inputs=layer.weight[0].numel(), outputs=layer.out_channels)
    ):
        return found | _of_weight(_columns(layer, x), slope.flatten(2).transpose(1, 2), owners, wanted)
    # One convolution with the rows for groups: the gradient of each row's own weight, nearly at the price of a shared one.
    n = len(x)
    each = conv3d_weight(
        x.reshape(1, -1, *x.shape[2:]),
        (n * layer.out_channels, *layer.weight.shape[1:]),
        slope.reshape(1, -1, *slope.shape[2:]),
        layer.stride,
        _sides(layer),
        layer.dilation,
        n * layer.groups,
    )
    return found | {"weight": owners.summed(each.unflatten(0, (n, -1)))}


def _sides(layer: nn.Conv3d) -> list[int]:
    """Zeros on either side of each axis; `rule_of` takes no convolution that says it in words."""
    return [int(side) for side in layer.padding]


def _columns(layer: nn.Conv3d, x: Tensor) -> Tensor:
    """(N, T, K): what the kernel sees at each of T places."""
    x = F.pad(x, [p for side in reversed(_sides(layer)) for p in (side, side)])
    for axis, (size, step) in enumerate(zip(layer.kernel_size, layer.stride, strict=True), 2):
        x = x.unfold(axis, size, step)
    return x.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4).flatten(1, 3)


def _group_norm(
    layer: nn.Module, x: Tensor, slope: Tensor, owners: Owners, wanted: Collection[str]
) -> dict[str, Share]:
    """x, slope (N, C, ...)."""
    assert isinstance(layer, nn.GroupNorm)
    normed = F.group_norm(x, layer.num_groups, eps=layer.eps)
    return _of_scale(normed.flatten(2), slope.flatten(2), 2, owners, wanted)


def _layer_norm(
    layer: nn.Module, x: Tensor, slope: Tensor, owners: Owners, wanted: Collection[str]
) -> dict[str, Share]:
    """x, slope (N, ..., *normalized_shape)."""
    assert isinstance(layer, nn.LayerNorm)
    shape = layer.normalized_shape
    normed, slope = (t.reshape(len(x), -1, *shape) for t in (F.layer_norm(x, shape, eps=layer.eps), slope))
    return _of_scale(normed, slope, 1, owners, wanted)


def _of_weight(x: Tensor, slope: Tensor, owners: Owners, wanted: Collection[str]) -> dict[str, Share]:
    """x (N, T, K), slope (N, T, O)."""
    if "weight" not in wanted:
        return {}
    if is_cheaper(places=x.shape[1] * owners.most, inputs=x.shape[2], outputs=slope.shape[2]):
        return {"weight": Outer(owners.lined_up(x), owners.lined_up(slope))}
    return {"weight": owners.summed(slope.transpose(1, 2) @ x)}


def _of_bias(slope: Tensor, owners: Owners, wanted: Collection[str]) -> dict[str, Share]:
    return {"bias": owners.summed(slope)} if "bias" in wanted else {}


def _of_scale(normed: Tensor, slope: Tensor, axis: int, owners: Owners, wanted: Collection[str]) -> dict[str, Share]:
    """A norm's weight and bias, which scale and shift what is normed; summed over one axis."""
    found = {"weight": owners.summed((normed * slope).sum(axis))} if "weight" in wanted else {}
    return found | _of_bias(slope.sum(axis), owners, wanted)


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv3d: _convolution,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
}


def rule_of(layer: nn.Module) -> Rule | None:
    """The layer's rule, if it has one. A subclass may compute anything, so it has none."""
    if isinstance(layer, nn.Conv3d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        return None
    return RULES.get(type(layer))
