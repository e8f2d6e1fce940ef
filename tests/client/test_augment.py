"""Augmented batches stay true: to their reports' sides, to their seeds, and to what is missing."""

from __future__ import annotations

import pytest
import torch

from client.augment import augment, mirror_report
from configs.schema import AugmentConfig

FLIP = AugmentConfig(flip=False, flip_left_right=True, shift_voxels=0, intensity_scale=0, intensity_shift=0)
SHIFT = AugmentConfig(flip=False, flip_left_right=False, shift_voxels=3, intensity_scale=0, intensity_shift=0)
OFF = AugmentConfig(flip=False, flip_left_right=False, shift_voxels=0, intensity_scale=0, intensity_shift=0)
SCALE = AugmentConfig(flip=False, flip_left_right=False, shift_voxels=0, intensity_scale=0.3, intensity_shift=0.3)


def batch(records: int = 16, slots: int = 3, size: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    volumes = torch.randn(records, slots, size, size, size, generator=torch.Generator().manual_seed(1))
    present = torch.rand(records, slots, generator=torch.Generator().manual_seed(2)) < 0.7
    volumes[~present] = 0
    return volumes, present, torch.ones(records, dtype=torch.bool)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("report", "mirrored"),
    [
        ("Mass in the left frontal lobe.", "Mass in the right frontal lobe."),
        ("Left-sided lesion; RIGHT side free.", "Right-sided lesion; LEFT side free."),
        ("Midline shift leftwards, rightmost horn.", "Midline shift rightwards, leftmost horn."),
        ("Rt. lobe 20 mm", "Lt. lobe 20 mm"),
        ("Bilateral upright cleft copyright", "Bilateral upright cleft copyright"),
        ("Lesion in segment VII.", None),
        ("Lesion in seg 4 of the left lobe", None),
        ("HCC in S8, right lobe", None),
        ("Raumforderung links frontal", None),
        ("Läsion im rechten Leberlappen", None),
    ],
)
def test_reports_are_mirrored_or_refused(report, mirrored):
    assert mirror_report(report) == mirrored
    if mirrored is not None:
        assert mirror_report(mirrored) == report


def test_a_mirrored_volume_is_mirrored_left_to_right_and_says_so():
    volumes, present, mirrorable = batch()
    out, mirrored = augment(volumes, present, mirrorable, FLIP, seeded())
    assert 0 < mirrored.sum() < len(mirrored)
    for i, flipped in enumerate(mirrored):
        assert torch.equal(out[i], volumes[i].flip(1) if flipped else volumes[i])


def test_records_whose_report_cannot_follow_are_not_mirrored():
    volumes, present, mirrorable = batch()
    mirrorable[::2] = False
    out, mirrored = augment(volumes, present, mirrorable, FLIP, seeded())
    assert not mirrored[::2].any() and mirrored[1::2].any()
    assert torch.equal(out[::2], volumes[::2])
    off = AugmentConfig(flip=True, flip_left_right=False, shift_voxels=0, intensity_scale=0, intensity_shift=0)
    out, mirrored = augment(volumes, present, mirrorable, off, seeded())
    assert not mirrored.any()
    assert torch.allclose(out.sum((3, 4)), volumes.sum((3, 4)), atol=1e-4)  # nothing moved from left to right
    assert not torch.equal(out, volumes)


def test_a_shift_repeats_the_edge_and_never_wraps_around():
    ramp = torch.arange(8.0).view(1, 1, 8, 1, 1).expand(64, 1, 8, 8, 8).contiguous()
    out, _ = augment(ramp, torch.ones(64, 1, dtype=torch.bool), torch.ones(64, dtype=torch.bool), SHIFT, seeded())
    lines = out[:, 0, :, 0, 0]
    assert (lines.diff(dim=1) >= 0).all()  # wrapped around, a line would fall from 7 to 0
    assert set((lines[:, 4] - 4).tolist()) == {-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0}


def test_all_modalities_of_a_record_move_together():
    volumes = torch.randn(8, 1, 6, 6, 6).expand(8, 4, 6, 6, 6).contiguous()
    config = AugmentConfig(intensity_scale=0, intensity_shift=0)
    present = torch.ones(8, 4, dtype=torch.bool)
    out, _ = augment(volumes, present, torch.ones(8, dtype=torch.bool), config, seeded())
    assert torch.equal(out, out[:, :1].expand_as(out))
    assert not torch.equal(out, volumes)


def test_missing_slots_stay_zero_and_intensities_differ_per_volume():
    volumes, present, mirrorable = batch()
    for config in (AugmentConfig(), SCALE):
        out, _ = augment(volumes, present, mirrorable, config, seeded())
        assert (out[~present] == 0).all()
        assert (out[present].flatten(1).std(1) > 0).all()
    out, _ = augment(volumes, present, mirrorable, SCALE, seeded())
    factor = out[present].flatten(1).std(1) / volumes[present].flatten(1).std(1)
    assert factor.std() == pytest.approx(0.3, abs=0.12)


def test_seeds_decide_everything_and_off_means_off():
    volumes, present, mirrorable = batch()
    kept = volumes.clone()
    a, b, c = (augment(volumes, present, mirrorable, AugmentConfig(), seeded(s))[0] for s in (5, 5, 6))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(augment(volumes, present, mirrorable, OFF, seeded())[0], volumes)
    assert torch.equal(volumes, kept)
