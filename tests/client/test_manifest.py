"""A manifest is believed only when it is sound, and says everything that is not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from client.manifest import ManifestError, read_manifest, scan_manifest, split_of
from configs import load_vocabulary
from medmap_model.vocabulary import Vocabulary

MEDMOM = load_vocabulary("medmom")
HEADER = "patient_id,study_id,modality,image,organ,abnormality,report,mask,site,split"


def write(folder: Path, *rows: str, header: str = HEADER, encoding: str = "utf-8", name: str = "m.csv") -> Path:
    """A manifest; every image and mask it names exists (empty) unless the name starts with 'missing'."""
    names = header.replace(";", ",").replace("\t", ",").split(",")
    for row in rows:
        cells = dict(zip(names, row.replace(";", ",").replace("\t", ",").split(","), strict=False))
        for column in ("image", "mask"):
            cell = cells.get(column, "")
            if cell and not cell.startswith("missing"):
                (folder / cell).touch()
    path = folder / name
    path.write_bytes("\n".join([header, *rows, ""]).encode(encoding))
    return path


def problems_of(path: Path, vocabulary: Vocabulary = MEDMOM) -> list[tuple[int | None, str | None, str]]:
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, vocabulary)
    return [(p.row, p.column, f"{p.problem} | {p.remedy}") for p in caught.value.problems]


def test_a_sound_manifest_becomes_studies(tmp_path):
    path = write(
        tmp_path,
        "P1,A,T1,a.nii.gz,brain,tumour,Mass on the left.,m.nii.gz,north,train",
        "P1,A,FLAIR,b.nii.gz,brain,,,,,",
        "P1,B,T1,c.nii.gz,brain,no_tumour,,,north,train",
        "P2,A,C+A,d.nii.gz,liver,hcc,,,,val",
    )
    first, second, third = read_manifest(path, MEDMOM).studies
    assert first.images == {"T1": tmp_path / "a.nii.gz", "FLAIR": tmp_path / "b.nii.gz"}
    assert (first.abnormality, first.report, first.mask) == ("tumour", "Mass on the left.", tmp_path / "m.nii.gz")
    assert (first.site, first.split, first.rows) == ("north", "train", {"T1": 2, "FLAIR": 3})
    assert (second.patient_id, second.study_id, second.abnormality, second.report) == ("P1", "B", "no_tumour", None)
    assert (third.organ, third.split, third.site) == ("liver", "val", None)


def test_every_problem_is_listed_in_one_pass_with_its_place(tmp_path):
    path = write(
        tmp_path,
        "P1,A,FLAR,a.nii.gz,brain,tumour,,,,train",
        "P1,A,T1,b.nii.gz,brain,tumor,,,,train",
        "P2,A,T1,missing.nii.gz,brian,tumour,,,,train",
        "P3,,T1,c.nii.gz,brain,tumour,,,,validation",
        "P4,A,C+A,d.nii.gz,brain,,,missing_mask.nii.gz,,train",
        "P5,A,T1,e.nii.gz,brain,tumour",
    )
    found = problems_of(path)
    assert [(row, column) for row, column, _ in found] == [
        (2, "modality"), (3, "abnormality"), (4, "organ"), (4, "image"), (5, "study_id"), (5, "split"),
        (6, "modality"), (6, "mask"), (7, None),
    ]  # fmt: skip
    texts = [text for _, _, text in found]
    assert "'FLAR'" in texts[0] and "Did you mean FLAIR" in texts[0]
    assert "Did you mean tumour" in texts[1]
    assert "Did you mean brain" in texts[2]
    assert str(tmp_path / "missing.nii.gz") in texts[3]
    assert "train, val, test, common" in texts[5]
    assert "of the brain" in texts[6]


def test_str_has_a_summary_and_a_line_for_each_problem(tmp_path):
    path = write(tmp_path, "P1,A,X,a.nii.gz,,,,,,", "P2,A,Y,b.nii.gz,,,,,,")
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, MEDMOM)
    first, *lines = str(caught.value).splitlines()
    assert "2 problems" in first
    assert [line.strip()[:5] for line in lines] == ["row 2", "row 3"]


@pytest.mark.parametrize(
    ("column", "values"),
    [("organ", ("brain", "liver")), ("abnormality", ("tumour", "no_tumour")), ("report", ("one", "two")),
     ("mask", ("m.nii.gz", "n.nii.gz")), ("split", ("train", "val")), ("site", ("north", "south"))],
)  # fmt: skip
def test_a_study_that_contradicts_itself_is_refused(tmp_path, column, values):
    def rows(*pair: str) -> list[str]:
        modalities = ("T1", "C+A" if column == "organ" and pair[0] != pair[1] else "T2")
        cells = [{"patient_id": "P1", "study_id": "A", "modality": m, "image": f"{m}.nii.gz"} for m in modalities]
        for cell, value in zip(cells, pair, strict=True):
            cell[column] = value
        return [",".join(cell.get(name, "") for name in HEADER.split(",")) for cell in cells]

    read_manifest(write(tmp_path, *rows(values[0], values[0])), MEDMOM)
    read_manifest(write(tmp_path, *rows(values[0], "")), MEDMOM) if column != "organ" else None
    found = problems_of(write(tmp_path, *rows(*values)))
    assert [(row, name) for row, name, _ in found] == [(3, column)]
    assert "row 2" in found[0][2]


def test_a_patient_in_two_splits_leaks_even_over_two_studies(tmp_path):
    found = problems_of(write(tmp_path, "P1,A,T1,a.nii.gz,,,,,,train", "P1,B,T1,b.nii.gz,,,,,,test"))
    assert [(row, column) for row, column, _ in found] == [(3, "split")]
    assert "leak" in found[0][2]


@pytest.mark.parametrize("text", ["0.8 0.7 5.5", "0.8x0.7x5.5", "0.8; 0.7; 5.5", '"0.8, 0.7, 5.5"'])
def test_true_voxel_edges_are_a_volumes_own(tmp_path, text):
    header = "patient_id,study_id,modality,image,spacing_mm"
    path = write(tmp_path, f"P1,A,T1,a.nii.gz,{text}", "P1,A,T2,b.nii.gz,", header=header)
    assert read_manifest(path, MEDMOM).studies[0].spacings == {"T1": (0.8, 0.7, 5.5)}


@pytest.mark.parametrize("text", ["0.8 0.7", "a b c", "0 1 1", "nan 1 1", "1 1 1e9", "1 1 1 1"])
def test_voxel_edges_that_are_none_are_refused(tmp_path, text):
    path = write(tmp_path, f"P1,A,T1,a.nii.gz,{text}", header="patient_id,study_id,modality,image,spacing_mm")
    assert [(row, column) for row, column, _ in problems_of(path)] == [(2, "spacing_mm")]


@pytest.mark.parametrize("source", ["measured", "caption", "generated", "radiologist", ""])
def test_a_report_that_no_radiologist_wrote_is_read_of_training_patients_alone(tmp_path, source):
    header = "patient_id,study_id,modality,image,report,report_source,split"
    splits = ("train", "val", "test", "common")
    path = write(tmp_path, *(f"P{s},A,T1,{s}.nii.gz,Mass.,{source},{s}" for s in splits), header=header)
    read = {study.split: study.report is not None for study in read_manifest(path, MEDMOM).studies}
    assert read == {split: split == "train" or source in ("", "radiologist") for split in splits}


def test_the_same_modality_or_file_twice_is_refused(tmp_path):
    found = problems_of(write(tmp_path, "P1,A,T1,a.nii.gz,,,,,,", "P1,A,T1,b.nii.gz,,,,,,", "P2,A,T1,a.nii.gz,,,,,,"))
    assert [(row, column) for row, column, _ in found] == [(3, "modality"), (4, "image")]
    assert "row 2" in found[0][2] and "row 2" in found[1][2]


def test_one_mistake_is_told_once(tmp_path):
    rows = (
        "P1,A,T1,a.nii.gz,,,,,,training",
        "P1,A,T2,b.nii.gz,,,,,,val",
        "P2,A,XX,c.nii.gz,,,,,,",
        "P3,A,T1,d.nii.gz,,,,,,val",
    )
    found = problems_of(write(tmp_path, *rows))
    assert [(row, column) for row, column, _ in found] == [(2, "split"), (4, "modality"), (4, "split")]


def test_only_the_first_four_columns_are_required_and_extra_ones_are_ignored(tmp_path):
    short = write(tmp_path, "P1,A,T1,a.nii.gz,70", header="patient_id,study_id,modality,image,age")
    manifest = read_manifest(short, MEDMOM)
    assert manifest.ignored == ("age",)
    assert manifest.studies[0].split == split_of("P1")
    lacking = write(tmp_path, "P1,A,T1", header="patient,study_id,modality")
    assert [(row, column) for row, column, _ in problems_of(lacking)] == [(1, "patient_id"), (1, "image")]
    assert "Rename patient to patient_id" in problems_of(lacking)[0][2]


def test_the_organ_is_inferred_only_where_the_modality_decides(tmp_path):
    shared = {
        "name": "x",
        "organs": {
            "brain": {"modalities": ["T1", "FLAIR"], "query": "q", "prompts": {"a": ["1"], "b": ["2"]}},
            "knee": {"modalities": ["T1", "PD"], "query": "q", "prompts": {"a": ["1"], "b": ["2"]}},
        },
    }
    words = Vocabulary.from_dict(shared)
    header = "patient_id,study_id,modality,image"
    sound = write(tmp_path, "P1,A,FLAIR,a.nii.gz", "P2,A,PD,b.nii.gz", header=header)
    assert [s.organ for s in read_manifest(sound, words).studies] == ["brain", "knee"]
    unclear = write(tmp_path, "P1,A,T1,a.nii.gz", header=header)
    assert [(row, column) for row, column, _ in problems_of(unclear, words)] == [(2, "organ")]
    assert "brain and knee" in problems_of(unclear, words)[0][2]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_what_spreadsheets_write_is_read(tmp_path, encoding, separator):
    rows = ("P1,A,T1,a.nii.gz,brain,tumour,Ödem links frontal,,,train",)
    path = write(
        tmp_path,
        *(row.replace(",", separator) for row in rows),
        header=HEADER.replace(",", separator),
        encoding=encoding,
    )
    assert read_manifest(path, MEDMOM).studies[0].report == "Ödem links frontal"


def test_another_encoding_is_named_and_does_not_hide_other_problems(tmp_path):
    path = write(tmp_path, "P1,A,T1,a.nii.gz,brain,tumour,Ödem,,,train", "P2,A,XX,b.nii.gz,,,,,,", encoding="cp1252")
    found = problems_of(path)
    assert [(row, column) for row, column, _ in found] == [(None, None), (3, "modality"), (3, "split")]
    assert "0xd6 on line 2" in found[0][2] and "UTF-8" in found[0][2]


def test_quoted_texts_may_hold_separators_and_line_breaks_but_must_end(tmp_path):
    (tmp_path / "a.nii.gz").touch()
    good = 'P1,A,T1,a.nii.gz,brain,tumour,"Mass, left.\nSays ""large"".",,,train'
    path = write(tmp_path, good)
    assert read_manifest(path, MEDMOM).studies[0].report == 'Mass, left.\nSays "large".'
    path = write(tmp_path, "P0,A,XX,z.nii.gz,,,,,,", good.replace('.",', ".,"))
    found = problems_of(path)
    assert [(row, column) for row, column, _ in found] == [(2, "modality"), (3, None)]
    assert "quotation mark" in found[1][2]


def test_without_a_split_column_patients_are_divided_70_10_20_and_stay(tmp_path):
    shares = Counter(split_of(f"patient-{i}") for i in range(10_000))
    assert shares["train"] == pytest.approx(7000, abs=150)
    assert shares["val"] == pytest.approx(1000, abs=100)
    assert shares["test"] == pytest.approx(2000, abs=130)
    # fixed for ever: another answer would move patients between splits of a running study
    assert "".join(split_of(f"P{i}")[1] for i in range(20)) == "rrrrarearerrrarrrere"
    path = write(tmp_path, "P1,A,T1,a.nii.gz,,,,,,train", "P2,A,T1,b.nii.gz,,,,,,")
    assert [(row, column) for row, column, _ in problems_of(path)] == [(3, "split")]


@pytest.mark.parametrize("content", [b"", b"\n\n", HEADER.encode()])
def test_an_empty_manifest_is_a_problem(tmp_path, content):
    path = tmp_path / "m.csv"
    path.write_bytes(content)
    assert len(problems_of(path)) == 1


def test_a_manifest_that_cannot_be_opened_is_a_manifest_error(tmp_path):
    for path in (tmp_path / "nowhere.csv", tmp_path):
        with pytest.raises(ManifestError, match="cannot be read"):
            read_manifest(path, MEDMOM)


def test_missing_files_can_be_left_to_the_volume_policy(tmp_path):
    path = write(tmp_path, "P1,A,T1,missing.nii.gz,,,,,,", "P1,A,T2,b.nii.gz,,,,,,")
    assert set(read_manifest(path, MEDMOM, check_files=False).studies[0].images) == {"T1", "T2"}
    sound, problems = scan_manifest(path, MEDMOM)
    assert set(sound.studies[0].images) == {"T2"}
    assert len(problems) == 1


def test_backslashes_are_recognised(tmp_path):
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "a.nii.gz").touch()
    path = tmp_path / "m.csv"
    path.write_text(f"{HEADER}\nP1,A,T1,img\\a.nii.gz,,,,,,\n")
    assert "Write img/a.nii.gz" in problems_of(path)[0][2]


def test_a_hundred_thousand_rows_are_read(tmp_path):
    """How long it takes: `python -m benchmarks.manifest`."""
    modalities = MEDMOM.organs["liver"].modalities
    rows = [
        f'P{i // 8},A,{modalities[i % 8]},{i}.nii.gz,liver,hcc,"Lesion {i // 8}, right lobe.",,north,train'
        for i in range(100_000)
    ]
    path = tmp_path / "m.csv"
    path.write_text("\n".join([HEADER, *rows]))
    assert len(read_manifest(path, MEDMOM, check_files=False).studies) == 12_500
