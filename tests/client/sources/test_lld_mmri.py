"""LLD-MMRI in both layouts: true spacing, patient-disjoint splits, withheld labels, boxes as masks."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from client.cache import CubeCache
from client.manifest import read_manifest
from client.sources.found import Found, Row, SourceError, settle
from client.sources.lld_mmri import scan
from client.sources.write import write_manifest
from configs import load_vocabulary
from configs.schema import VolumesConfig
from tests.client.sources.trees import PHASES, lld, lld_crops, nifti

MEDMOM = load_vocabulary("medmom")
LISTS = {
    "labels.txt": ["MR1 0", "MR1_1 0", "MR-411388 6"],
    "labels_val_inaccessible.txt": ["MR3 -1"],
    "train_fold1.txt": ["MR1 0", "MR-411388 6"],
    "val_fold1.txt": ["MR1_1 0"],
}
FOLDERS = ("MR1", "MR1_1", "MR-411388", "MR3", "MR4")


def by_study(found: Found) -> dict[str, Row]:
    return {row.study_id: row for row in found.rows}


def said(found: Found) -> str:
    return "\n".join([*map(str, found.problems), *found.notes])


def test_whole_volumes_take_label_modality_and_spacing_of_the_json(tmp_path):
    found = scan(lld(tmp_path, {"MR1": [6], "MR2": [-1]}))
    assert len(found.rows) == 16 and not found.problems
    assert {row.modality for row in found.rows} == set(MEDMOM.organs["liver"].modalities)
    first, second = by_study(found)["MR1"], by_study(found)["MR2"]
    assert (first.abnormality, second.abnormality, first.split) == ("hcc", "", "")
    # DICOM's order is rows, columns: the second is the file's first axis
    assert first.spacing_mm == (0.7, 0.8, 5.5)
    assert "16 headers have other voxel edges" in said(found)


def test_a_header_that_is_right_needs_no_spacing(tmp_path):
    root = lld(tmp_path, {"MR1": [6]}, spacing_mm=(1.0, 1.0), thickness_mm=1.0)
    assert all(row.spacing_mm is None for row in scan(root).rows)


def test_the_prepared_cube_has_the_true_spacing(tmp_path):
    found = scan(lld(tmp_path / "data", {"MR1": [6]}, spacing_mm=(2.0, 2.0), thickness_mm=6.0))
    path = tmp_path / "m.csv"
    write_manifest(settle(found, MEDMOM).rows, path)
    study = read_manifest(path, MEDMOM).studies[0]
    config = VolumesConfig(size=16, spacing_mm=2.0, crop="centre")
    cache = CubeCache(tmp_path / "cache", config)
    true = cache.entry(study)
    # negative control: the header alone gives another cube, and another place in the cache
    lying = cache.entry(type(study)(**{**vars(study), "spacings": {}}))
    assert true.path != lying.path and cache.built == 2
    honest = tmp_path / "honest.nii.gz"
    source = nib.load(study.images["C+A"])
    affine = np.diag([-2.0, -2, 6, 1])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(source.shape) - 1) / 2)
    nib.save(nib.Nifti1Image(np.asarray(source.dataobj), affine), honest)
    rewritten = {modality: honest if modality == "C+A" else image for modality, image in study.images.items()}
    spacings = {modality: edges for modality, edges in study.spacings.items() if modality != "C+A"}
    expected = cache.entry(type(study)(**{**vars(study), "images": rewritten, "spacings": spacings}))
    which = true.modalities.index("C+A")
    assert np.array_equal(true.read()[which], expected.read()[which])
    assert not np.array_equal(true.read()[which], lying.read()[which])
    assert cache.entry(study).path == true.path and cache.built == 3


def test_lists_beside_whole_volumes_give_splits_and_withheld_labels(tmp_path):
    root = lld(tmp_path, {"MR1": [-1], "MR-411388": [6], "MR3": [-1], "MR9": [2]})
    lld_crops(root, LISTS, [])
    rows = by_study(scan(root))
    assert {name: (row.abnormality, row.split) for name, row in rows.items()} == {
        "MR1": ("hemangioma", "train"), "MR-411388": ("hcc", "train"), "MR3": ("", "val"), "MR9": ("abscess", "test"),
    }  # fmt: skip


def test_lesions_of_two_classes_leave_the_patient_without_a_label(tmp_path):
    found = scan(lld(tmp_path, {"MR1": [6, 4], "MR2": [6, 6]}))
    rows = by_study(found)
    assert (rows["MR1"].abnormality, rows["MR2"].abnormality) == ("", "hcc")
    assert [p.problem for p in found.problems] == ["Patient MR1 has lesions called hcc and cyst"]


def test_what_is_missing_or_broken_costs_nothing_else(tmp_path):
    root = lld(tmp_path, {"MR1": [6], "MR2": [6]})
    (root / "images/MR1/1.2.840.0/1.2.840.0.5.nii.gz").unlink()
    (root / "images/MR2/1.2.840.1/1.2.840.1.0.nii.gz").write_bytes(b"junk")
    nifti(root / "images/MR2/1.2.840.1/stray.nii.gz")
    found = scan(root)
    assert len(found.rows) == 15  # what cannot be read keeps its row: `check` and training name it again
    assert len(found.problems) == 3
    text = said(found)
    assert "1.2.840.0.5.nii.gz is missing" in text and "not a NIfTI image" in text and "stray" in text


def test_boxes_become_masks_on_the_true_grid(tmp_path):
    found = scan(lld(tmp_path / "d", {"MR1": [6]}), masks=tmp_path / "masks")
    mask = nib.load(found.rows[0].mask)
    inside = np.argwhere(np.asarray(mask.dataobj) > 0)
    assert inside.min(0).tolist() == [3, 4, 1] and inside.max(0).tolist() == [8, 7, 3]
    assert mask.header.get_zooms() == pytest.approx((0.7, 0.8, 5.5))
    assert {row.mask for row in found.rows} == {tmp_path / "masks" / "MR1.nii.gz"}
    assert "filled box" in said(found)
    again = scan(tmp_path / "d", masks=tmp_path / "again")
    assert again.rows[0].mask.read_bytes() == found.rows[0].mask.read_bytes()


def test_the_mask_of_a_box_is_accepted_by_the_study_it_is_of(tmp_path):
    path = tmp_path / "m.csv"
    write_manifest(settle(scan(lld(tmp_path / "d", {"MR1": [6]}), masks=tmp_path / "masks"), MEDMOM).rows, path)
    study = read_manifest(path, MEDMOM).studies[0]
    entry = CubeCache(tmp_path / "cache", VolumesConfig(size=16, spacing_mm=2.0, crop="lesion")).entry(study)
    assert not entry.problems and len(entry.modalities) == 8


def test_crops_belong_to_their_patient_and_official_lists_hold(tmp_path):
    found = scan(lld_crops(tmp_path, LISTS, FOLDERS))
    rows = by_study(found)
    assert len(found.rows) == 40
    assert {name: (row.patient_id, row.abnormality, row.split) for name, row in rows.items()} == {
        "MR1": ("MR1", "hemangioma", "train"),
        "MR1_1": ("MR1", "hemangioma", "train"),
        "MR-411388": ("MR-411388", "hcc", "train"),
        "MR3": ("MR3", "", "val"),
        "MR4": ("MR4", "", "test"),
    }
    assert "Studies in no list: 1" in said(found)
    assert "nothing says what is true" in said(found)  # no Annotation.json here


def test_a_fold_that_divides_a_patient_is_mended(tmp_path):
    """The data set's own folds are drawn by lesion: MR1 is in train, its second lesion in val."""
    found = scan(lld_crops(tmp_path, LISTS, FOLDERS), fold=1)
    raw = {(row.study_id, row.split) for row in found.rows}
    assert {("MR1", "train"), ("MR1_1", "val"), ("MR3", "test")} <= raw
    settled = settle(found, MEDMOM)
    assert {row.split for row in settled.rows if row.patient_id == "MR1"} == {"val"}
    assert [p.problem for p in settled.problems] == ["Patient MR1 is in split val and train"]
    path = tmp_path / "m.csv"
    write_manifest(settled.rows, path)
    assert len(read_manifest(path, MEDMOM).studies) == 5  # the reader finds no leakage


def test_crops_take_their_spacing_from_the_json_beside_them(tmp_path):
    lld_crops(lld(tmp_path, {"MR1": [0]}), LISTS, FOLDERS)
    found = scan(tmp_path, rois=True)
    rows = by_study(found)
    assert rows["MR1"].spacing_mm == rows["MR1_1"].spacing_mm == (0.7, 0.8, 5.5)
    assert rows["MR3"].spacing_mm is None
    same = scan(tmp_path / "classification_dataset")  # the folder itself may be given
    assert [(r.study_id, r.modality, r.spacing_mm) for r in same.rows] == [
        (r.study_id, r.modality, r.spacing_mm) for r in found.rows
    ]


def test_a_crop_without_a_phase_and_a_stray_file_are_named(tmp_path):
    root = lld_crops(tmp_path, LISTS, ["MR1", "MR-411388"])
    (root / "classification_dataset/images/MR1/C+V.nii.gz").unlink()
    nifti(root / "classification_dataset/images/MR1/C+V (1).nii.gz")
    found = scan(root)
    assert len(found.rows) == 2 * len(PHASES) - 1
    stray, absent = (p.problem for p in found.problems)
    assert "C+V (1).nii.gz is named as none of" in stray
    assert absent == "Study MR1 has no C+V"


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_lists_may_have_windows_line_ends_and_a_byte_order_mark(tmp_path, ends):
    root = lld_crops(tmp_path, {}, FOLDERS)
    for name, lines in LISTS.items():
        (root / "classification_dataset/labels" / name).write_bytes(("\ufeff" + ends.join(lines)).encode())
    found = scan(root)
    assert by_study(found)["MR1"].abnormality == "hemangioma" and not found.problems


def test_lines_that_make_no_sense_and_labels_that_differ_are_named(tmp_path):
    lists = {"labels.txt": ["MR1 0", "MR1_1 nine", "MR-411388"], "labels_val.txt": ["MR1 3"]}
    found = scan(lld_crops(tmp_path, lists, FOLDERS[:3]))
    assert [p.problem.partition(", ")[2] for p in found.problems] == [
        "line 2: 'MR1_1 nine' is no name and class from -1 to 6",
        "line 3: 'MR-411388' is no name and class from -1 to 6",
        "line 1: MR1 is metastasis here, and hemangioma elsewhere",
    ]
    assert by_study(found)["MR1"].abnormality == ""


def test_a_folder_of_neither_layout_or_a_fold_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(SourceError, match="holds neither"):
        scan(tmp_path)
    with pytest.raises(SourceError, match="folds are 1 to 5"):
        scan(lld_crops(tmp_path, {"labels.txt": ["MR1 0"]}, ["MR1"]), fold=2)


def test_classes_may_be_named_and_a_patients_name_may_not_lead_elsewhere(tmp_path):
    root = lld(tmp_path / "d", {"MR1": [6], "MR2": [3]})
    path = root / "labels" / "Annotation.json"
    text = path.read_text().replace('"category": 6', '"category": "Hepatocellular_carcinoma"')
    path.write_text(text.replace('"MR2"', '"MR2/../../../x"'))
    found = scan(root, masks=tmp_path / "masks")
    assert {row.abnormality for row in found.rows} == {"hcc"} and "is not named as a patient" in said(found)
    assert [p.name for p in tmp_path.rglob("*.nii.gz") if "images" not in p.parts] == ["MR1.nii.gz"]


def test_edges_that_are_none_cost_their_volume_and_hollow_boxes_their_mask(tmp_path):
    root = lld(tmp_path / "d", {"MR1": [6], "MR2": [6]})
    path = root / "labels" / "Annotation.json"
    told = json.loads(path.read_text())
    for number, edges in enumerate(([0, 0.7], ["nan", 1], [-1, 1])):
        told["Annotation_info"]["MR1"][number]["pixel_spacing"] = edges
    for item in told["Annotation_info"]["MR2"]:
        item["annotation"]["lesion"]["0"]["bbox"]["3D_box"]["x_max"] = 1
    told["Annotation_info"]["MR3"] = None
    path.write_text(json.dumps(told))
    found = scan(root, masks=tmp_path / "masks")
    assert Counter(row.patient_id for row in found.rows) == {"MR1": 5, "MR2": 8}
    assert {row.patient_id for row in found.rows if row.mask} == {"MR1"}
    assert said(found).count("is not described as the others are") == 4 and "8 lesion boxes hold no voxel" in said(
        found
    )


def test_masks_are_written_neither_among_the_images_nor_over_other_files(tmp_path):
    root = lld(tmp_path / "d", {"MR1": [6]})
    with pytest.raises(SourceError, match="among the images"):
        scan(root, masks=root / "images" / "MR1")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "MR1.nii.gz").write_bytes(b"drawn by a radiologist")
    with pytest.raises(SourceError, match="--force"):
        scan(root, masks=tmp_path / "masks")
    assert (tmp_path / "masks" / "MR1.nii.gz").read_bytes() == b"drawn by a radiologist"
    scan(root, masks=tmp_path / "masks", force=True)
    first = (tmp_path / "masks" / "MR1.nii.gz").read_bytes()
    scan(root, masks=tmp_path / "masks")  # its own is no other file
    assert (tmp_path / "masks" / "MR1.nii.gz").read_bytes() == first and first != b"drawn by a radiologist"


def test_annotations_of_another_make_are_named(tmp_path):
    root = lld(tmp_path, {"MR1": [6]})
    path: Path = root / "labels" / "Annotation.json"
    path.write_text(path.read_text().replace('"C+V"', '"C+X"'))
    found = scan(root)
    assert len(found.rows) == 7
    assert "is not described as the others are" in said(found) and "has no C+V" in said(found)
