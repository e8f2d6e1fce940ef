"""Made reports say what can be measured and no more, are marked, and how well they tell the label is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from client.augment import mirror_report
from client.grids import VolumeError
from client.manifest import read_manifest, split_of
from client.sources.found import Found, Row
from client.sources.leak import leak_of, told
from client.sources.reports import Kind, add_reports, findings_of, measure, prose
from client.sources.write import write_manifest
from configs import load_vocabulary
from tests.client.sources.trees import lesion_study

MEDMOM = load_vocabulary("medmom")
BRIGHT = {"T1": 0.7, "T2": 2.2, "FLAIR": 1.4, "T1ce": 1.0}


def words(lesions, organ: str) -> str:
    return prose(findings_of(lesions, organ))


def study_rows(folder: Path, patient: str = "P1", **changes: object) -> list[Row]:
    paths = lesion_study(folder, bright=BRIGHT)
    mask = paths.pop("mask")
    return [replace(Row(patient, "A", m, path, "brain", "tumour", mask=mask), **changes) for m, path in paths.items()]


def test_side_place_size_and_signal_are_measured(tmp_path):
    paths = lesion_study(tmp_path, bright=BRIGHT)
    found = measure({m: paths[m] for m in BRIGHT}, paths["mask"], {})
    assert found.place == "right posterior superior"  # voxel (26, 10, 24) of 36, 2 mm, RAS
    assert found.edges_mm == pytest.approx((18, 18, 18))
    assert found.volume_ml == pytest.approx(257 * 8 / 1000)
    assert found.signals == pytest.approx(BRIGHT, rel=0.01)
    text = words(found, "brain")
    assert text == (
        "Focal lesion in the right posterior superior part of the brain, 18 x 18 x 18 mm, 2.1 mL in all. "
        "Hypointense on T1; markedly hyperintense on T2; hyperintense on FLAIR; isointense on T1ce."
    )
    assert "left posterior" in mirror_report(text)
    assert not any(name in text.lower() for name in ("tumour", "tumor", "glioma"))


def test_the_other_side_and_another_orientation_of_the_file_are_told_right(tmp_path):
    paths = lesion_study(tmp_path, bright=BRIGHT, centre=(9, 26, 12))
    assert measure({"T1": paths["T1"]}, paths["mask"], {}).place == "left anterior inferior"
    turned = tmp_path / "turned.nii.gz"
    nib.save(nib.load(paths["mask"]).as_reoriented(np.array([[0, -1], [1, 1], [2, -1]])), turned)
    assert nib.aff2axcodes(nib.load(turned).affine) == ("L", "A", "I")
    assert measure({"T1": paths["T1"]}, turned, {}).place == "left anterior inferior"


def test_true_voxel_edges_are_used_where_the_header_lies(tmp_path):
    paths = lesion_study(tmp_path, bright=BRIGHT)
    lying = tmp_path / "lying.nii.gz"
    source = nib.load(paths["T2"])
    nib.save(nib.Nifti1Image(np.asarray(source.dataobj), np.eye(4)), lying)
    mask = tmp_path / "mask2.nii.gz"
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = -35  # where a header without an origin is put
    nib.save(nib.Nifti1Image(np.asarray(nib.load(paths["mask"]).dataobj), affine), mask)
    true = measure({"T2": lying}, mask, {"T2": (2.0, 2.0, 2.0)})
    assert true.signals["T2"] == pytest.approx(2.2, rel=0.01)
    with pytest.raises(VolumeError, match="nothing of it lies in a volume"):  # the header alone puts it elsewhere
        measure({"T2": lying}, mask, {})


def test_a_mask_elsewhere_has_no_place_and_dark_volumes_have_no_signal(tmp_path):
    paths = lesion_study(tmp_path, bright=BRIGHT)
    source = nib.load(paths["mask"])
    away = source.affine.copy()
    away[:3, 3] += 500
    nib.save(nib.Nifti1Image(np.asarray(source.dataobj), away), tmp_path / "away.nii.gz")
    with pytest.raises(VolumeError, match="nothing of it lies in a volume of its study"):
        measure({"T1": paths["T1"]}, tmp_path / "away.nii.gz", {})
    for value in (0, -40):
        nib.save(nib.Nifti1Image(np.full(source.shape, value, np.int16), source.affine), tmp_path / "dark.nii.gz")
        found = measure({"T1": tmp_path / "dark.nii.gz", "T2": paths["T2"]}, paths["mask"], {})
        assert found.signals.keys() == {"T2"} and found.place == "right posterior superior"
    assert measure({"T1": tmp_path / "dark.nii.gz"}, paths["mask"], {}).place == ""


def test_several_lesions_are_counted_and_an_empty_mask_says_so(tmp_path):
    paths = lesion_study(tmp_path, bright={"T1": 1.5})
    values = np.asarray(nib.load(paths["mask"]).dataobj).copy()
    values[5:8, 5:8, 5:8] = 4
    nib.save(nib.Nifti1Image(values, np.diag([2.0, 2, 2, 1])), paths["mask"])
    assert words(measure({"T1": paths["T1"]}, paths["mask"], {}), "brain").startswith("2 focal lesions, the largest in")
    nib.save(nib.Nifti1Image(values * 0, np.diag([2.0, 2, 2, 1])), paths["mask"])
    assert words(measure({"T1": paths["T1"]}, paths["mask"], {}), "brain") == "No focal lesion of the brain is marked."


def test_made_reports_are_marked_and_a_radiologists_is_kept(tmp_path):
    rows = study_rows(tmp_path / "1") + study_rows(tmp_path / "2", "P2", report="Written by a person.")
    rows += study_rows(tmp_path / "3", "P3", mask=None) + study_rows(tmp_path / "4", "P4", mask=None, abnormality="")
    found = Found(rows)
    add_reports(found, MEDMOM, [Kind("measured"), Kind("caption")])
    by = {row.patient_id: row for row in found.rows}
    assert {name: row.report_source for name, row in by.items()} == {
        "P1": "measured",
        "P2": "",
        "P3": "caption",
        "P4": "",
    }
    assert by["P1"].report.startswith("Focal lesion") and by["P2"].report == "Written by a person."
    assert "tumour" in by["P3"].report and by["P4"].report == ""
    assert any("Reports that are not a radiologist's: 2" in note for note in found.notes)
    found_so = Found(study_rows(tmp_path / "5", "P5", report="By a machine.", report_source="generated"))
    add_reports(found_so, MEDMOM, [])
    assert any("Reports that are not a radiologist's: 1" in note for note in found_so.notes)
    again = Found(study_rows(tmp_path / "3", "P3", mask=None))
    add_reports(again, MEDMOM, [Kind("caption")])
    assert again.rows[0].report == by["P3"].report


def test_a_volume_that_cannot_be_measured_is_named_and_the_others_are_measured(tmp_path):
    rows = study_rows(tmp_path / "1") + study_rows(tmp_path / "2", "P2")
    rows[5].image.write_bytes(b"junk")
    found = Found(rows)
    add_reports(found, MEDMOM, [Kind("measured")])
    assert [bool(row.report) for row in found.rows] == [True] * 4 + [False] * 4
    assert ["P2 cannot be measured" in p.problem and "not a NIfTI image" in p.problem for p in found.problems] == [True]


def people(text_of, classes=("hcc", "cyst"), each=30) -> list[tuple[str, str, str]]:
    return [(f"{label}{i}", text_of(label, i), label) for label in classes for i in range(each)]


def test_texts_that_name_the_label_are_found_out_and_others_are_not():
    rng = np.random.default_rng(0)
    chatter = ["lesion", "right", "left", "bright", "dark", "large", "small", "liver"]

    def noise(label: str, i: int) -> str:
        return " ".join(rng.choice(chatter, 5))

    honest = leak_of(people(noise))
    assert honest.chance == 0.5 and honest.balanced_accuracy < 0.67
    telling = leak_of(people(lambda label, i: f"{noise(label, i)} {'washout' if label == 'hcc' else 'fluid'}"))
    assert telling.balanced_accuracy == 1.0
    assert "they TELL the label" in told(telling, "liver") and "tell little" in told(honest, "liver")


def test_that_only_one_class_has_a_text_tells_the_label_too():
    leak = leak_of(people(lambda label, i: "A lesion." if label == "hcc" else ""))
    assert leak.balanced_accuracy == 1.0


def test_a_patients_studies_are_never_on_both_sides():
    """Words of a patient that stand in all of its reports would otherwise look like words of the class."""
    studies = [(f"P{p}", f"code{'abcdefghijklmnopqrstuvwxyz'[p]} lesion", "hcc" if p % 2 else "cyst")
               for p in range(26) for _ in range(3)]  # fmt: skip
    assert leak_of(studies).balanced_accuracy < 0.75


def test_too_few_patients_are_not_measured():
    leak = leak_of(people(lambda label, i: label, each=4))
    assert leak.balanced_accuracy is None and "two classes with 10 patients" in told(leak, "liver")


def test_captions_leak_and_the_manifests_reader_gives_them_to_training_patients_alone(tmp_path):
    rows = []
    for n in range(60):
        label = ("tumour", "no_tumour")[n % 2]
        image = tmp_path / f"{n}.nii.gz"
        image.touch()
        rows.append(Row(f"P{n}", "A", "T1", image, "brain", label))
    found = Found(rows)
    add_reports(found, MEDMOM, [Kind("caption")])
    assert "they TELL the label" in found.notes[-1]
    path = tmp_path / "m.csv"
    write_manifest(found.rows, path)
    read = {study.patient_id: study for study in read_manifest(path, MEDMOM).studies}
    splits = {name: split_of(name) for name in read}
    assert {"train", "val", "test"} <= set(splits.values())
    assert {name: study.report is not None for name, study in read.items()} == {
        name: split == "train" for name, split in splits.items()
    }
    # negative control: the same texts by a radiologist are read in validation as well
    path.write_text(path.read_text().replace(",caption", ",radiologist"))
    assert all(study.report for study in read_manifest(path, MEDMOM).studies)
