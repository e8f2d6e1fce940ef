"""BraTS, FeTS, fed-brats, IXI and MedMoM as their makers name the files."""

from __future__ import annotations

import csv
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from client.manifest import read_manifest
from client.sources import brats, fed_brats, ixi, medmom
from client.sources.found import Found, Row, SourceError, settle
from client.sources.write import write_manifest
from configs import load_vocabulary
from tests.client.sources.trees import brats_case, lld, nifti

MEDMOM = load_vocabulary("medmom")
OLD, NEW = ("flair", "t1", "t1ce", "t2", "seg"), ("t1n", "t1c", "t2w", "t2f", "seg")


def studies(found: Found) -> dict[str, dict[str, Row]]:
    grouped: dict[str, dict[str, Row]] = {}
    for row in found.rows:
        grouped.setdefault(row.study_id, {})[row.modality] = row
    return grouped


@pytest.mark.parametrize(
    ("folder", "case", "suffixes", "join", "end", "patient"),
    [
        ("HGG", "Brats18_TCIA01_131_1", OLD, "_", ".nii.gz", "Brats18_TCIA01_131_1"),
        ("LGG", "BraTS19_TMC_09043_1", OLD, "_", ".nii.gz", "BraTS19_TMC_09043_1"),
        ("MICCAI_BraTS2020_TrainingData", "BraTS20_Training_001", OLD, "_", ".nii", "BraTS20_Training_001"),
        (".", "BraTS2021_00000", OLD, "_", ".nii.gz", "BraTS2021_00000"),
        (".", "FeTS2022_01341", OLD, "_", ".nii.gz", "FeTS2022_01341"),
        ("training_data1_v2", "BraTS-GLI-00005-100", NEW, "-", ".nii.gz", "BraTS-GLI-00005"),
        (".", "BraTS-MET-00001-000", NEW, "-", ".nii.gz", "BraTS-MET-00001"),
        (".", "BraTS-GLI-00012-001", NEW, "-", ".nii.gz", "BraTS-GLI-00012"),
        (".", "case7", ("T1GD", "T1", "T2", "FLAIR", "seg"), "_", ".nii.gz", "case7"),
    ],
)
def test_every_years_names_are_read(tmp_path, folder, case, suffixes, join, end, patient):
    brats_case(tmp_path / folder, case, suffixes, join, end)
    found = brats.scan(tmp_path)
    assert not found.problems
    rows = studies(found)[case]
    assert set(rows) == {"T1", "T1ce", "T2", "FLAIR"}
    contrast = next(s for s in suffixes if s.lower() in ("t1ce", "t1c", "t1gd"))
    assert rows["T1ce"].image.name == f"{case}{join}{contrast}{end}"
    assert rows["T1"].mask.name == f"{case}{join}seg{end}"
    assert (rows["T1"].patient_id, rows["T1"].abnormality, rows["T1"].split) == (patient, "tumour", "")
    assert rows["T1"].extra.get("grade") == (folder if folder in ("HGG", "LGG") else None)


def test_the_target_volume_of_brats_men_rt_is_its_mask(tmp_path):
    brats_case(tmp_path, "BraTS-MEN-RT-0012-1", ("t1c", "gtv"))
    (row,) = brats.scan(tmp_path).rows
    assert (row.patient_id, row.modality, row.mask.name) == (
        "BraTS-MEN-RT-0012",
        "T1ce",
        "BraTS-MEN-RT-0012-1_gtv.nii.gz",
    )


def test_visits_of_a_patient_are_studies(tmp_path):
    for visit in ("100", "101"):
        brats_case(tmp_path, f"BraTS-GLI-00005-{visit}", NEW, "-")
    found = brats.scan(tmp_path)
    assert {row.patient_id for row in found.rows} == {"BraTS-GLI-00005"} and len(studies(found)) == 2


def test_grades_of_the_name_mapping_and_texts_of_textbrats(tmp_path):
    brats_case(tmp_path, "BraTS20_Training_001", OLD)
    brats_case(tmp_path, "BraTS20_Training_002", OLD)
    header = "Grade,BraTS_2017_subject_ID,BraTS_2018_subject_ID,TCGA_TCIA_subject_ID,BraTS_2019_subject_ID,BraTS_2020_subject_ID"
    (tmp_path / "name_mapping.csv").write_text(f"{header}\r\nHGG,a,b,NA,c,BraTS20_Training_001\r\n")
    text = tmp_path / "BraTS20_Training_002" / "BraTS20_Training_002_flair_text.txt"
    text.write_text("Lesion in the left\nparietal lobe.")
    rows = studies(brats.scan(tmp_path))
    assert rows["BraTS20_Training_001"]["T1"].extra == {"grade": "HGG"}
    assert not brats.scan(tmp_path).problems
    (tmp_path / "BraTS20_Training_003_flair_text.txt").write_text("Lesion.")
    assert ["1 texts are of cases without images" in p.problem for p in brats.scan(tmp_path).problems] == [True]
    report = rows["BraTS20_Training_002"]["T1"]
    assert (report.report, report.report_source) == ("Lesion in the left parietal lobe.", "generated")


def test_a_fets_partition_gives_the_sites(tmp_path):
    for n in range(3):
        brats_case(tmp_path, f"FeTS2022_0000{n}", OLD)
    table = tmp_path / "partitioning_1.csv"
    table.write_text("Partition_ID,Subject_ID\n4,FeTS2022_00000\n-1,FeTS2022_00001\n7,FeTS2022_99999\n")
    found = brats.scan(tmp_path, partition=table)
    sites = {study: rows["T1"].site for study, rows in studies(found).items()}
    assert sites == {"FeTS2022_00000": "site-4", "FeTS2022_00001": "", "FeTS2022_00002": ""}
    assert ["2 cases have no site" in p.problem for p in found.problems] == [True]
    rows = "4,FeTS2022_00000\n5,FeTS2022_00000\n7,FeTS2022_00001\n7,FeTS2022_00002\n9\n"
    table.write_text(f"Partition_ID,Subject_ID\n{rows}")  # one in two sites, and a row cut short
    found = brats.scan(tmp_path, partition=table)
    assert {study: rows["T1"].site for study, rows in studies(found).items()} == {
        "FeTS2022_00000": "", "FeTS2022_00001": "site-7", "FeTS2022_00002": "site-7",
    }  # fmt: skip
    assert ["has FeTS2022_00000 in site-4 and site-5" in p.problem for p in found.problems] == [True]
    table.write_text("id,hospital\n1,2\n")
    assert "no columns Partition_ID" in str(brats.scan(tmp_path, partition=table).problems[0])


def test_what_is_odd_is_named_and_costs_nothing_else(tmp_path):
    brats_case(tmp_path, "BraTS20_Training_354", ("flair", "t1", "t1ce"))
    brats_case(tmp_path, "BraTS20_Training_355", OLD[:4])
    nifti(tmp_path / "BraTS20_Training_355" / "W39_1998.09.19_Segm.nii")  # as the data set has it
    nifti(tmp_path / "BraTS20_Training_356" / "BraTS20_Training_356_seg.nii.gz")
    nifti(tmp_path / "copy" / "BraTS20_Training_355_t1.nii.gz")
    found = brats.scan(tmp_path)
    assert len(found.rows) == 7
    problems = " | ".join(p.problem for p in found.problems)
    assert len(found.problems) == 4
    for text in ("Training_354 has no T2", "Segm.nii is not named", "a mask of a case without images", "is what"):
        assert text in problems


def test_brats_says_that_all_have_a_tumour(tmp_path):
    brats_case(tmp_path, "BraTS2021_00000", OLD[:4])
    notes = " ".join(brats.scan(tmp_path).notes)
    assert "Every BraTS patient has a tumour" in notes and "Cases without a mask" in notes


def test_ixi_hospital_patient_and_modality_come_from_the_name(tmp_path):
    names = ("IXI012-HH-1211-T1", "IXI012-HH-1211-T2", "IXI013-Guys-0700-T1", "IXI014-IOP-0900-PD", "IXI014-IOP-0900-MRA",
             "IXI012-HH-1211-DTI-00", "IXI012-HH-1211-DTI-15", "readme-volume")  # fmt: skip
    for name in names:
        nifti(tmp_path / f"IXI-{name.split('-')[-1]}" / f"{name}.nii.gz")
    found = ixi.scan(tmp_path)
    row = next(r for r in found.rows if r.modality == "T2")
    assert (row.patient_id, row.study_id, row.site, row.abnormality) == ("IXI012", "IXI012-1211", "HH", "no_tumour")
    settled = settle(found, MEDMOM)
    assert sorted((r.patient_id, r.modality) for r in settled.rows) == [
        ("IXI012", "T1"),
        ("IXI012", "T2"),
        ("IXI013", "T1"),
    ]
    notes = " ".join(settled.notes)
    for text in (
        "no such modality: MRA 1, PD 1.",
        "DTI volumes left out, as single directions of a diffusion series: 2",
        "named as IXI's: 1",
    ):
        assert text in notes
    assert not settled.problems


def snapshot(root: Path, rows: list[list[str]], split: str = "train") -> Path:
    table = root / "metadata" / f"{split}.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["BraTS Subject ID", "Site", "t1n", "t1c", "t2w", "t2f", "Mask"])
        writer.writerows(rows)
    return root


def case(root: Path, name: str, site: str, split: str = "train") -> list[str]:
    paths = [f"data/{split}/{name}/{name}-{suffix}.nii.gz" for suffix in NEW]
    for path in paths:
        nifti(root / path)
    return [name, site, *paths]


def test_fed_brats_sites_and_splits_come_from_its_tables(tmp_path):
    snapshot(tmp_path, [case(tmp_path, "BraTS-GLI-00005-100", "1"), case(tmp_path, "BraTS-GLI-00006-100", "2")])
    snapshot(tmp_path, [case(tmp_path, "BraTS-GLI-00007-100", "1", "test")], "test")
    (tmp_path / "data/train/BraTS-GLI-00006-100/BraTS-GLI-00006-100-t2w.nii.gz").unlink()
    found = settle(fed_brats.scan(tmp_path), MEDMOM)
    rows = studies(found)
    assert {name: (r["T1"].site, r["T1"].split, len(r)) for name, r in rows.items()} == {
        "BraTS-GLI-00005-100": ("site-1", "train", 4),
        "BraTS-GLI-00006-100": ("site-2", "train", 3),
        "BraTS-GLI-00007-100": ("site-1", "test", 4),
    }
    assert rows["BraTS-GLI-00005-100"]["FLAIR"].mask.name == "BraTS-GLI-00005-100-seg.nii.gz"
    assert [p.problem.endswith("t2w.nii.gz is missing") for p in found.problems] == [True]


def test_a_fed_brats_patient_in_train_and_test_is_a_test_patient(tmp_path):
    snapshot(tmp_path, [case(tmp_path, "BraTS-GLI-00005-100", "1")])
    snapshot(tmp_path, [case(tmp_path, "BraTS-GLI-00005-101", "1", "test")], "test")
    found = settle(fed_brats.scan(tmp_path), MEDMOM)
    assert {row.split for row in found.rows} == {"test"} and len(found.problems) == 1


@pytest.fixture
def parquet():
    return pytest.importorskip("pyarrow.parquet")


def shards(parquet, root: Path, rows: list[list[str]], types: dict[str, str], **more: list[object]) -> Path:
    """metadata/train-*.parquet with a row each, as Hugging Face's `datasets` writes them; types: of columns that are no strings."""
    import pyarrow

    (root / "metadata").mkdir(parents=True, exist_ok=True)
    names = ["BraTS Subject ID", "Site", "t1n", "t1c", "t2w", "t2f", "Mask"]
    for i, row in enumerate(rows):
        cells = dict(zip(names, row, strict=True))
        table = pyarrow.table({name: pyarrow.array([cell or None], pyarrow.string()) for name, cell in cells.items()})
        for name, kind in types.items():
            at = names.index(name)
            column = table.column(name)
            column = column.dictionary_encode() if kind == "dictionary" else column.cast(kind)
            table = table.set_column(at, name, column)
        for name, values in more.items():
            table = table.append_column(name, pyarrow.array([values[i]]))
        table = table.replace_schema_metadata({"huggingface": '{"info": {"features": {}}}'})
        parquet.write_table(table, root / "metadata" / f"train-{i:05d}-of-{len(rows):05d}.parquet")
    return root


@pytest.mark.parametrize(
    "types",
    [{}, {"Site": "int64"}, {"Site": "double"}, {"t1n": "large_string", "Mask": "string_view", "Site": "dictionary"}],
)
def test_a_fed_brats_parquet_says_what_the_same_table_as_csv_says(tmp_path, parquet, types):
    rows = [case(tmp_path / "csv", f"BraTS-GLI-0000{n}-100", str(n)) for n in (1, 2, 3)]
    rows[1][1] = rows[2][4] = ""  # no site; no T2
    snapshot(tmp_path / "csv", rows)
    shutil.copytree(tmp_path / "csv" / "data", tmp_path / "parquet" / "data")
    thumbnails = [{"bytes": b"PNG", "path": None}] * 3  # columns that nobody asks for are not read
    shards(parquet, tmp_path / "parquet", rows, types, Thumbnail=thumbnails, Age=[60, 70, None])
    found = fed_brats.scan(tmp_path / "parquet")
    wanted = fed_brats.scan(tmp_path / "csv")

    def told(found: Found, root: Path) -> list[tuple[object, ...]]:
        return [
            (r.patient_id, r.modality, r.image.relative_to(root), r.mask.relative_to(root), r.site, r.split)
            for r in found.rows
        ]

    assert told(found, tmp_path / "parquet") == told(wanted, tmp_path / "csv")
    assert len(found.rows) == 11 and {r.site for r in found.rows} == {"site-1", "", "site-3"}
    assert not found.problems


def test_a_fed_brats_parquet_that_holds_images_or_is_damaged_is_named(tmp_path, parquet):
    import pyarrow

    rows = [case(tmp_path, f"BraTS-GLI-0000{n}-100", str(n)) for n in (1, 2, 3)]
    shards(parquet, tmp_path, rows, {})
    first, second, third = sorted((tmp_path / "metadata").iterdir())
    table = parquet.ParquetFile(first).read()
    image = pyarrow.array([{"bytes": b"\x1f\x8b...", "path": "x.nii.gz"}])
    parquet.write_table(table.set_column(table.column_names.index("t1n"), "t1n", image), first)
    second.write_bytes(second.read_bytes()[:-100])
    found = fed_brats.scan(tmp_path)
    assert {row.study_id for row in found.rows} == {"BraTS-GLI-00003-100"} and len(found.rows) == 4
    assert [(p.problem.startswith(str(path)), said in p.problem) for p, path, said in
            zip(found.problems, (first, second), ("t1n holds struct<", "no Parquet file"), strict=True)] == [(True, True)] * 2  # fmt: skip
    good = third.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):  # whatever is in the file: a problem or rows, never a traceback
        raw = bytearray(good)
        for place in rng.integers(0, len(raw), 3):
            raw[place] = rng.integers(0, 256)
        third.write_bytes(raw)
        fed_brats.scan(tmp_path)


def test_without_pyarrow_fed_brats_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "test.parquet").write_bytes(b"PAR1")
    with pytest.raises(SourceError, match=r"write it as test\.csv"):
        fed_brats.scan(tmp_path)
    with pytest.raises(SourceError, match="snapshot"):
        fed_brats.scan(tmp_path / "data")


def test_medmom_puts_its_parts_under_one_another_and_says_what_is_unknown(tmp_path):
    lld(tmp_path / "lld", {"MR1": [6]})
    lists = tmp_path / "lld/classification_dataset/labels"
    lists.mkdir(parents=True)
    (lists / "labels.txt").write_text("MR1 6\n")
    brats_case(tmp_path / "brats", "BraTS2021_00000", OLD)
    nifti(tmp_path / "ixi" / "IXI012-HH-1211-T1.nii.gz")
    found = settle(medmom.scan(tmp_path / "lld", tmp_path / "brats", healthy=tmp_path / "ixi"), MEDMOM)
    by = {row.extra["source"]: row for row in found.rows}
    assert {name: (row.organ, row.site) for name, row in by.items()} == {
        "lld-mmri": ("liver", "lld-mmri"), "brats": ("brain", "brats"), "ixi": ("brain", "HH"),
    }  # fmt: skip
    assert by["lld-mmri"].split == "train" and all(row.split for row in found.rows)
    notes = " ".join(found.notes)
    for text in (
        "liver 1 (paper 498), brain 2 (paper 852)",
        "which BraTS has 852 patients is unknown",
        "by a hash of their id",
    ):
        assert text in notes
    path = tmp_path / "m.csv"
    write_manifest(found.rows, path)
    manifest = read_manifest(path, MEDMOM)
    assert len(manifest.studies) == 3 and manifest.ignored == ("source",)
    alone = medmom.scan(tmp_path / "lld", tmp_path / "brats")
    assert "All brains here have a tumour" in " ".join(alone.notes)
