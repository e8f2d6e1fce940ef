"""Our AdamW against torch's, bit for bit."""

from __future__ import annotations

import torch

from client.adamw import AdamW


def walk(make, steps: int = 5) -> list[torch.Tensor]:
    """Weights after steps along made-up gradients; the third parameter gets its first gradient late, the last none."""
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=draw).requires_grad_() for shape in ((7, 3), (5,), (2, 2, 2), (4,))]
    optimizer = make(weights)
    for step in range(steps):
        optimizer.zero_grad()
        for p in weights[: 2 if step < 2 else 3]:
            p.grad = torch.randn(p.shape, generator=draw)
        optimizer.step()
    return [p.detach() for p in weights]


def test_it_steps_as_torchs_own_does():
    ours = walk(lambda p: AdamW(p, lr=0.01, weight_decay=0.1))
    torchs = walk(lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True))
    assert all(torch.equal(a, b) for a, b in zip(ours, torchs, strict=True))
    begun = walk(lambda p: AdamW(p, lr=0.01, weight_decay=0.1), steps=0)
    assert [torch.equal(a, b) for a, b in zip(ours, begun, strict=True)] == [False, False, False, True]


def test_without_a_gradient_nothing_happens():
    weight = torch.ones(3, requires_grad=True)
    optimizer = AdamW([weight], lr=0.01, weight_decay=0.1)
    optimizer.step()
    weight.grad = torch.ones(3)
    optimizer.zero_grad()
    optimizer.step()
    assert torch.equal(weight, torch.ones(3))
