"""Features of a volume and the distance of two sites: what they see, what they do not, and how much one patient moves."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.ndimage import gaussian_filter

from medmap_model.shift import FEATURES, RELEASED, Moments, features, frechet, moments, released_sums, sums

F = len(FEATURES)


def cube(seed: int = 0, *, blur: float | tuple[float, ...] = 1.0) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).random((24, 24, 24)), blur)
    return ((noise - noise.mean()) / noise.std()).astype(np.float32)


def gaussian(seed: int) -> Moments:
    rng = np.random.default_rng(seed)
    half = rng.normal(size=(F, F))
    return Moments(50, rng.normal(size=F), half @ half.T)


def test_features_see_blur_thick_slices_and_shape_but_not_gain() -> None:
    names = list(FEATURES)
    plain, soft, thick = cube(), cube(blur=2.0), cube(blur=(1, 1, 3))
    edges, grain, through = (names.index(n) for n in ("edges", "grain", "through-plane blur"))
    assert features(soft)[edges] < features(plain)[edges] and features(soft)[grain] < features(plain)[grain]
    assert features(thick)[through] > features(plain)[through] + 0.2
    assert features(np.exp(plain))[names.index("skewness")] > features(plain)[names.index("skewness")]
    np.testing.assert_allclose(features(3 * plain + 7), features(plain), atol=1e-3)


@pytest.mark.parametrize(
    "strange",
    [np.zeros((8, 8, 8)), np.eye(8)[:, :, None] * np.ones(8) * 1e6, np.full((8, 8, 8), -4.0), np.indices((8, 8, 8))[2] ** 9.0],
)  # fmt: skip
def test_no_volume_moves_the_sums_by_more_than_three(strange: np.ndarray) -> None:
    added = released_sums(features(strange.astype(np.float32))[None])
    assert added.shape == (RELEASED,) and np.isfinite(added).all()
    assert np.abs(added).sum() <= 3 + 1e-9
    assert np.square(added).sum() <= 3 + 1e-9


def test_the_frechet_distance_is_that_of_the_formula() -> None:
    for seed in range(3):
        a, b = gaussian(seed), gaussian(seed + 10)
        root = sqrtm(a.covariance @ b.covariance)
        squared = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root.real)
        assert frechet(a, b) == pytest.approx(np.sqrt(squared)) == pytest.approx(frechet(b, a))
        assert frechet(a, a) == pytest.approx(0, abs=1e-5)
    moved = gaussian(0)
    assert frechet(moved, moved._replace(mean=moved.mean + 0.3)) == pytest.approx(0.3 * np.sqrt(F))


def test_moments_come_back_from_sums_and_survive_noise() -> None:
    points = np.random.default_rng(0).normal(0.1, 0.2, (60, F))
    found = moments(sums(points))
    assert found is not None and found.n == 60
    np.testing.assert_allclose(found.mean, points.mean(0))
    np.testing.assert_allclose(found.covariance, np.cov(points.T, ddof=0), atol=1e-12)
    np.testing.assert_allclose(sum(sums(p[None]) for p in points), sums(points))
    short = moments(released_sums(points))
    assert short is not None and np.trace(short.covariance) == pytest.approx(np.trace(found.covariance))
    np.testing.assert_allclose(short.mean, found.mean)
    noisy = moments(released_sums(points) + np.array([0, *[9.0] * F, -99]))
    assert noisy is not None and np.linalg.eigvalsh(noisy.covariance).min() >= 0
    assert moments(sums(points[:1])) is None
