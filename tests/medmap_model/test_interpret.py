"""A planted bright ball is found by occlusion; where there is none, nothing stands out there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from configs.schema import EncoderConfig, FusionConfig, ModelConfig
from medmap_model.batch import Batch
from medmap_model.evaluation.interpret import (
    mean_importance,
    modality_importance,
    occlusion,
    targets,
)
from medmap_model.evaluation.missing import encode_all
from medmap_model.model import MedMAP, build_model

SIZE, BALLS = 16, ((4, 4, 4), (11, 11, 4), (4, 11, 11), (11, 4, 11))


def patients(n: int, seed: int, *, at: tuple[int, int, int] | None = None) -> Batch:
    """Brains of noise; every other one has a bright ball in FLAIR (slot 1) alone, T1 says nothing."""
    generator = torch.Generator().manual_seed(seed)
    volumes = 0.3 * torch.randn(n, 2, SIZE, SIZE, SIZE, generator=generator)
    grid = torch.stack(torch.meshgrid(*[torch.arange(float(SIZE))] * 3, indexing="ij"))
    label = torch.arange(n) % 2
    for i in label.nonzero()[:, 0].tolist():
        centre = torch.tensor(at or BALLS[(i // 2) % len(BALLS)]).float()
        volumes[i, 1] += 4.0 * (((grid - centre[:, None, None, None]) ** 2).sum(0) < 7)
    return Batch(
        "brain",
        volumes,
        torch.ones(n, 2, dtype=torch.bool),
        label,
        torch.zeros(n, 32),
        torch.zeros(n, dtype=torch.bool),
    )


@pytest.fixture(scope="module", params=["modality", "shared"])
def trained(request, vocabulary, text) -> MedMAP:
    """A small model that has learnt the ball in a few dozen steps; with an encoder per modality, or one for all."""
    config = ModelConfig(
        encoder=EncoderConfig(width=8), embed_dim=16, fusion=FusionConfig(heads=2, dropout=0.0), sharing=request.param
    )
    model = build_model(config, vocabulary, text, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(60):
        batch = patients(16, seed=step)
        loss = torch.nn.functional.cross_entropy(model.logits(batch), batch.label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1
    return model.eval()


def peak(heat: torch.Tensor) -> np.ndarray:
    return np.array(np.unravel_index(int(heat.argmax()), heat.shape))


def test_the_peak_is_at_the_ball_wherever_it_is_and_in_the_modality_that_shows_it(trained):
    for ball in BALLS[:2]:
        batch = patients(4, seed=1000, at=ball)
        heat = occlusion(trained, batch, window_voxels=4, stride_voxels=2)
        assert heat.shape == batch.volumes.shape
        for i in (1, 3):
            assert np.linalg.norm(peak(heat[i, 1]) - ball) <= 3.5
            assert heat[i, 1].max() > 3 * heat[i, 0].max(), "T1 shows nothing"


def test_an_empty_patient_has_no_peak_that_speaks_for_a_ball(trained):
    batch = patients(4, seed=1001, at=BALLS[0])
    heat = occlusion(trained, batch, window_voxels=4, stride_voxels=2)
    assert heat[0].max() < 0.2 * heat[1, 1].max()
    assert heat[2].max() < 0.2 * heat[3, 1].max()


def test_the_modality_that_shows_it_mattered_and_an_absent_one_is_not_told(trained):
    batch = patients(8, seed=1002)
    encodings = encode_all(trained, [batch])
    drop = modality_importance(trained, encodings)
    ball = batch.label.numpy() == 1
    assert (drop[ball, 1] > 0.3).all() and (np.abs(drop[ball, 0]) < 0.2).all()
    mean = mean_importance(trained, encodings)
    assert mean["FLAIR"] == pytest.approx(drop[:, 1].mean(), abs=1e-6)
    batch.present[:, 0] = False
    alone = encode_all(trained, [batch])
    assert np.isnan(modality_importance(trained, alone)[:, 0]).all()
    assert set(mean_importance(trained, alone)) == {"FLAIR"}
    # The only modality: hidden, the answer falls to even odds.
    with torch.no_grad():
        p = trained.probabilities(trained.logits(batch), "brain").numpy()
    expected = p[np.arange(8), batch.label.numpy()] - 0.5
    np.testing.assert_allclose(modality_importance(trained, alone)[:, 1], expected, atol=1e-5)


def test_absent_slots_are_cold_and_the_model_is_left_as_it_was(model, make_batch):
    batch = make_batch(present=[[1, 0, 1], [0, 1, 0]])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    heat = occlusion(model, batch, window_voxels=8, stride_voxels=8)
    assert torch.isfinite(heat).all()
    assert not heat[~batch.present].any()
    assert heat[batch.present].any()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(e._forward_hooks for e in model.encoders.values()), "no hook is left behind"


def test_the_true_class_is_explained_where_it_is_known():
    p = np.array([[0.6, 0.4], [0.2, 0.8], [0.9, 0.1]])
    assert targets(p, np.array([1, -1, 0]), multi_label=False).tolist() == [1, 1, 0]
    assert targets(p, np.array([2, 3, 1]), multi_label=True).tolist() == [0, 1, 0], "a bit set names no one class"
