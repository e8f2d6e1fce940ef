"""Volumes arrive where anatomy says they should, and bad ones are named instead of crashing."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.processing import resample_from_to

from client.grids import HEADER_BYTES, read_grid
from client.volumes import CLIP_Z, Intensity, prepare
from configs.schema import VolumesConfig

PACKAGED = Path(nib.__file__).parent / "tests" / "data"
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])
AFFINE[:3, 3] = -46  # the middle of 24 voxels is the scanner's origin


def config(**changes: object) -> VolumesConfig:
    plain = {"size": 24, "spacing_mm": 4.0, "crop": "centre", "clip_percentiles": [0.5, 99.9]}
    return VolumesConfig(**{**plain, **changes})  # type: ignore[arg-type]


def blob(at_mm: tuple[float, ...], points_mm: np.ndarray, radius: float = 14.0) -> np.ndarray:
    """A smooth bright spot on a darker head of tissue, in space: (..., 3) -> intensities."""
    head = 300.0 / (1 + np.exp((np.abs(points_mm).max(-1) - 38) / 4))
    return head + 700.0 * np.exp(-(((points_mm - np.array(at_mm)) / radius) ** 2).sum(-1))


def scan(shape=(24, 24, 24), affine=AFFINE, at_mm=(20.0, -12.0, 8.0), centred=True, dtype=np.float32) -> bytes:
    """An image of `blob` on any grid whose middle is the scanner's origin, as the bytes of a .nii.gz."""
    affine = np.array(affine, float)
    if centred:
        affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    points = index @ affine[:3, :3].T + affine[:3, 3]
    return pack(nib.Nifti1Image(blob(at_mm, points).astype(dtype), affine))


def pack(image: nib.Nifti1Image) -> bytes:
    return gzip.compress(image.to_bytes(), 1)


def one(raw: bytes, **changes: object) -> np.ndarray:
    done = prepare({"T1": raw}, None, config(**changes))
    assert not done.findings
    return done.cubes["T1"].astype(np.float32)


def brightest_mm(cube: np.ndarray, spacing_mm: float = 4.0) -> np.ndarray:
    """Position of the spot relative to the cube's middle."""
    bright = np.argwhere(cube >= np.sort(cube.ravel())[-60])
    return (bright.mean(0) - (np.array(cube.shape) - 1) / 2) * spacing_mm


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (-1, 1, -1)])
def test_any_storage_order_gives_the_same_cube(order, signs):
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) * signs * 4.0)[:, list(order)]
    assert np.array_equal(one(scan(affine=affine)), one(scan()))


def test_left_stays_left():
    right = one(scan(at_mm=(24.0, 0, 0)))
    assert brightest_mm(right)[0] == pytest.approx(24, abs=1)  # RAS: the first axis runs to the patient's right
    assert brightest_mm(one(scan(at_mm=(-24.0, 0, 0))))[0] == pytest.approx(-24, abs=1)


@pytest.mark.parametrize("zooms", [(1.0, 1.0, 1.0), (2.0, 1.5, 6.0), (5.0, 5.0, 5.0)])
def test_resampling_keeps_things_where_they_are(zooms):
    shape = tuple(round(96 / z) for z in zooms)
    cube = one(scan(shape, np.diag([*zooms, 1.0])))
    assert cube.shape == (24, 24, 24)
    assert brightest_mm(cube) == pytest.approx([20, -12, 8], abs=1.5)
    assert np.corrcoef(cube.ravel(), one(scan()).ravel())[0, 1] > 0.97


def test_thinning_out_does_not_alias():
    rng = np.random.default_rng(0)
    noise = pack(nib.Nifti1Image((500 + 100 * rng.standard_normal((96, 96, 96))).astype(np.float32), np.eye(4)))
    # 64 voxels and more go into each new one: picking single ones would leave the deviation at 1
    assert one(noise)[4:-4, 4:-4, 4:-4].std() < 0.3


def test_refining_a_real_scan_agrees_with_nibabels_own_resampling():
    image = nib.load(PACKAGED / "anatomical.nii")
    values = np.asarray(image.dataobj, np.float32)
    target = np.diag([1.5, 1.5, 1.5, 1.0])
    middle = image.affine @ [*(np.array(image.shape) - 1) / 2, 1]
    target[:3, 3] = middle[:3] - 1.5 * 23 / 2
    wanted = resample_from_to(nib.Nifti1Image(values, image.affine), ((24, 24, 24), target), order=1)
    expected = Intensity.of(values, (0, 100)).normalise(wanted.get_fdata(dtype=np.float32))
    ours = one((PACKAGED / "anatomical.nii").read_bytes(), spacing_mm=1.5, clip_percentiles=[0.0, 100.0])
    assert np.abs(ours - expected).max() < 2e-3  # what float16 rounds


@pytest.mark.parametrize(("shape", "size"), [((16, 20, 12), 24), ((40, 30, 25), 24), ((9, 40, 24), 24)])
def test_crop_and_padding_are_centred(shape, size):
    cube = one(scan(shape), size=size)
    assert cube.shape == (size,) * 3
    kept = [min(n, size) for n in shape]
    margin = [(size - n + 1) // 2 for n in kept]
    outside = np.ones(cube.shape, bool)
    outside[tuple(slice(m, m + n) for m, n in zip(margin, kept, strict=True))] = False
    assert len(np.unique(cube[outside])) <= 1  # padding is one value, the background


def test_lesion_crop_follows_the_mask_and_falls_back_to_the_foreground():
    image = scan((48, 48, 48), at_mm=(30.0, -20.0, 16.0))
    labels = np.zeros((48, 48, 48), np.uint8)
    affine = nib.Nifti1Image.from_bytes(gzip.decompress(image)).affine
    lesion = np.round(np.linalg.solve(affine, [30, -20, 16, 1])[:3]).astype(int)
    labels[tuple(slice(i - 2, i + 3) for i in lesion)] = 2
    labels[2, 2, 2] = 1  # a speck elsewhere must not drag the centre away
    mask = pack(nib.Nifti1Image(labels, affine))
    on_lesion = prepare({"T1": image}, mask, config(crop="lesion")).cubes["T1"].astype(float)
    assert np.abs(brightest_mm(on_lesion)).max() < 6
    on_organ = prepare({"T1": image}, mask, config(crop="organ")).cubes["T1"].astype(float)
    assert np.abs(brightest_mm(on_organ)).max() > 8  # the middle of everything marked
    empty = pack(nib.Nifti1Image(labels * 0, affine))
    foreground = one(image, crop="foreground")
    for nothing in (empty, None):
        assert np.array_equal(prepare({"T1": image}, nothing, config(crop="lesion")).cubes["T1"], foreground)
    assert not np.array_equal(on_lesion, foreground)


def test_foreground_crop_finds_the_body_in_an_empty_field():
    volume = np.random.default_rng(0).random((60, 24, 24)).astype(np.float32)
    volume[40:56] += 50 + 20 * np.random.default_rng(1).random((16, 24, 24), dtype=np.float32)
    cube = one(pack(nib.Nifti1Image(volume, AFFINE)), crop="foreground")
    assert (cube.max((1, 2)) > cube.min() + 1).nonzero()[0].tolist() == list(range(4, 20))


def test_modalities_on_different_grids_stay_aligned():
    fine = scan((80, 80, 30), np.diag([1.2, 1.2, 3.2, 1.0]))
    coarse = scan((24, 24, 24))
    done = prepare({"T1": fine, "T2": coarse}, None, config(crop="foreground"))
    a, b = (brightest_mm(done.cubes[m].astype(float)) for m in ("T1", "T2"))
    assert a == pytest.approx(b, abs=2.5)


def test_intensities_are_free_of_the_scanners_scale_and_of_spikes():
    plain = one(scan())
    image = nib.Nifti1Image.from_bytes(gzip.decompress(scan()))
    spiked = image.get_fdata(dtype=np.float32) * 37
    spiked[3, 3, 3] = 1e6
    changed = one(pack(nib.Nifti1Image(spiked, image.affine)))
    assert np.median(np.abs(plain - changed)) < 0.01
    assert changed.min() >= CLIP_Z[0] and changed.max() <= CLIP_Z[1]
    tissue = plain[plain > 0.95 * plain.min()]  # what is not background
    assert tissue.mean() == pytest.approx(0, abs=0.1) and tissue.std() == pytest.approx(1, abs=0.1)


def test_scaled_integers_are_read_as_nibabel_reads_them():
    values = np.random.default_rng(0).integers(0, 1000, (24, 24, 24)).astype(np.int16)
    image = nib.Nifti1Image(values, AFFINE)
    image.header.set_slope_inter(0.5, -20)
    scaled = nib.Nifti1Image.from_bytes(image.to_bytes())
    expected = Intensity.of(scaled.get_fdata(dtype=np.float32), (0.5, 99.9))
    assert np.allclose(one(pack(image)), expected.normalise(scaled.get_fdata(dtype=np.float32)), atol=5e-3)


@pytest.mark.parametrize("make", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
def test_both_nifti_versions_and_byte_orders(make, order):
    plain = nib.Nifti1Image.from_bytes(gzip.decompress(scan()))
    header = make.header_class(endianness=order)
    other = make(plain.get_fdata(dtype=np.float32), plain.affine, header)
    assert np.array_equal(one(other.to_bytes()), one(scan()))


def broken(kind: str) -> bytes:
    good, rng = scan(), np.random.default_rng(0)
    values = rng.random((24, 24, 24)).astype(np.float32)
    if kind == "truncated gzip":
        return good[: len(good) // 2]
    if kind == "damaged gzip":
        return good[:200] + bytes(reversed(good[200:400])) + good[400:]
    if kind == "truncated nii":
        return gzip.decompress(good)[:-5000]
    if kind == "not an image":
        return b"%PDF-1.7 a letter"
    if kind == "dicom":
        return bytes(128) + b"DICM" + bytes(300)
    if kind == "empty":
        return b""
    if kind == "4D":
        return pack(nib.Nifti1Image(rng.random((24, 24, 24, 3)), AFFINE))
    if kind == "one slice":
        return pack(nib.Nifti1Image(rng.random((24, 24)), AFFINE))
    if kind == "complex":
        return pack(nib.Nifti1Image(values.astype(np.complex64), AFFINE))
    if kind == "NaN":
        values[3, 4, 5] = np.nan
    if kind == "infinite":
        values[3, 4, 5] = np.inf
    if kind == "constant":
        values[:] = 7
    affine = {
        "no affine": np.zeros((4, 4)),
        "flat affine": np.array([[4.0, 4, 0, 0], [0, 0, 4, 0], [0, 0, 0, 0], [0, 0, 0, 1]]),
        "far away": np.array([[4.0, 0, 0, 1e30], [0, 4, 0, 0], [0, 0, 4, 0], [0, 0, 0, 1]]),
    }
    image = nib.Nifti1Image(values, AFFINE)
    if kind in affine:
        image.header.set_sform(affine[kind], 1)
        image = nib.Nifti1Image(values, None, image.header)
        image.header.set_sform(affine[kind], 1)
    return pack(image)


KINDS = {
    "truncated gzip": "truncated", "damaged gzip": "damaged", "truncated nii": "truncated", "not an image": "not a NIfTI",
    "dicom": "DICOM", "empty": "empty", "4D": "4 dimensions", "one slice": "not a volume", "complex": "no numbers", "NaN": "NaN",
    "infinite": "infinite", "constant": "one value", "no affine": "affine", "flat affine": "affine",
    "far away": "places it at 1e+30, 0, 0 mm",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_volume_is_named_and_the_others_are_kept(kind):
    done = prepare({"T1": scan(), "T2": broken(kind), "FLAIR": scan()}, None, config())
    assert [f.slot for f in done.findings] == ["T2"]
    assert KINDS[kind] in done.findings[0].problem
    assert done.findings[0].remedy
    assert set(done.cubes) == {"T1", "FLAIR"}
    assert prepare({"T2": broken(kind)}, None, config()).cubes == {}


@pytest.mark.filterwarnings("error")
def test_no_damage_whatever_raises():
    rng = np.random.default_rng(0)
    good = nib.Nifti1Image(rng.integers(0, 99, (12, 12, 12)).astype(np.int16), np.diag([4.0, 4, 4, 1])).to_bytes()
    outcomes = set()
    for i in range(1500):
        raw = bytearray(good if i % 3 else gzip.compress(good, 1))
        reach = 352 if i % 3 else len(raw)  # the header, or anywhere in the packed file
        for place in rng.integers(0, reach, rng.integers(1, 8)):
            raw[place] = rng.integers(0, 256)
        done = prepare({"T1": bytes(raw)}, bytes(raw), config(size=8, crop="lesion"))
        assert all(np.isfinite(cube).all() for cube in done.cubes.values())
        assert done.findings or done.cubes
        outcomes |= {finding.problem for finding in done.findings} | set(done.cubes)
    assert {"T1", "Its header makes no sense", "The gzip file is damaged", "It is not a NIfTI image"} <= outcomes


def test_a_trailing_dimension_of_one_is_no_fourth_dimension():
    image = nib.Nifti1Image.from_bytes(gzip.decompress(scan()))
    longer = nib.Nifti1Image(image.get_fdata(dtype=np.float32)[..., None], image.affine)
    assert np.array_equal(one(pack(longer)), one(scan()))


def moved(by_mm: float) -> bytes:
    affine = AFFINE.copy()
    affine[:3, 3] += by_mm
    return scan(affine=affine, centred=False)


def test_a_volume_of_another_place_or_size_than_its_study_is_bad():
    for slot, odd in (("T2", moved(200)), ("FLAIR", scan(affine=np.eye(4)))):
        done = prepare({"T1": scan(), "T1ce": scan(), slot: odd}, None, config())
        assert [f.slot for f in done.findings] == [slot]
        assert set(done.cubes) == {"T1", "T1ce"}
    first_is_odd = prepare({"T1": moved(200), "T2": scan(), "FLAIR": scan()}, None, config())
    assert [f.slot for f in first_is_odd.findings] == ["T1"]
    patient_moved = prepare({"T1": scan(), "T2": moved(8)}, None, config())
    assert not patient_moved.findings


@pytest.mark.parametrize(("shape", "shift"), [((24, 24, 24), 40.0), ((20, 24, 24), 0.0)])
def test_a_mask_on_another_grid_is_bad_and_costs_only_the_mask(shape, shift):
    image, affine = scan(), AFFINE.copy()
    affine[0, 3] += shift
    mask = pack(nib.Nifti1Image(np.ones(shape, np.uint8), affine))
    done = prepare({"T1": image}, mask, config(crop="lesion"))
    assert [f.slot for f in done.findings] == ["mask"]
    assert np.array_equal(done.cubes["T1"], prepare({"T1": image}, None, config(crop="lesion")).cubes["T1"])
    assert not prepare({"T1": image}, mask, config(crop="centre")).findings  # the mask is not even looked at


def test_nibabels_own_files():
    header = read_grid((PACKAGED / "anatomical.nii").read_bytes()[:HEADER_BYTES])
    assert header.shape == (33, 41, 25)
    assert header.spacing_mm == pytest.approx([2, 2, 2])
    assert one((PACKAGED / "anatomical.nii").read_bytes()).shape == (24, 24, 24)
    done = prepare({"T1": (PACKAGED / "example4d.nii.gz").read_bytes()}, None, config())
    assert "4 dimensions (128 x 96 x 24 x 2)" in done.findings[0].problem
    done = prepare({"T1": (PACKAGED / "test.mgz").read_bytes()}, None, config())
    assert "not a NIfTI" in done.findings[0].problem


def test_the_same_bytes_give_the_same_cubes():
    a, b = (prepare({"T1": scan((50, 40, 30), np.diag([2.0, 2.0, 3.0, 1]))}, None, config()).cubes["T1"] for _ in "ab")
    assert a.tobytes() == b.tobytes()
