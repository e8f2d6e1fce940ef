"""Each measure sees the artefact that it is named after, and not the others; what cannot be measured has a reason."""

from __future__ import annotations

import numpy as np
import pytest

from client.grids import Grid
from client.qc.bias import bias
from client.qc.contrast import cnr, noise
from client.qc.features import features_of
from client.qc.geometry import edge_mm, tilt_deg, view_mm
from client.qc.ghosting import ghosting
from client.qc.intensity import filled, middle, saturated, spike
from client.qc.measures import MEASURES, measure
from client.qc.regions import NotMeasured, Regions
from client.qc.thumbnails import thumbnail
from client.volumes import Intensity

SIZE = 40


def head(*, sigma: float = 4.0, seed: int = 0) -> np.ndarray:
    """A ball of two tissues (200 outside, 100 inside) in noisy air, as magnitudes."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.arange(SIZE) - (SIZE - 1) / 2] * 3, indexing="ij")
    radius = np.sqrt((x / 13) ** 2 + (y / 14) ** 2 + (z / 15) ** 2)
    clean = np.where(radius < 0.7, 100.0, np.where(radius < 1, 200.0, 0.0))
    return np.hypot(clean + rng.normal(0, sigma, clean.shape), rng.normal(0, sigma, clean.shape)).astype(np.float32)


def regions(data: np.ndarray, affine: np.ndarray | None = None) -> Regions:
    data = np.asarray(data, np.float32)
    return Regions(
        Grid(data.shape, np.diag([2.0, 2, 3, 1]) if affine is None else affine), data, Intensity.of(data, (0.5, 99.5))
    )


def test_contrast_to_noise_is_contrast_over_the_airs_sigma():
    assert cnr(regions(head(sigma=4))) == pytest.approx(100 / 4, rel=0.1)
    assert cnr(regions(head(sigma=6))) == pytest.approx(100 / 6, rel=0.1)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda v: np.where(v > 50, v, 0), "one value"),
        (lambda v: v - 300, "no magnitudes"),
        (lambda v: v[12:28, 12:28, 12:28], "fills the view"),
    ],
)
def test_air_that_is_none_is_said_instead_of_measured(spoil, reason):
    values, reasons = measure(regions(spoil(head())))
    assert reason in reasons["cnr"] and reason in reasons["ghosting"]
    assert "cnr" not in values and {"noise", "spike", "filled"} <= values.keys()
    assert not measure(regions(head()))[1]


def test_grain_grows_with_noise_also_where_the_background_was_zeroed():
    quiet, loud = (noise(regions(np.where(head(sigma=s) > 50, head(sigma=s), 0))) for s in (2, 10))
    assert quiet == pytest.approx(0.02, rel=0.3) and loud == pytest.approx(0.1, rel=0.3)


@pytest.mark.parametrize("factor", [1.5, 2.5, 7])
def test_a_bias_field_is_measured_and_none_is_not(factor):
    slope = np.exp(np.linspace(0, np.log(factor), SIZE))[:, None, None]
    inside = (
        factor ** (26 * 0.73 / 40) - 1
    )  # the ball is 26 of 40 voxels long, 0.73 of it from its 5th to its 95th percentile
    assert bias(regions(head())) < 0.05
    assert bias(regions(head() * slope)) == pytest.approx(inside, rel=0.1)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_ghost_is_measured_along_whichever_axis_and_nothing_else_is_taken_for_one(axis):
    ghosted = head() + 0.1 * np.roll(head(seed=1), SIZE // 2, axis)
    assert ghosting(regions(ghosted)) > 0.05
    for other in (head(), head(sigma=12), head() * np.linspace(1, 2, SIZE)[:, None, None]):
        assert ghosting(regions(other)) < 0.02


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_ghost_of_a_body_that_fills_the_view_is_measured_and_dark_fat_around_it_is_none(axis):
    view = (slice(6, 34),) * 3  # 28 voxels, of which the ball has 26 to 30: as a real head in its field of view
    full, again = head()[view], head(seed=1)[view]
    assert ghosting(regions(full)) < 0.02
    assert ghosting(regions(full + 0.1 * np.roll(again, 14, axis))) > 0.05
    places = np.meshgrid(*[np.arange(28) - 13.5] * 3, indexing="ij")
    radius = np.sqrt(sum((x / r) ** 2 for x, r in zip(places, (13, 14, 15), strict=True)))
    rim = (radius >= 1) & np.roll(regions(full).core, 14, axis)
    fat = regions(full + 40 * rim)  # darker than half of the mean tissue, so that it passes for air
    air, ghost = fat.outside(fat.core), np.roll(fat.core, 14, axis)
    excess = np.median(fat.thin[air & ghost]) - np.median(fat.thin[air & ~ghost])
    assert excess > 0.1 * fat.thin[fat.core].mean() and ghosting(fat) < 0.05


def test_single_voxels_and_ceilings_are_told_apart():
    sound, hot, cut = head(), head(), head()
    hot[20, 20, 20] = 5000
    assert spike(regions(sound)) < 2 and spike(regions(hot)) > 8
    assert saturated(regions(sound)) < 0.001 and saturated(regions(cut.clip(None, 190))) > 0.2
    assert spike(regions(cut.clip(None, 190))) < 2


def test_the_histograms_middle_turns_with_an_inverted_image():
    sound = np.where(head() > 50, head(), 0)
    inverted = np.where(sound > 0, 320 - sound, 0)
    assert abs(middle(regions(sound)) - middle(regions(inverted))) > 0.2
    assert middle(regions(sound * 7)) == pytest.approx(middle(regions(sound)), abs=1e-3)


def test_geometry_is_the_grids():
    angle = np.radians(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * (1.0, 1.0, 6.0)
    found = regions(head(), affine)
    assert (edge_mm(found), view_mm(found)) == (6, SIZE) and tilt_deg(found) == pytest.approx(20)
    assert tilt_deg(regions(head())) == 0
    assert 0.1 < filled(found) < 0.3


def test_measures_have_a_section_of_limits_each():
    from client.qc.limits import Limits, read_limits

    limits = read_limits()
    assert {m.name for m in MEASURES} == {n for n in vars(Limits()) if n not in ("outliers", "labels")}
    assert all(vars(limits)[m.name] is not None for m in MEASURES)


def test_large_volumes_are_thinned_and_measured_alike():
    big = np.kron(head(), np.ones((3, 3, 3), np.float32))  # 120 voxels along an axis: every second is looked at
    found, plain = regions(big, np.diag([1.0, 1, 1, 1])), regions(head())
    assert max(found.thin.shape) <= 96
    assert cnr(found) == pytest.approx(cnr(plain), rel=0.1) and filled(found) == pytest.approx(filled(plain), rel=0.05)


def test_features_do_not_know_gain_and_thumbnails_are_pictures():
    plain, louder = features_of(regions(head())), features_of(regions(head() * 40))
    np.testing.assert_allclose(plain, louder, atol=1e-3)
    found = regions(head())
    assert thumbnail(found.grid, found.data, found.intensity)[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_volume_of_noise_alone_is_measured_or_refused_but_never_crashes():
    rng = np.random.default_rng(0)
    odd = (
        rng.random((8, 9, 10)),
        rng.random((2, 2, 2)),
        np.eye(12)[:, :, None] * np.ones(12),
        3e38 * rng.random((20, 20, 20)),
    )
    for data in odd:
        found = regions(data)
        values, reasons = measure(found)
        assert values.keys() | reasons.keys() == {m.name for m in MEASURES}
        assert np.isfinite(list(values.values())).all()
        assert np.isfinite(features_of(found)).all() != (reasons.get("filled") == "hardly any tissue")
    with pytest.raises(NotMeasured):
        bias(regions(np.eye(6)[:, :, None] * np.ones(6)))
