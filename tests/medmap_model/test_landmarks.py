"""Landmarks that sites release: what a patient moves, what gain cannot change, and that the common scale brings sites together."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from client.preprocess.nyul import standardised
from medmap_model.landmarks import PERCENTILES, RELEASED, landmarks_of, positions, released_sums, scale, scale_from
from medmap_model.shift import features, foreground, frechet, moments, sums


def volumes(seed: int, *, gamma: float = 1.0, n: int = 20) -> list[np.ndarray]:
    """Cubes of z-scores of one site, whose scanner bends the intensities."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(n):
        smooth = gaussian_filter(rng.random((20, 20, 20)), 1.0)
        bent = ((smooth - smooth.min()) / np.ptp(smooth)) ** (gamma * rng.uniform(0.95, 1.05))
        found.append(((bent - bent.mean()) / bent.std()).astype(np.float32))
    return found


def told(cubes: list[np.ndarray]) -> list[tuple[float, ...]]:
    return [landmarks_of(cube[foreground(cube)]) for cube in cubes]


def test_a_patient_moves_two_at_most_and_gain_moves_nothing() -> None:
    usual = told(volumes(0, n=1))[0]
    extreme = [0.0, *[1e-4 * i for i in range(1, 10)], 1e6]
    for row in (usual, extreme, landmarks_of(np.zeros(0, np.float32)), landmarks_of(np.full(9, 3, np.float32))):
        added = released_sums([row])
        assert added.shape == (RELEASED,) and np.isfinite(added).all() and np.abs(added).sum() <= 2 + 1e-9
    np.testing.assert_allclose(released_sums([[5 * v - 2 for v in usual]]), released_sums([usual]), atol=1e-9)
    assert np.abs(released_sums([extreme])[1:]).sum() == pytest.approx(1)


def test_the_scale_of_sums_is_that_of_the_volumes() -> None:
    rows = told(volumes(0))
    found = scale_from(released_sums(rows))
    assert found == pytest.approx(scale(positions(rows).mean(0)), abs=0.02)
    assert (
        len(found) == len(PERCENTILES)
        and found[5] == pytest.approx(0, abs=0.01)
        and found[9] - found[1] == pytest.approx(2.563, abs=0.01)
    )
    wild = scale_from(released_sums(rows) + np.random.default_rng(0).laplace(0, 5, RELEASED))
    assert wild is not None and (np.diff(wild) > 0).all(), "noise may not make a scale that cannot be inverted"
    assert scale_from(np.zeros(RELEASED)) is None


def test_sites_that_bend_intensities_come_together_on_the_common_scale() -> None:
    sites = [volumes(0, gamma=0.6), volumes(1, gamma=1.8)]
    total = sum(released_sums(told(cubes)) for cubes in sites) + np.random.default_rng(0).laplace(0, 0.5, RELEASED)
    common = scale_from(total)
    assert common is not None

    def apart(pair: list[list[np.ndarray]]) -> float:
        a, b = (moments(sums(np.stack([features(cube) for cube in cubes]))) for cubes in pair)
        return frechet(a, b)

    brought = [
        [standardised(cube, own, common) for cube, own in zip(cubes, told(cubes), strict=True)] for cubes in sites
    ]
    assert apart(brought) < 0.4 * apart(sites)
