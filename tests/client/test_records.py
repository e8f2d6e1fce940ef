"""What reaches training: patients, one study each, whole batches of one organ, the same for the same seed."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from client.manifest import ManifestError
from client.problems import DataError
from client.records import SiteRecords
from configs import load_vocabulary
from configs.schema import AugmentConfig, VolumesConfig

MEDMOM = load_vocabulary("medmom")
SIZE = 8
VOLUMES = VolumesConfig(size=SIZE, spacing_mm=4.0, crop="centre")
PLAIN = AugmentConfig(flip=False, flip_left_right=False, shift_voxels=0, intensity_scale=0, intensity_shift=0)
MIRROR = AugmentConfig(flip=False, flip_left_right=True, shift_voxels=0, intensity_scale=0, intensity_shift=0)


class Hospital:
    """Writes volumes and a manifest."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.lines = folder, ["patient_id,study_id,modality,image,organ,abnormality,report,split"]

    def add(
        self, patient: str, study: str, modalities: Sequence[str], organ: str = "brain", label: str = "",
        report: str = "", split: str = "train",
    ) -> Hospital:  # fmt: skip
        for modality in modalities:
            name = f"{patient}-{study}-{modality}.nii.gz"
            seed = list(name.encode())
            values = np.random.default_rng(seed).random((SIZE,) * 3).astype(np.float32)
            image = nib.Nifti1Image(values, np.diag([4.0, 4, 4, 1]))
            (self.folder / name).write_bytes(gzip.compress(image.to_bytes(), 1))
            self.lines.append(f"{patient},{study},{modality},{name},{organ},{label},{report},{split}")
        return self

    def manifest(self) -> Path:
        path = self.folder / "manifest.csv"
        path.write_text("\n".join(self.lines))
        return path


class Texts:
    """An embedding that can be read back: text number n is (n, ..., n)."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        self.calls.append(list(texts))
        return torch.arange(1.0, len(texts) + 1)[:, None].expand(-1, 4).contiguous()

    def of(self, batch_report: torch.Tensor) -> list[str]:
        return [self.calls[0][int(n) - 1] if n else "" for n in batch_report[:, 0]]


def open_records(*hospitals: Hospital, embed: Texts | None = None, **changes: object) -> SiteRecords:
    volumes = VolumesConfig(**{**vars(VOLUMES), **changes})  # type: ignore[arg-type]
    return SiteRecords(
        [h.manifest() for h in hospitals],
        vocabulary=MEDMOM,
        volumes=volumes,
        embed=embed or Texts(),
        cache_dir=hospitals[0].folder / "cache",
    )


@pytest.fixture
def hospital(tmp_path) -> Hospital:
    """21 training patients of the brain, 9 of the liver, and some for validation."""
    site = Hospital(tmp_path / "site")
    for i in range(21):
        modalities = ("T1", "FLAIR") if i % 2 else ("FLAIR", "T2", "T1")
        side = ("left", "right")[i % 2]
        site.add(f"B{i}", "1", modalities, "brain", ("tumour", "no_tumour", "")[i % 3], f"Mass {i} {side}.")
    for i in range(9):
        site.add(f"L{i}", "1", ("C+A", "DWI"), "liver", ("hcc", "cyst")[i % 2])
    for i in range(3):
        site.add(f"V{i}", "1", ("T1",), "brain", "tumour", split="val")
    return site


def same(a, b) -> bool:
    names = ("volumes", "present", "label", "report", "has_report")
    return a.organ == b.organ and all(torch.equal(getattr(a, n), getattr(b, n)) for n in names)


def test_counts_splits_and_organs(hospital):
    records = open_records(hospital)
    volumes, patients = records.counts()
    assert volumes == {"T1": 21, "T2": 11, "FLAIR": 21, "DWI": 9, "C+A": 9}
    assert patients == {"brain": 21, "liver": 9}
    assert records.counts("val") == ({"T1": 3}, {"brain": 3})
    assert records.counts("common") == ({}, {})
    assert records.splits() == {"train": 30, "val": 3}
    assert records.organs("train") == ("brain", "liver") and records.organs("val") == ("brain",)


def test_slots_are_the_vocabularys_and_missing_ones_are_zero(hospital):
    records = open_records(hospital)
    for organ, names in (("brain", ("T1", "T1ce", "T2", "FLAIR")), ("liver", MEDMOM.organs["liver"].modalities)):
        studies = records.studies(split="train", organ=organ)
        batches = list(records.eval_batches(split="train", organ=organ, batch_size=4))
        present = torch.cat([b.present for b in batches])
        volumes = torch.cat([b.volumes for b in batches])
        assert volumes.dtype == torch.float32 and volumes.shape[1:] == (len(names), SIZE, SIZE, SIZE)
        assert [[n in s.images for n in names] for s in studies] == present.tolist()
        assert (volumes[~present] == 0).all()
        assert (volumes[present].flatten(1).std(1) > 0.5).all()
    # the right volume in the right slot, whatever order the manifest has
    study = records.studies(split="train", organ="brain")[0]
    raw = nib.load(study.images["T2"]).get_fdata()
    batch = next(iter(records.eval_batches(split="train", organ="brain")))
    assert np.corrcoef(raw.ravel(), batch.volumes[0, 2].ravel())[0, 1] > 0.99


def test_labels_and_reports_belong_to_their_patients(hospital):
    embed = Texts()
    records = open_records(hospital, embed=embed)
    studies = records.studies(split="train", organ="brain")
    batch = next(iter(records.eval_batches(split="train", organ="brain", batch_size=99)))
    classes = {"no_tumour": 0, "tumour": 1, None: -1}
    assert batch.label.tolist() == [classes[s.abnormality] for s in studies]
    assert embed.of(batch.report) == [s.report for s in studies]
    assert batch.has_report.all()
    liver = next(iter(records.eval_batches(split="train", organ="liver")))
    assert not liver.has_report.any() and (liver.report == 0).all() and liver.report.shape == (9, 4)
    assert len(embed.calls) == 1 and len(set(embed.calls[0])) == len(embed.calls[0])


def test_a_pass_visits_every_patient_once_in_batches_of_one_organ(hospital):
    records = open_records(hospital)
    for batch_size, sizes in ((4, [4, 4, 4, 4, 5]), (8, [5, 8, 8]), (20, [21]), (64, [21])):
        batches = list(records.train_batches(batch_size=batch_size, seed=3, augment=None))
        brain = sorted(len(b) for b in batches if b.organ == "brain")
        assert brain == sizes
        assert sum(len(b) for b in batches if b.organ == "liver") == 9
        assert min(len(b) for b in batches) >= 2
    everyone = torch.cat([b.volumes[:, 3] for b in batches if b.organ == "brain"])
    expected = torch.cat([b.volumes[:, 3] for b in records.eval_batches(split="train", organ="brain")])
    assert {v.sum().item() for v in everyone} == {v.sum().item() for v in expected}
    orders = {tuple(b.organ for b in records.train_batches(batch_size=4, seed=s, augment=None)) for s in range(8)}
    assert len(orders) > 1  # organs are interleaved


def test_a_lone_patient_of_an_organ_is_evaluated_but_gives_no_training_batch(tmp_path):
    site = Hospital(tmp_path / "s").add("A", "1", ("T1",)).add("B", "1", ("T1",)).add("C", "1", ("DWI",), "liver")
    records = open_records(site)
    assert [b.organ for b in records.train_batches(batch_size=8, seed=0, augment=None)] == ["brain"]
    assert [len(b) for b in records.eval_batches(split="train", organ="liver")] == [1]


@pytest.mark.parametrize("augment", [None, AugmentConfig()])
def test_the_seed_decides_every_bit(hospital, augment):
    first, second = open_records(hospital), open_records(hospital, memory_mb=0)
    a, b, c = (
        list(r.train_batches(batch_size=8, seed=s, augment=augment)) for r, s in ((first, 1), (second, 1), (first, 2))
    )
    assert len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    assert not all(same(x, y) for x, y in zip(a, c, strict=True))
    torch.manual_seed(9)  # nor does the caller's random state
    assert all(same(x, y) for x, y in zip(a, first.train_batches(batch_size=8, seed=1, augment=augment), strict=True))


def test_a_mirrored_patient_has_the_mirrored_report(hospital):
    embed = Texts()
    records = open_records(hospital, embed=embed)
    plain = {}
    for batch in records.eval_batches(split="train", organ="brain"):
        plain.update(zip(embed.of(batch.report), batch.volumes, strict=True))
    seen: Counter[str] = Counter()
    for batch in records.train_batches(batch_size=8, seed=0, augment=MIRROR):
        if batch.organ == "liver":
            continue
        for text, volumes in zip(embed.of(batch.report), batch.volumes, strict=True):
            if text in plain:
                seen["kept"] += 1
                assert torch.equal(volumes, plain[text])
            else:
                seen["mirrored"] += 1
                words = {"left.": "right.", "right.": "left."}
                original = " ".join(words.get(word, word) for word in text.split())
                assert torch.equal(volumes, plain[original].flip(1))
    assert min(seen["kept"], seen["mirrored"]) > 2


def test_a_report_whose_side_cannot_be_swapped_keeps_its_patient_as_it_is(tmp_path):
    site = Hospital(tmp_path / "s")
    for i in range(12):
        site.add(f"P{i}", "1", ("DWI",), "liver", report=f"HCC {i} in segment VII.")
    records = open_records(site)
    plain = {
        b.report[i, 0].item(): b.volumes[i]
        for b in records.eval_batches(split="train", organ="liver")
        for i in range(12)
    }
    for batch in records.train_batches(batch_size=4, seed=0, augment=MIRROR):
        for row, volumes in zip(batch.report, batch.volumes, strict=True):
            assert torch.equal(volumes, plain[row[0].item()])


def test_one_study_of_a_patient_per_pass_and_the_last_per_organ_for_evaluation(tmp_path):
    site = Hospital(tmp_path / "s")
    for i in range(8):
        site.add(f"P{i}", "1", ("T1",), "brain", "tumour").add(f"P{i}", "2", ("T1", "T2"), "brain", "no_tumour")
        site.add(f"P{i}", "3", ("DWI",), "liver", "hcc")
    records = open_records(site)
    assert records.splits() == {"train": 8}
    assert records.counts() == ({"T1": 16, "T2": 8, "DWI": 8}, {"brain": 8, "liver": 8})
    drawn: Counter[str] = Counter()
    for seed in range(40):
        batches = list(records.train_batches(batch_size=4, seed=seed, augment=None))
        people = sum(len(b) for b in batches)
        assert 7 <= people <= 8  # a patient drawn as the only one of an organ is left out
        for batch in batches:
            drawn.update(f"{batch.organ} {n}" for n in batch.present.sum(1).tolist())
    assert set(drawn) == {"brain 1", "brain 2", "liver 1"}
    assert all(n == pytest.approx(320 / 3, rel=0.25) for n in drawn.values())
    assert [s.study_id for s in records.studies(split="train", organ="brain")] == ["2"] * 8
    assert next(iter(records.eval_batches(split="train", organ="brain"))).label.tolist() == [0] * 8


def test_pooled_manifests_keep_equal_patient_ids_apart(tmp_path):
    a = Hospital(tmp_path / "a").add("1", "1", ("T1",)).add("2", "1", ("T1",))
    b = Hospital(tmp_path / "b").add("1", "1", ("T2",), split="val").add("3", "1", ("T1",))
    assert open_records(a, b).splits() == {"train": 3, "val": 1}


def test_bad_volumes_are_skipped_and_a_patient_without_any_is_dropped(hospital):
    folder = hospital.folder
    (folder / "B0-1-T2.nii.gz").write_bytes(b"junk")
    for modality in ("T1", "FLAIR"):
        (folder / f"B1-1-{modality}.nii.gz").unlink()
    records = open_records(hospital)
    assert records.counts() == ({"T1": 20, "T2": 10, "FLAIR": 20, "DWI": 9, "C+A": 9}, {"brain": 20, "liver": 9})
    texts = [str(p) for p in records.problems]
    assert len(texts) == 4
    assert "B0-1-T2.nii.gz" in texts[0] and "not a NIfTI" in texts[0] and texts[0].startswith("row 3, column image")
    assert "B1-1-T1.nii.gz" in texts[1] and "missing" in texts[1]
    assert "Patient B1 is left out" in texts[3]
    assert "B1" not in {s.patient_id for s in records.studies(split="train", organ="brain")}


def test_the_policy_stop_lists_all_bad_volumes_at_once(hospital):
    (hospital.folder / "B0-1-T2.nii.gz").write_bytes(b"junk")
    (hospital.folder / "L3-1-DWI.nii.gz").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        open_records(hospital, on_bad_volume="stop")
    assert len(caught.value.problems) == 2
    assert "B0-1-T2" in str(caught.value) and "L3-1-DWI" in str(caught.value)


def test_a_site_with_nothing_left_and_a_bad_manifest_say_so(tmp_path):
    site = Hospital(tmp_path / "s").add("1", "1", ("T1",))
    (site.folder / "1-1-T1.nii.gz").write_bytes(b"junk")
    with pytest.raises(DataError, match="No volume can be used"):
        open_records(site)
    with pytest.raises(ManifestError, match="FLIAR"):
        open_records(Hospital(tmp_path / "t").add("1", "1", ("FLIAR",)))


def test_memory_is_bounded_and_the_rest_comes_from_the_cache(hospital):
    records = open_records(hospital, memory_mb=0)
    held = open_records(hospital, memory_mb=1)
    batches = list(records.eval_batches(split="train", organ="brain"))
    for folder in (hospital.folder / "cache" / "cubes").iterdir():
        for file in folder.iterdir():
            file.unlink()
    assert all(same(a, b) for a, b in zip(batches, held.eval_batches(split="train", organ="brain"), strict=True))
    cubes = hospital.folder / "cache" / "cubes"
    assert not [p for p in cubes.rglob("*") if p.is_file()]
    assert all(same(a, b) for a, b in zip(batches, records.eval_batches(split="train", organ="brain"), strict=True))
    assert [p for p in cubes.rglob("*") if p.is_file()], "what is not held is read, and made again where it is gone"
