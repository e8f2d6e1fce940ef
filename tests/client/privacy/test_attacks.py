"""Attacks that work on a model trained without privacy and fail at epsilon 3: who was in, and what a volume looks like.

Demonstrations, not proofs: an attack that fails says nothing of a better one. The guarantee rests on the accountant, the
sensitivity and the noise, which have tests of their own. What limits the first attack is exact (`attacks.area_limit`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn import functional as F

from client.privacy.gradients import PatientGradients
from client.privacy.optimizer import PatientDPOptimizer
from medmap_model.accounting import noise_multiplier
from medmap_model.batch import Batch
from medmap_model.randomness import SecretRandom
from tests.client.privacy.attacks import area_limit, confidence, correlations, invert, likelihood_ratio, roc_area

EPSILON, DELTA = 3.0, 1e-5
Train = Callable[[Batch], nn.Module]


def cohort(volumes: Tensor, labels: Tensor) -> Batch:
    n = len(labels)
    nothing = torch.zeros(n, dtype=torch.bool)
    return Batch("x", volumes, torch.ones(n, 1, dtype=torch.bool), labels, torch.zeros(n, 1), nothing)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch.volumes), batch.label)


def fresh(network: Callable[[], nn.Module]) -> nn.Module:
    """The public start: the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return network()


def privately(model: nn.Module, batch: Batch, *, steps: int, sigma: float, lr: float, expected: float) -> nn.Module:
    """`steps` steps on everybody (sampling rate 1) with the engine's own clip (norm 1) and noise."""
    named = dict(model.named_parameters())
    engine = PatientGradients(model, loss, named, clip_norm=1.0, chunk=64)
    optimizer = PatientDPOptimizer(
        torch.optim.SGD(named.values(), lr=lr), noise_multiplier=sigma, clip_norm=1.0, expected_patients=expected,
        secret=SecretRandom(chacha=False),
    )  # fmt: skip
    for _ in range(steps):
        optimizer.step_on(engine.clipped_sum(batch), named)
    return model


# Membership: 120 patients, each in a training by a fair coin; a ball says the class, and three labels in ten are wrong.
PATIENTS, RUNS, STEPS = 120, 32, 10


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv3d(1, 4, 3), nn.GroupNorm(2, 4)
        self.hidden, self.out = nn.Linear(4 * 64, 8), nn.Linear(8, 2)

    def forward(self, volumes: Tensor) -> Tensor:
        h = torch.tanh(self.norm(self.conv(volumes))).flatten(1)
        return self.out(torch.tanh(self.hidden(h)))


def patients(n: int, *, seed: int, wrong_labels: float) -> Batch:
    g = torch.Generator().manual_seed(seed)
    truth = torch.randint(2, (n,), generator=g)
    labels = torch.where(torch.rand(n, generator=g) < wrong_labels, 1 - truth, truth)
    volumes = torch.randn(n, 1, 6, 6, 6, generator=g)
    volumes[:, :, 2:4, 2:4, 2:4] += 1.5 * (2 * truth - 1).view(-1, 1, 1, 1, 1)
    return cohort(volumes, labels)


def overfitted(batch: Batch) -> nn.Module:
    model = fresh(Classifier)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(80):
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()
    return model


def attacked(train: Train) -> tuple[float, float, float]:
    """Areas under the ROC of loss threshold and likelihood ratio, and the models' accuracy on new patients.

    The attacker trains half of the runs as shadow models; the other half is attacked.
    """
    everybody, new = patients(PATIENTS, seed=0, wrong_labels=0.3), patients(400, seed=1, wrong_labels=0)
    members = np.random.default_rng(0).random((RUNS, PATIENTS)) < 0.5
    scores, right = [], []
    for inside in members:
        model = train(everybody._each(lambda t, i=inside: t[torch.from_numpy(i)]))
        scores.append(confidence(model, everybody.volumes, everybody.label))
        right.append((confidence(model, new.volumes, new.label) > 0).mean())
    told, half = np.array(scores), RUNS // 2
    ratio = likelihood_ratio(told[:half], members[:half], told[half:])
    return roc_area(members[half:], told[half:]), roc_area(members[half:], ratio), float(np.mean(right))


@pytest.mark.slow
def test_membership_is_told_from_an_overfitted_model_and_not_from_a_private_one():
    """At epsilon 3 no attack can be expected to have an area above 0.69. Ours had .578 (standard deviation .009) by the
    loss and .576 (.018) by the ratio over 20 repeats: the limit is six standard deviations away, so that secret noise
    does not fail this test. Without privacy .85 and .85; with the clip alone .66 and .88: it is the noise that protects."""
    sigma = noise_multiplier([], epsilon=EPSILON, delta=DELTA, sample_rate=1.0, steps=STEPS)
    limit = area_limit(noise_multiplier=sigma, steps=STEPS)
    assert 0.68 < limit < 0.70

    def with_noise(sigma: float) -> Train:
        return lambda b: privately(fresh(Classifier), b, steps=STEPS, sigma=sigma, lr=0.8, expected=PATIENTS / 2)

    by_loss, by_ratio, overfitted_accuracy = attacked(overfitted)
    assert min(by_loss, by_ratio) > 0.75
    by_loss, by_ratio, accuracy = attacked(with_noise(sigma))
    assert max(by_loss, by_ratio) < limit
    assert accuracy > overfitted_accuracy + 0.05  # no trivial model: of new patients it knows more (.89, .73)
    _, by_ratio, _ = attacked(with_noise(1e-6))
    assert by_ratio > 0.75


# Inversion: the update of a site with one patient, after one step.
SIZE, VOLUMES = 8, 4


class TinyEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8 * 64, 3)

    def forward(self, volumes: Tensor) -> Tensor:
        return self.head(torch.tanh(self.down(torch.tanh(self.stem(volumes)))).flatten(1))


def smooth_volumes(n: int, *, seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    found = np.stack([gaussian_filter(rng.normal(size=(SIZE,) * 3), 1.0) for _ in range(n)])
    found = (found - found.mean((1, 2, 3), keepdims=True)) / found.std((1, 2, 3), keepdims=True)
    return torch.from_numpy(found[:, None]).float()


def recovered(batch: Batch, *, sigma: float) -> list[float]:
    """Correlation of each patient's volume with what is made of his or her update alone."""
    start = dict(fresh(TinyEncoder).named_parameters())
    seen: dict[str, list[Tensor]] = {name: [] for name in start}
    for i in range(len(batch)):
        model = privately(fresh(TinyEncoder), batch.rows(slice(i, i + 1)), steps=1, sigma=sigma, lr=1.0, expected=1.0)
        for name, p in model.named_parameters():
            seen[name].append(start[name].detach() - p.detach())
    stacked = {name: torch.stack(each) for name, each in seen.items()}
    made = invert(fresh(TinyEncoder), batch.label, stacked, size=SIZE, steps=300)
    return correlations(made, batch.volumes)


def test_a_volume_is_rebuilt_from_a_bare_gradient_and_not_from_a_private_update():
    """Without noise .999, though the clip is the same; with it the mean of four is .00 (standard deviation .02 over 12
    repeats). Noise of a tenth would do as well here (.1), of a hundredth would not (.9): this attack is a weak one."""
    sigma = noise_multiplier([], epsilon=EPSILON, delta=DELTA, sample_rate=1.0, steps=1)
    batch = cohort(smooth_volumes(VOLUMES, seed=0), torch.tensor([0, 1, 2, 0]))
    assert min(recovered(batch, sigma=1e-9)) > 0.95
    private = recovered(batch, sigma=sigma)
    assert abs(np.mean(private)) < 0.2
    other = correlations(smooth_volumes(VOLUMES, seed=1), batch.volumes)
    assert max(other) < 0.6  # the baseline: smooth volumes of other patients
