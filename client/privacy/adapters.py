"""Adapters of low rank for one private round: in a copy of the model, merged into the model's own weights afterwards.

What travels stays what it was: merging is post-processing of private values, and nobody outside the site can tell which
parameters trained. LoRA (Hu et al. 2022, arXiv 2106.09685) as its federated private form FFA-LoRA (Sun et al. 2024, arXiv
2403.12313): a layer's weight W becomes W + B A, of which B alone trains. With A trained as well, noise would multiply
noise, and twice the parameters or more would carry it.

A has orthonormal rows, so that a step on B is the step on W projected onto a random subspace of the layer's inputs. It is
drawn anew for each round, from a PUBLIC seed, the same at all sites: it depends on no patient, so it needs no secrecy,
and the mean of the sites' changes is of low rank too.
"""

from __future__ import annotations

import copy
from collections.abc import Collection

import torch
from torch import Tensor, nn

from configs.setting import ConfigError
from medmap_model.groups import group_of
from medmap_model.model import MedMAP

TRAINED = ".lora_B."  # in the names of peft's parameters


def adapted(model: MedMAP, groups: Collection[str], *, rank: int, seed: int) -> MedMAP:
    """A copy that answers as the model does, with an adapter at every layer of these module groups that can have one.

    That is every Linear and Conv3d (ungrouped, undilated, padded with zeros) whose inputs are more than `rank`, but for
    the heads: they are small and train in full. Raises ConfigError where there is none.
    """
    network = copy.deepcopy(model)
    names = [n for n, layer in network.named_modules() if _fits(layer, rank) and _group(n) in groups]
    names = [n for n in names if not n.startswith("heads.")]
    if not names:
        raise ConfigError(
            f"privacy.trainable=adapters with adapter_rank={rank}: no Linear or Conv3d layer that trains has more inputs "
            "than that; take a smaller rank, or privacy.trainable=norms"
        )
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds, and few sites need it

    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=names)
    with torch.random.fork_rng(devices=[]):  # peft draws an A of its own
        inject_adapter_in_model(config, network)
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        a = _factors(network, name)[0]
        with torch.no_grad():
            a.copy_(nn.init.orthogonal_(torch.empty(a.shape), generator=generator))
    return network


def merge(network: MedMAP, into: MedMAP) -> None:
    """Write what an adapted copy has learned into the model it was copied from, in place."""
    with torch.no_grad():
        own = dict(into.named_parameters())
        for name, parameter in network.named_parameters():
            if name in own:
                own[name].copy_(parameter)
        for name, layer in network.named_modules():
            if hasattr(layer, "base_layer"):
                # Not peft's own merge, which fails on 1 x 1 x 1 kernels (peft 0.21, issue 3768).
                a, b = _factors(network, name)
                own[f"{name}.weight"].add_(torch.einsum("or,ri...->oi...", b.flatten(1), a))


def _fits(layer: nn.Module, rank: int) -> bool:
    if type(layer) is nn.Conv3d:
        plain = layer.groups == 1 and set(layer.dilation) == {1} and layer.padding_mode == "zeros"
        return plain and layer.weight[0].numel() > rank
    return type(layer) is nn.Linear and layer.in_features > rank


def _group(module: str) -> str:
    return group_of(f"{module}.weight")


def _factors(network: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    """A and B of an adapted layer; B of a convolution has a kernel of 1."""
    layer = network.get_submodule(name)
    return layer.get_parameter("lora_A.default.weight"), layer.get_parameter("lora_B.default.weight")
