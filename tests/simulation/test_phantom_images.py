"""What a simulated study looks like: anatomy that varies, lesions that press, raw intensities, one patient on any grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import label

from configs.schema import PhantomConfig
from simulation.phantom import abdomen, brain
from simulation.phantom.acquisition import Coil, acquire
from simulation.phantom.grid import Grid, SmoothField, point
from simulation.phantom.lesions import RECIPES, Lesion
from simulation.phantom.plan import single_case
from simulation.phantom.scanners import REFERENCE
from simulation.phantom.study import Study, make_study

REGIONS, FULL = PhantomConfig(size=24), PhantomConfig(product="full", size=48)


def study(
    organ: str, kind: str, name: str = "p", config: PhantomConfig = REGIONS, seed: int = 0, **more: object
) -> Study:
    return make_study(single_case(organ, kind, name, **more), config, seed=seed)  # type: ignore[arg-type]


def millilitres(s: Study) -> float:
    return float((s.mask == 1).sum() * s.grid.spacing_mm**3 / 1000)


@pytest.mark.parametrize(("organ", "kind"), [k for k in RECIPES if k[1] != "spot"])
def test_a_patient_is_the_same_on_every_grid(organ: str, kind: str) -> None:
    for name in ("a", "b"):
        small, large = (study(organ, kind, name, replace(REGIONS, size=s)) for s in (24, 48))
        assert small.grid.centre_mm == large.grid.centre_mm
        assert millilitres(small) == pytest.approx(millilitres(large), rel=0.25)
        a, b = small.findings.centre_mm, large.findings.centre_mm
        assert a is not None
        assert b is not None
        assert np.abs(np.subtract(a, b)).max() < 4
        for modality in large.volumes:
            coarse = large.volumes[modality].reshape(24, 2, 24, 2, 24, 2).mean((1, 3, 5))
            assert np.corrcoef(coarse.ravel(), small.volumes[modality].ravel())[0, 1] > 0.8


def test_the_full_view_and_a_region_show_the_same_lesion() -> None:
    config = replace(FULL, size=96)
    for organ, kind in (("brain", "glioblastoma"), ("liver", "hcc")):
        full, region = study(organ, kind, config=config), study(organ, kind, config=replace(REGIONS, size=48))
        a, b = full.findings.centre_mm, region.findings.centre_mm
        assert a is not None
        assert b is not None
        assert np.abs(np.subtract(a, b)).max() < 3
        assert millilitres(full) == pytest.approx(millilitres(region), rel=0.15)
        assert full.grid.shape == (96, 96, 96)
        assert full.grid.spacing_mm == {"brain": 2.0, "liver": 3.0}[organ]


def test_a_missing_modality_changes_nothing_else() -> None:
    whole = study("brain", "glioblastoma")
    part = study("brain", "glioblastoma", modalities=("T1", "FLAIR"))
    assert set(part.volumes) == {"T1", "FLAIR"}
    for modality in part.volumes:
        np.testing.assert_array_equal(part.volumes[modality], whole.volumes[modality])
        assert part.gains[modality] == whole.gains[modality]


def test_the_same_seed_gives_the_same_bits_and_another_patient_another_brain() -> None:
    a, again, other = (study("brain", "normal", n, FULL) for n in ("a", "a", "b"))
    reseeded = study("brain", "normal", "a", FULL, seed=1)
    np.testing.assert_array_equal(a.volumes["T1"], again.volumes["T1"])
    for different in (other, reseeded):
        assert np.corrcoef(a.volumes["T1"].ravel(), different.volumes["T1"].ravel())[0, 1] < 0.93
        outlines = (a.volumes["T1"] > 0, different.volumes["T1"] > 0)
        assert (outlines[0] & outlines[1]).sum() / (outlines[0] | outlines[1]).sum() < 0.95


def test_livers_vary_and_are_whole() -> None:
    shapes = []
    for seed in range(3):
        patient = abdomen.draw_patient(np.random.default_rng(seed))
        sampled = abdomen.Sampled(patient, [], Grid.cube((0, 0, 0), 48, 6.0))
        shapes.append(sampled.healthy)
        assert 800 < sampled.liver.sum() * 0.216 < 2200  # millilitres
        assert not sampled.healthy[:, :, -1].any()  # the dome is in view
    assert (shapes[0] & shapes[1]).sum() / (shapes[0] | shapes[1]).sum() < 0.9


def test_lesions_press_tissue_aside_but_not_the_skull() -> None:
    patient = brain.draw_patient(np.random.default_rng(3))
    centre = patient.patient_point((26, 10, 20))
    lesion = Lesion.draw(np.random.default_rng(0), "brain", "glioblastoma", centre, 18)
    push = lesion.push
    assert push is not None
    pressed = patient.with_pushes([push])
    for direction in np.eye(3):
        for sign in (-1, 1):
            beside = centre + sign * 18 * direction
            moved = (pressed.template_point(beside) - patient.template_point(beside)) @ (sign * direction)
            assert moved < -3  # what is now at the edge was nearer to the centre
    far = centre - np.array([90.0, 0, 0])
    np.testing.assert_allclose(pressed.template_point(far), patient.template_point(far), atol=0.1)
    grid = Grid.cube((0, 0, 0), 48, 4.0)
    without, with_push = brain.Sampled(patient, [], grid), brain.Sampled(patient, [push], grid)
    np.testing.assert_array_equal(without.inside, with_push.inside)
    assert np.abs(without.shares - with_push.shares)[:, without.inside].max() > 0.3


def test_nothing_folds() -> None:
    for (organ, kind), recipe in RECIPES.items():
        if not recipe.push:
            continue
        push = Lesion.draw(np.random.default_rng(0), organ, kind, (0, 0, 0), 20).push
        assert push is not None
        flat = brain.draw_patient(np.random.default_rng(0))
        still = replace(flat, matrix=np.eye(3), field=SmoothField(flat.field.coefficients * 0, (0, 0, 0), 1e3))
        line = np.linspace(0, 80, 200)
        after = [replace(still, pushes=(push,)).template_point((x, 0, 0))[0] for x in line]
        assert (np.diff(after) > 0).all()


def test_lesions_are_irregular_and_cysts_are_round() -> None:
    def roughness(organ: str, kind: str) -> float:
        values = []
        for seed in range(6):
            lesion = Lesion.draw(np.random.default_rng(seed), organ, kind, (0, 0, 0), 20)
            parts = lesion.compartments(Grid.cube((0, 0, 0), 40, 2.0).axes, 2.0)
            mass = sum(v for k, v in parts.items() if "oedema" not in k)
            voxels = np.argwhere(np.asarray(mass) > 0.5) * 2.0
            radius = (3 * len(voxels) * 8 / (4 * np.pi)) ** (1 / 3)
            distance = np.sqrt(((voxels - voxels.mean(0)) ** 2).sum(1))
            values.append(distance.max() / radius)
        return float(np.mean(values))

    assert roughness("liver", "cyst") < 1.15
    assert roughness("brain", "glioblastoma") > 1.3
    assert roughness("liver", "icc") > 1.3


def test_intensities_are_raw_and_brains_are_stripped() -> None:
    studies = [study("brain", "normal", f"p{i}") for i in range(8)]
    gains = [s.gains["T1"] for s in studies]
    assert max(gains) / min(gains) > 1.5
    assert all((s.volumes["T1"] >= 0).all() for s in studies)
    full = study("brain", "normal", "x", FULL)
    assert all((v[0] == 0).all() for v in full.volumes.values())
    air = study("liver", "cyst", "x", FULL).volumes["C-pre"][:, -1]
    assert 0 < air.mean() < 0.2  # noise, not nothing


def test_a_shifted_breath_hold_does_not_wrap_around() -> None:
    grid = Grid.cube((0, 0, 0), 24, 4.0)
    signal = np.zeros(grid.shape, np.float32)
    signal[:, :, -3:] = 1
    still = replace(REFERENCE, noise=0.0, bias=0.0, blur_mm=0.0, slice_mm=0.0)
    coil = Coil(np.random.default_rng(0), 0.0)

    def scan(shift: float) -> np.ndarray:
        return acquire(signal, grid, still, coil, np.random.default_rng(0), shift_mm=(0.0, 0.0, shift))

    assert scan(8.0)[:, :, :3].max() == 0
    assert scan(-8.0)[:, :, :3].max() == 0
    profile = [float(np.argmax(scan(s)[12, 12] > 0.5)) for s in (8.0, 0.0, -8.0)]
    assert profile == [19, 21, 23]


def test_noise_and_slices_follow_the_scanner() -> None:
    grid = Grid.cube((0, 0, 0), 24, 2.0)
    coil = Coil(np.random.default_rng(0), 0.0)
    flat = np.ones(grid.shape, np.float32)
    for noise in (0.02, 0.1):
        machine = replace(REFERENCE, noise=noise, bias=0.0)
        volume = acquire(flat, grid, machine, coil, np.random.default_rng(1))
        fine = volume - acquire(flat, grid, replace(machine, noise=0.0), coil, np.random.default_rng(1))
        assert fine.std() == pytest.approx(noise, rel=0.1)
    edge = np.zeros(grid.shape, np.float32)
    edge[:, :, 12:] = edge[:, 12:] = 1
    thick = acquire(edge, grid, replace(REFERENCE, noise=0.0, slice_mm=8.0), coil, np.random.default_rng(1))
    across, along = np.diff(thick[12, 5]), np.diff(thick[12, :, 5])
    assert across.max() < 0.5 * along.max()  # blurred between slices, not within them


def test_smooth_fields_are_functions_of_place_alone() -> None:
    field = SmoothField.draw(np.random.default_rng(0), sd=2.0, spacing_mm=20, half_mm=100)
    grid = Grid.cube((5, -3, 8), 16, 4.0)
    values = field.on(grid.axes)[0]
    assert values.shape == grid.shape
    corner = grid.affine[:3, 3] + 4.0 * np.array([3, 7, 11])
    assert field.on(point(corner))[0, 0, 0, 0] == pytest.approx(values[3, 7, 11], abs=1e-4)
    window = grid.window((5, -3, 8), 10.0)
    assert window is not None
    np.testing.assert_allclose(field.on(window[1])[0], values[window[0]], atol=1e-5)
    many = field.on(Grid.cube((0, 0, 0), 30, 6.0).axes)
    assert 1.4 < many.std() < 2.6
    assert np.abs(np.diff(many[0], axis=0)).mean() < 0.4 * many.std()  # 6 mm is short against 20


def test_positions_invert_and_places_have_names() -> None:
    patient = brain.draw_patient(np.random.default_rng(1))
    target = np.array([30.0, -20, 10])
    np.testing.assert_allclose(patient.template_point(patient.patient_point(target)), target, atol=0.2)
    to_template = -np.array(brain.TO_MNI_MM)
    names = {(40, 40, 20): ("right", "frontal"), (-50, -15, -20): ("left", "temporal"), (25, -90, 5): ("right", "occipital"),
             (-30, -50, 50): ("left", "parietal"), (30, -65, -35): ("right", "cerebellum"), (0, 50, 10): ("midline", "frontal"),
             (-15, -10, 8): ("left", "deep")}  # fmt: skip
    for mni, name in names.items():
        assert brain.place_name(np.array(mni, float) + to_template) == name
    liver = abdomen.template().inner_mm
    sides = {abdomen.place_name(p)[0] for p in liver}
    assert sides == {"left", "right"}
    left = np.array([abdomen.place_name(p)[0] == "left" for p in liver])
    assert liver[left, 0].mean() < liver[~left, 0].mean() - 20


def test_several_lesions_lie_apart() -> None:
    counts = []
    for i in range(12):
        s = study("liver", "metastasis", f"m{i}", replace(REGIONS, size=32))
        counts.append(int(label(s.mask == 1)[1]))
        assert s.findings.count <= counts[-1]
    assert max(counts) >= 2
    assert min(counts) == 1
