"""Two attacks on a trained model and on an update: who was in the training set, and what a patient's volume looks like.

Membership (loss threshold; likelihood ratio, Carlini et al. 2022, arXiv 2112.03570): scores of (runs, patients), higher for
a member. Inversion (Geiping et al. 2020, arXiv 2003.14053): the volume whose gradient points where a first step pointed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F


def roc_area(members: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve of a membership attack: 0.5 is guessing."""
    inside, ranks = members.ravel(), stats.rankdata(scores)
    n = int(inside.sum())
    return float((ranks[inside].sum() - n * (n + 1) / 2) / (n * (len(inside) - n)))


def area_limit(*, noise_multiplier: float, steps: int) -> float:
    """The largest area that any attack on one patient can have in expectation, of `steps` noisy steps on everybody.

    They are mu-GDP with mu = sqrt(steps) / noise_multiplier (Dong, Roth, Su 2022, arXiv 1905.02383, corollary 2): no test
    of one patient has an ROC above Phi(mu + Phi^-1(x)), whose area is Phi(mu / sqrt 2). That curve is concave, so
    neither has one threshold for patients of all kinds.
    """
    return float(stats.norm.cdf(math.sqrt(steps) / noise_multiplier / math.sqrt(2)))


def confidence(model: nn.Module, volumes: Tensor, labels: Tensor) -> np.ndarray:
    """(N,) log p / (1 - p) of the right class of two: a monotone function of the loss, near normal over trainings."""
    with torch.no_grad():
        logits = model(volumes).double()
    right, wrong = (logits.gather(1, c[:, None])[:, 0] for c in (labels, 1 - labels))
    return (right - wrong).numpy()


def likelihood_ratio(shadows: np.ndarray, shadow_members: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(runs, patients) log-likelihood ratio of in to out, by a normal fit per patient to (shadow runs, patients).

    One variance for both, as with few shadow models two are noisier than they are different.
    """
    inside = np.nanmean(np.where(shadow_members, shadows, np.nan), 0)
    outside = np.nanmean(np.where(shadow_members, np.nan, shadows), 0)
    variance = ((shadows - np.where(shadow_members, inside, outside)) ** 2).mean(0) + 1e-9
    return ((scores - outside) ** 2 - (scores - inside) ** 2) / (2 * variance)


def invert(
    model: nn.Module, labels: Tensor, seen: Mapping[str, Tensor], *, size: int, steps: int, smoothness: float = 1e-3
) -> Tensor:
    """(N, 1, size^3) volumes, each made so that its gradient points as `seen` does; the attacker knows model and label.

    seen: parameter -> (N, *shape), a first step's change of the weights, of any length. Minimises cosine distance +
    smoothness * total variation by Adam. model: volumes (1, 1, size^3) -> logits.
    """
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(w: dict[str, Tensor], volume: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, w, (volume[None],)), label[None])

    def distance(volume: Tensor, label: Tensor, target: dict[str, Tensor]) -> Tensor:
        mine = grad(loss)(weights, volume, label)
        pairs = [(mine[name].flatten(), target[name].flatten()) for name in weights]
        cosine = F.cosine_similarity(torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs]), dim=0)
        variation = torch.stack([volume.diff(dim=axis).abs().mean() for axis in (1, 2, 3)]).sum()
        return 1 - cosine + smoothness * variation

    start = torch.Generator().manual_seed(0)
    found = (0.1 * torch.randn(len(labels), 1, size, size, size, generator=start)).requires_grad_()
    optimizer = torch.optim.Adam([found], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        found.grad = vmap(grad(distance))(found.detach(), labels, dict(seen))
        optimizer.step()
        schedule.step()
    return found.detach()


def correlations(a: Tensor, b: Tensor) -> list[float]:
    """Of each volume with its pair."""
    return [float(torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1]) for x, y in zip(a, b, strict=True)]
