"""BIDS by its own rules, and any folder by a YAML file; the example of docs/data.md is run as it stands there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from client.sources import bids, folder
from client.sources.found import SourceError, settle
from configs import load_vocabulary
from configs.setting import ConfigError
from tests.client.sources.trees import nifti

MEDMOM = load_vocabulary("medmom")
DOCS = Path(__file__).resolve().parents[3] / "docs" / "data.md"


@pytest.fixture
def dataset(tmp_path) -> Path:
    (tmp_path / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    table = "participant_id\tgroup\tSite\tImpression\nsub-01\tpatient\tnorth\tRing-enhancing mass.\nsub-02\tcontrol\tn/a\tn/a\n"
    (tmp_path / "participants.tsv").write_text(table)
    (tmp_path / "T2w.json").write_text('{"InstitutionName": "South"}')
    for name in ("sub-01/ses-a/anat/sub-01_ses-a_T1w", "sub-01/ses-a/anat/sub-01_ses-a_ce-gadolinium_T1w",
                 "sub-01/ses-b/anat/sub-01_ses-b_FLAIR", "sub-02/anat/sub-02_T2w", "sub-02/anat/sub-02_run-1_T1w",
                 "sub-02/func/sub-02_task-rest_bold", "derivatives/seg/sub-01/ses-a/anat/sub-01_ses-a_label-lesion_mask",
                 "derivatives/seg/sub-01/ses-a/anat/sub-01_ses-a_desc-brain_mask"):  # fmt: skip
        nifti(tmp_path / f"{name}.nii.gz")
    return tmp_path


def rows_of(found) -> dict[tuple[str, str], object]:
    return {(row.study_id, row.modality): row for row in settle(found, MEDMOM).rows}


def test_subjects_sessions_suffixes_and_participants(dataset):
    columns = bids.Columns("group", "site", "impression", {"patient": "tumour", "control": "no_tumour"})
    found = bids.scan(dataset, columns=columns)
    rows = rows_of(found)
    assert set(rows) == {
        ("sub-01_ses-a", "T1"), ("sub-01_ses-a", "T1ce"), ("sub-01_ses-b", "FLAIR"), ("sub-02", "T1"), ("sub-02", "T2"),
    }  # fmt: skip
    first, second = rows["sub-01_ses-a", "T1ce"], rows["sub-02", "T2"]
    assert (first.patient_id, first.abnormality, first.site) == ("sub-01", "tumour", "north")
    assert first.report == "Ring-enhancing mass." and first.mask.name.endswith("label-lesion_mask.nii.gz")
    assert (second.abnormality, second.site, second.report, second.mask) == ("no_tumour", "South", "", None)
    assert "no such modality: bold 1." in " ".join(settle(found, MEDMOM).notes)
    assert not found.problems


def test_a_sidecar_tells_contrast_and_the_nearest_one_wins(dataset):
    (dataset / "T1w.json").write_text('{"ContrastBolusIngredient": "GADOLINIUM"}')
    (dataset / "sub-01/ses-a/anat/sub-01_ses-a_T1w.json").write_text('{"ContrastBolusIngredient": "NONE"}')
    rows = rows_of(bids.scan(dataset))
    assert ("sub-01_ses-a", "T1") in rows and ("sub-02", "T1ce") in rows  # the second inherits from the top


def test_a_sidecar_of_another_acquisition_is_not_inherited(dataset):
    (dataset / "acq-x_T1w.json").write_text('{"ContrastBolusIngredient": "GADOLINIUM"}')
    assert ("sub-02", "T1") in rows_of(bids.scan(dataset))


def test_bids_oddities_are_named_and_cost_nothing_else(dataset):
    nifti(dataset / "sub-03/anat/sub-03_T1w.nii.gz")
    nifti(dataset / "sub-03/anat/T1.nii.gz")
    nifti(dataset / "sub-02/anat/sub-02_run-2_T1w.nii.gz")
    (dataset / "sub-03/anat/sub-03_T1w.json").write_text("{not json")
    found = settle(bids.scan(dataset, columns=bids.Columns("group", labels={"patient": "tumour"})), MEDMOM)
    problems = " | ".join(p.problem for p in found.problems)
    for text in ("is not JSON", "not named after their folder", "1 subjects are not in participants.tsv, such as sub-03", "sub-02 has T1 in",
                 "'control'"):  # fmt: skip
        assert text in problems
    assert len(found.problems) == 5 and len(found.rows) == 6


def test_phase_and_imaginary_parts_never_stand_for_an_image(dataset):
    for part in ("imag", "mag", "phase"):
        nifti(dataset / f"sub-04/anat/sub-04_part-{part}_T1w.nii.gz")
    nifti(dataset / "sub-05/anat/sub-05_part-phase_T1w.nii.gz")
    found = bids.scan(dataset)
    assert [r.image.name for r in found.rows if r.patient_id in ("sub-04", "sub-05")] == ["sub-04_part-mag_T1w.nii.gz"]
    assert "(part-) left out: 3" in " ".join(found.notes)


def test_a_subject_that_participants_tsv_has_twice_has_no_label(dataset):
    """Written by Excel on Windows: byte order mark, CRLF."""
    table = "participant_id\tgroup\r\nsub-01\ttumour\r\nsub-01\tno_tumour\r\nsub-02\tno_tumour\r\n"
    (dataset / "participants.tsv").write_bytes(("\ufeff" + table).encode())
    found = bids.scan(dataset, columns=bids.Columns("group"))
    assert {(r.patient_id, r.abnormality) for r in found.rows} == {("sub-01", ""), ("sub-02", "no_tumour")}
    assert ["has sub-01 twice" in p.problem for p in found.problems] == [True]


def test_a_data_set_of_links_that_were_never_fetched_says_so_once(dataset):
    """As `datalad clone` leaves it."""
    for path in dataset.rglob("*.nii.gz"):
        path.unlink()
        path.symlink_to("../.git/annex/objects/x")
    found = bids.scan(dataset)
    assert not found.rows and ["8 files are links that lead nowhere" in p.problem for p in found.problems] == [True]
    assert "datalad get" in found.problems[0].remedy


def test_bids_usage_errors_are_one_sentence(dataset, tmp_path_factory):
    with pytest.raises(SourceError, match="has no column diagnosis: there are participant_id"):
        bids.scan(dataset, columns=bids.Columns("diagnosis"))
    with pytest.raises(SourceError, match="below a folder sub-"):
        bids.scan(tmp_path_factory.mktemp("empty"))
    assert "--label-column" in " ".join(bids.scan(dataset).notes)


LAYOUT = r"""
files: '(?P<site>[^/]+)/(?P<patient>\d+)/(?P<study>\d{8})/(?P<modality>[^/]+)\.nii(\.gz)?'
organ: brain
modality: {t1_gd: T1ce, t1: T1, seg: mask}
abnormality: {GBM: tumour, none: no_tumour}
split: {dev: val}
table: {file: clinical.csv, key: MRN, abnormality: Diagnosis, report: Findings, split: Part}
"""


@pytest.fixture
def scans(tmp_path) -> tuple[Path, Path]:
    for name in (
        "north/001/20240101/t1",
        "north/001/20240101/t1_gd",
        "north/001/20240101/seg",
        "south/002/20240102/t1",
    ):
        nifti(tmp_path / "mri" / f"{name}.nii.gz")
    (tmp_path / "clinical.csv").write_text(
        "\ufeffMRN;Diagnosis;Findings;Part\r\n001;GBM;Mass.;train\r\n002;none;;dev\r\n"
    )
    layout = tmp_path / "mine.yaml"
    layout.write_text(LAYOUT)
    return tmp_path / "mri", layout


def test_a_folder_is_read_by_regular_expression_mapping_and_table(scans):
    found = settle(folder.scan(*scans), MEDMOM)
    assert not found.problems
    first = next(row for row in found.rows if row.modality == "T1ce")
    assert (first.patient_id, first.study_id, first.site, first.split) == ("001", "20240101", "north", "train")
    assert (first.abnormality, first.report, first.report_source) == ("tumour", "Mass.", "")
    assert first.mask.name == "seg.nii.gz" and first.organ == "brain"
    second = next(row for row in found.rows if row.patient_id == "002")
    assert (second.abnormality, second.split, second.mask, second.report) == ("no_tumour", "val", None, "")


def test_what_a_layout_does_not_cover_is_named(scans):
    root, layout = scans
    nifti(root / "loose.nii.gz")
    nifti(root / "north/003/20240101/t1.nii.gz")
    nifti(root / "north/003/20240101/adc.nii.gz")
    (layout.parent / "clinical.csv").write_text(
        "MRN,Diagnosis,Findings,Part\n001,GBM,,train\n001,none,,train\n002,odd,,1\n"
    )
    found = settle(folder.scan(root, layout), MEDMOM)
    problems = " | ".join(p.problem for p in found.problems)
    for text in (
        "1 NIfTI files do not match",
        "1 patients are not in the table",
        "patient 001 twice",
        "'odd'",
        "'1' is not a split",
    ):
        assert text in problems
    assert len(found.rows) == 4 and "no such modality: adc 1." in " ".join(found.notes)


def test_a_tables_row_of_too_many_cells_is_left_out_and_one_of_too_few_is_not(scans):
    """A comma in a report that nobody quoted: nothing of the row can be trusted."""
    root, layout = scans
    (layout.parent / "clinical.csv").write_text("MRN,Diagnosis,Findings,Part\n002,none\n001,GBM,Mass, left,train\n")
    found = settle(folder.scan(root, layout), MEDMOM)
    assert {(r.patient_id, r.abnormality, r.report) for r in found.rows} == {("001", "", ""), ("002", "no_tumour", "")}
    assert [p.row for p in found.problems] == [3, None]
    assert "The row has 5 cells, the header 4" in found.problems[0].problem


def test_a_table_by_study_gives_no_label_to_a_study_of_two_patients(scans):
    root, layout = scans
    nifti(root / "south/003/20240101/t1.nii.gz")  # of the same day as 001's
    layout.write_text(LAYOUT.replace("key: MRN", "key: date, by: study"))
    (layout.parent / "clinical.csv").write_text("date,Diagnosis,Findings,Part\n20240101,GBM,Mass.,\n20240102,none,,\n")
    found = settle(folder.scan(root, layout), MEDMOM)
    assert {r.patient_id: (r.abnormality, r.report) for r in found.rows} == {
        "001": ("", ""), "003": ("", ""), "002": ("no_tumour", ""),
    }  # fmt: skip
    assert ["1 studies of the table belong to several patients" in p.problem for p in found.problems] == [True]


def test_a_group_that_a_path_may_lack(scans):
    root, layout = scans
    text = LAYOUT.replace(r"(?P<modality>[^/]+)\.nii(\.gz)?", r"((?P<modality>t1|t1_gd|seg)|.*)\.nii(\.gz)?")
    layout.write_text(text)
    nifti(root / "north/001/20240101/scout.nii.gz")
    found = folder.scan(root, layout)
    assert len(found.rows) == 3 and ["such as north/001/20240101/scout" in p.problem for p in found.problems] == [True]


@pytest.mark.parametrize(
    ("line", "instead", "told"),
    [
        ("files: '(?P<site>", "files: '((?P<site>", "not a regular expression"),
        ("(?P<modality>[^/]+)", "[^/]+", r"it needs a group \(\?P<modality>"),
        ("(?P<site>", "(?P<hospital>", r"\(\?P<hospital>...\) means nothing"),
        ("organ:", "organe:", "line 3: `organe` is not a setting, did you mean `organ`"),
        ("key: MRN", "key: id", "table.key: .* has no column id, but mrn"),
        ("clinical.csv", "klinik.csv", "table.file: there is no"),
        ("modality: {t1_gd: T1ce, t1: T1, seg: mask}", "modality: T1", "write `name: value` lines"),
        ("key: MRN", "key: MRN, by: exam", "take one of patient, study"),
    ],
)
def test_a_wrong_layout_is_one_sentence(scans, line, instead, told):
    root, layout = scans
    assert line in LAYOUT
    layout.write_text(LAYOUT.replace(line, instead))
    with pytest.raises(ConfigError, match=told) as caught:
        folder.scan(root, layout)
    assert "\n" not in str(caught.value)


def test_the_example_of_the_docs_reads_the_tree_of_the_docs(tmp_path):
    text = DOCS.read_text(encoding="utf-8")
    layout = re.search(r"```yaml\n# mine\.yaml.*?\n(.*?)```", text, re.DOTALL)[1]
    tree = re.search(r"```\n(mri/.*?)```", text, re.DOTALL)[1]
    table = re.search(r"```\n(mrn,.*?)```", text, re.DOTALL)[1]
    (tmp_path / "mine.yaml").write_text(layout)
    (tmp_path / "clinical.csv").write_text(table)
    paths = tree.split()
    assert len(paths) >= 5
    for path in paths:
        nifti(tmp_path / path)
    found = settle(folder.scan(tmp_path / "mri", tmp_path / "mine.yaml"), MEDMOM)
    assert not found.problems
    assert len(found.rows) + len({row.mask for row in found.rows if row.mask}) == len(paths)
    assert {row.abnormality for row in found.rows} == {"tumour", "no_tumour"}
    assert all(row.report for row in found.rows if row.abnormality == "tumour")


def test_a_sidecar_that_is_a_list_does_no_harm(dataset):
    (dataset / "T2w.json").write_text(json.dumps([1, 2]))
    assert ("sub-02", "T2") in rows_of(bids.scan(dataset))
