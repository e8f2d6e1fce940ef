"""The phantom on disk: layout, identical bytes, resuming, and never two specs in one folder."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from client.manifest import read_manifest
from configs import load_vocabulary
from configs.schema import PhantomConfig, SitesConfig
from medmap_model.vocabulary import Vocabulary
from simulation.phantom import PhantomError, build_assets, dataset, generate
from simulation.phantom.kinds import KINDS, balanced
from simulation.phantom.plan import cases_of
from simulation.sites import OrganShare, SiteSpec, plan_sites

SIZE = PhantomConfig(size=16, workers=1)
FEW = SitesConfig(
    count=3, patients=5, validation_patients=2, test_patients=2, common_patients=4, external_patients=4,
    missing_rate=0.5, unreported_rate=0.4,
)  # fmt: skip


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return load_vocabulary("medmom")


@pytest.fixture(scope="module")
def specs(vocabulary: Vocabulary) -> list[SiteSpec]:
    return plan_sites(FEW, vocabulary, seed=1)


@pytest.fixture(scope="module")
def data(specs: list[SiteSpec], vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(specs, SIZE, vocabulary, tmp_path_factory.mktemp("phantom") / "data", seed=1)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def fingerprints(folder: Path) -> Mapping[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_the_layout_is_what_others_rely_on(data: Path, specs: list[SiteSpec], vocabulary: Vocabulary) -> None:
    record = json.loads((data / "dataset.json").read_text())
    assert record["schema_version"] == 1
    assert "SIMULATED" in record["statement"]
    assert [s["name"] for s in record["sites"]] == [s.name for s in specs]
    assert [s["external"] for s in record["sites"]] == [False, False, False, True]
    manifest = read_manifest(data / "manifest.csv", vocabulary)  # checks every path, label and split
    assert manifest.ignored == ()
    for spec in specs:
        own = read_manifest(data / spec.name / "manifest.csv", vocabulary)
        expected = sum(x for s in spec.organs.values() for x in (s.train, s.val, s.test, s.common))
        assert len(own.studies) == expected
        assert {s.site for s in own.studies} == {spec.name}
        assert {s.split for s in own.studies} == ({"test"} if spec.external else {"train", "val", "test", "common"})
        for study in own.studies:
            assert study.patient_id.startswith(f"{spec.name}-{study.organ}-")
    patients = [s.patient_id for s in manifest.studies]
    assert len(set(patients)) == len(patients)
    assert not list(data.rglob("*.part"))
    assert not (data / "unfinished.json").exists()


def test_volumes_are_nifti_in_patient_space(data: Path) -> None:
    truth = {r["patient_id"]: r for r in rows(data / "cases.csv")}
    for row in rows(data / "manifest.csv")[::5]:
        image, mask = (
            nib.Nifti1Image.from_filename(data / row["image"]),
            nib.Nifti1Image.from_filename(data / row["mask"]),
        )
        assert image.shape == mask.shape == (16, 16, 16)
        np.testing.assert_allclose(image.affine, mask.affine)
        assert image.header.get_zooms() == (6.0, 6.0, 6.0)
        assert nib.orientations.aff2axcodes(image.affine) == ("R", "A", "S")
        assert (image.header["sform_code"], image.header["qform_code"]) == (1, 1)
        assert image.get_data_dtype() == np.int16
        assert mask.get_data_dtype() == np.uint8
        case = truth[row["patient_id"]]
        centre = image.affine @ [7.5, 7.5, 7.5, 1]
        np.testing.assert_allclose(centre[:3], [float(case[f"view_{a}_mm"]) for a in "xyz"], atol=0.02)
        volume, lesion = image.get_fdata(), np.asanyarray(mask.dataobj)
        assert 50 < volume.max() < 1e5  # scanner units, not normalised
        assert bool(lesion.any()) == (row["abnormality"] != "no_tumour")
        assert set(np.unique(lesion)) <= {0, 1, 2}
        if lesion.any():
            voxels = np.argwhere(lesion == 1).mean(0)
            nearest = np.linalg.norm((image.affine @ [*voxels, 1])[:3] - [float(case[f"lesion_{a}_mm"]) for a in "xyz"])
            assert nearest < 25  # the largest of several


def test_only_training_patients_have_gaps(data: Path, specs: list[SiteSpec]) -> None:
    table = rows(data / "manifest.csv")
    slots = {(s.name, o): set(share.modalities) for s in specs for o, share in s.organs.items()}
    have: dict[str, set[str]] = {}
    for row in table:
        have.setdefault(row["patient_id"], set()).add(row["modality"])
    lacking, silent = set(), set()
    for row in table:
        gap = slots[row["site"], row["organ"]] - have[row["patient_id"]]
        assert len(gap) <= 1
        lacking |= {row["split"]} if gap else set()
        silent |= {row["split"]} if not row["report"] else set()
    assert lacking == silent == {"train"}


def test_bytes_do_not_depend_on_workers_or_on_other_patients(
    data: Path, specs: list[SiteSpec], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    whole = fingerprints(data)
    again = fingerprints(generate(specs, replace(SIZE, workers=2), vocabulary, tmp_path / "two", seed=1))
    assert again == whole
    alone = generate(specs[1:2], SIZE, vocabulary, tmp_path / "one", seed=1)
    same = {k: v for k, v in fingerprints(alone).items() if k.startswith(specs[1].name)}
    assert same == {k: v for k, v in whole.items() if k.startswith(specs[1].name)}
    image = next((data / specs[0].name).rglob("*.nii.gz")).read_bytes()
    assert image[3] == 0  # gzip: no file name inside
    assert image[4:8] == bytes(4)  # gzip: no time
    other = fingerprints(generate(specs[1:2], SIZE, vocabulary, tmp_path / "other", seed=2))
    assert not [k for k, v in other.items() if k.endswith("nii.gz") and "mask" not in k and whole.get(k) == v]


def test_a_complete_set_is_used_and_a_killed_one_completed(
    data: Path, specs: list[SiteSpec], vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, whole, calls = tmp_path / "data", fingerprints(data), []
    simulate = dataset.make_study

    def failing(case: object, *args: object, **kwargs: object) -> object:
        calls.append(case)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return simulate(case, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(dataset, "make_study", failing)
    with pytest.raises(KeyboardInterrupt):
        generate(specs, SIZE, vocabulary, folder, seed=1)
    assert not (folder / "dataset.json").exists()
    half = next((folder / specs[1].name).rglob("*.nii.gz"))
    half.write_bytes(half.read_bytes()[:100])  # cut short by the kill
    told = []
    generate(specs, SIZE, vocabulary, folder, seed=1, progress=lambda done, total: told.append((done, total)))
    assert fingerprints(folder) == whole
    total = sum(1 for _ in rows(folder / "cases.csv"))
    assert told[-1] == (total, total)
    assert len(told) < total  # the first site was complete
    before = len(calls)
    generate(specs, SIZE, vocabulary, folder, seed=1)
    assert len(calls) == before


def test_two_specs_never_share_a_folder(
    data: Path, specs: list[SiteSpec], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    for change in ({"seed": 2}, {"config": replace(SIZE, lesion_scale=1.0)}, {"specs": specs[:2]}):
        arguments = {"specs": specs, "config": SIZE, "vocabulary": vocabulary, "folder": data, "seed": 1, **change}
        with pytest.raises(PhantomError, match="other settings") as caught:
            generate(**arguments)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    generate(specs, replace(SIZE, workers=2), vocabulary, data, seed=1)  # workers do not make another data set
    (tmp_path / "thesis.doc").write_text("mine")
    with pytest.raises(PhantomError, match="other files"):
        generate(specs, SIZE, vocabulary, tmp_path, seed=1)
    assert (tmp_path / "thesis.doc").read_text() == "mine"


def test_impossible_specs_are_refused_in_one_line(vocabulary: Vocabulary, tmp_path: Path) -> None:
    good = OrganShare(2, 0, 0, 0, ("T1",), {"normal": 1.0})
    bad: list[tuple[SiteSpec, str]] = [
        (SiteSpec("a", "nobody-7T", {"brain": good}), "no scanner"),
        (SiteSpec("a", "aster-3T", {"knee": good}), "knee"),
        (SiteSpec("a", "aster-3T", {"brain": replace(good, modalities=("T9",))}), "T9"),
        (SiteSpec("a", "aster-3T", {"brain": replace(good, mix={"stroke": 1.0})}), "mix"),
        (SiteSpec("a", "aster-3T", {"brain": replace(good, train=0)}), "no patients"),
    ]
    for spec, words in bad:
        with pytest.raises(PhantomError, match=words):
            generate([spec], SIZE, vocabulary, tmp_path / "x", seed=0)
    with pytest.raises(PhantomError, match="same name"):
        generate([SiteSpec("a", "aster-3T", {"brain": good})] * 2, SIZE, vocabulary, tmp_path / "x", seed=0)


def test_kinds_follow_the_mix_and_balanced_sets_are_balanced() -> None:
    mix = {"normal": 0.5, "glioblastoma": 0.3, "meningioma": 0.2}
    share = OrganShare(100, 0, 50, 40, ("T1",), mix)
    cases = list(cases_of(SiteSpec("a", "aster-3T", {"brain": share}), seed=3))
    for split, count in (("train", 100), ("test", 50)):
        kinds = [c.kind for c in cases if c.split == split]
        for kind, p in mix.items():
            assert abs(kinds.count(kind) - p * count) <= 1
    assert {k: [c.kind for c in cases if c.split == "common"].count(k) for k in KINDS["brain"]} == {
        "normal": 20, "glioblastoma": 5, "low_grade_glioma": 5, "metastasis": 5, "meningioma": 5,
    }  # fmt: skip
    assert {c.decoy for c in cases if c.split == "train" and c.kind == "normal"} == {"glioblastoma", "meningioma"}
    assert sorted(balanced("liver", 7)) == sorted(KINDS["liver"])
    external = SiteSpec("x", "grove-1.5T", {"brain": OrganShare(0, 0, 40, 0, ("T1",), mix)}, external=True)
    assert [c.kind for c in cases_of(external, seed=3)].count("meningioma") == 5


def test_kinds_are_the_vocabularys(vocabulary: Vocabulary) -> None:
    for organ, kinds in KINDS.items():
        assert set(kinds.values()) == set(vocabulary.organs[organ].abnormalities)


def test_rebuilding_the_assets_without_nilearn_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build_assets.importlib.util, "find_spec", lambda name: None)
    assert build_assets.main() == 1
    said = capsys.readouterr().err.strip()
    assert "nilearn" in said
    assert "\n" not in said


def test_assets_are_small_and_attributed() -> None:
    folder = Path(dataset.__file__).parent / "assets"
    assert (folder / "mni_tissues_2mm.npy.xz").stat().st_size < 700_000
    notice = (folder / "ATTRIBUTION.md").read_text()
    for words in ("Louis Collins", "McGill", "without fee", "Apache-2.0", "totalsegmentator", "nilearn"):
        assert words in notice
