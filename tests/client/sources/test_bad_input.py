"""The table of bad input in docs/data.md, a test for each of its rows: one clear row of `check` or `ingest`, nothing else lost."""

from __future__ import annotations

import gzip
import os
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console

from client.check import check_site
from client.sources import brats
from client.sources.found import settle
from configs import load_vocabulary
from configs.schema import VolumesConfig
from tests.client.sources.trees import brats_case

MEDMOM = load_vocabulary("medmom")
DOCS = Path(__file__).resolve().parents[3] / "docs" / "data.md"
AFFINE = np.diag([4.0, 4, 4, 1])
HEADER = "patient_id,study_id,modality,image,organ,abnormality,report,report_source,spacing_mm"


class Site:
    """Three patients with T1 and FLAIR: a manifest's lines, and its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.header = folder, HEADER
        self.lines = []
        for patient in ("P1", "P2", "P3"):
            for modality in ("T1", "FLAIR"):
                self.image(f"{patient}-{modality}.nii.gz")
                self.lines.append(f"{patient},A,{modality},{patient}-{modality}.nii.gz,brain,tumour,Mass.,,")

    def image(
        self, name: str, values: np.ndarray | None = None, affine: np.ndarray = AFFINE, units: str = "mm"
    ) -> None:
        drawn = np.random.default_rng(0).random((12, 12, 12)).astype(np.float32) if values is None else values
        image = nib.Nifti1Image(drawn, affine)
        image.header.set_xyzt_units(units)
        (self.folder / name).write_bytes(gzip.compress(image.to_bytes(), 1))

    def set(self, line: int, column: str, value: str) -> None:
        cells = self.lines[line].split(",")
        cells[self.header.split(",").index(column)] = value
        self.lines[line] = ",".join(cells)

    def write(self, ends: str = "\n", encoding: str = "utf-8") -> Path:
        path = self.folder / "m.csv"
        path.write_bytes(ends.join([self.header, *self.lines, ""]).encode(encoding))
        return path


def volume(**changes: object) -> Callable[[Site], None]:
    return lambda site: site.image("P1-T1.nii.gz", **changes)


def raw(change: Callable[[bytes], bytes]) -> Callable[[Site], None]:
    def apply(site: Site) -> None:
        path = site.folder / "P1-T1.nii.gz"
        path.write_bytes(change(path.read_bytes()))

    return apply


def cells(line: int, **values: str) -> Callable[[Site], None]:
    def apply(site: Site) -> None:
        for column, value in values.items():
            site.set(line, column, value)

    return apply


def unicode_form(site: Site) -> None:
    site.image(unicodedata.normalize("NFD", "Müller.nii.gz"))
    site.set(0, "image", unicodedata.normalize("NFC", "Müller.nii.gz"))


def non_ascii(site: Site) -> None:
    (site.folder / "Ärzte 患者").mkdir()
    site.image("Ärzte 患者/größe+1.nii.gz")
    site.set(0, "image", "Ärzte 患者/größe+1.nii.gz")
    site.set(0, "report", "Ödem links.")
    site.set(1, "report", "Ödem links.")


def backslash(site: Site) -> None:
    (site.folder / "img").mkdir()
    site.image("img/a.nii.gz")
    site.set(0, "image", "img\\a.nii.gz")


def split(first: str, second: str) -> Callable[[Site], None]:
    """Of P1's two rows where they differ, of P1 where it has none; the others are in train."""

    def apply(site: Site) -> None:
        site.header += ",split"
        site.lines = [f"{line},{first if n == 0 else second}" for n, line in enumerate(site.lines)]
        if not first:
            site.lines[1] = site.lines[1].removesuffix(second)
        else:
            site.lines[2:] = [f"{line.rpartition(',')[0]},train" for line in site.lines[2:]]

    return apply


SHEARED = AFFINE.copy()
SHEARED[0, 1] = 1.5
TWICE = "P1,A,T1,P9.nii.gz,brain,tumour,Mass.,,"
rng = np.random.default_rng(1)

# name in the docs -> (what happens to the site, what the row says (None: no row), volumes that stay usable)
CASES: dict[str, tuple[Callable[[Site], None], str | None, int]] = {
    "a file is missing": (lambda site: (site.folder / "P1-T1.nii.gz").unlink(), "The file is missing", 5),
    "backslashes in a path": (backslash, "The file is missing", 5),
    "non-ASCII paths and texts": (non_ascii, None, 6),
    "the same name in another Unicode form": (unicode_form, "The file is missing", 5),
    "a modality twice in a study": (
        lambda site: (site.image("P9.nii.gz"), site.lines.append(TWICE)),
        "has T1 in row 2 already",
        6,
    ),
    "one file named twice": (cells(2, image="P1-T1.nii.gz"), "is the image of row 2 already", 6),
    "labels that contradict one another": (cells(1, abnormality="no_tumour"), "has another abnormality in row 2", 6),
    "an unknown label": (cells(0, abnormality="tumor"), "'tumor' is not an abnormality of the brain", 6),
    "a patient in two splits or two sites": (
        split("train", "test"),
        "in split test, but in train in row 2 (leakage)",
        6,
    ),
    "a patient without a split, where others have one": (split("", "train"), "Patient P1 has no split, but others", 6),
    "a row of more or fewer cells than the header": (
        lambda site: site.lines.__setitem__(0, site.lines[0].replace("Mass.,,", "Mass, left.,,4 4 4")),
        "The row has 10 cells, the header 9",
        5,
    ),
    "a report that says nothing": (
        lambda site: (site.set(0, "report", "N/A"), site.set(1, "report", "")),
        "The report says nothing: 'N/A'",
        6,
    ),
    "an unknown report_source": (cells(0, report_source="chatgpt"), "is not a source of reports", 6),
    "a spacing_mm that is none": (cells(0, spacing_mm="0.8 0.8"), "'0.8 0.8' is no voxel size", 6),
    "an unreadable NIfTI": (raw(lambda data: b"junk" + data[4:]), "It is not a NIfTI image", 5),
    "a truncated NIfTI": (raw(lambda data: data[: len(data) // 2]), "truncated", 5),
    "an empty file": (raw(lambda data: b""), "The file is empty", 5),
    "4D": (volume(values=rng.random((12, 12, 12, 3))), "It has 4 dimensions (12 x 12 x 12 x 3)", 5),
    "complex voxels": (volume(values=rng.random((12, 12, 12)).astype(np.complex64)), "no numbers", 5),
    "a sheared affine": (volume(affine=SHEARED), "Its affine is sheared: two axes meet at 69 degrees", 5),
    "lengths in metres": (
        volume(affine=np.diag([0.004, 0.004, 0.004, 1]), units="meter"),
        "Its header gives lengths in metres, voxels of 0.004",
        5,
    ),
    "lengths in microns": (
        volume(affine=np.diag([4000.0, 4000, 4000, 1]), units="micron"),
        "Its header gives lengths in microns, voxels of 4e+03",
        5,
    ),
    "a place a thousand kilometres away": (
        volume(affine=AFFINE + np.eye(4, k=3) * 1e9),
        "places it at 1e+09, 0, 0 mm",
        5,
    ),
    "NaN or infinite voxels": (volume(values=np.full((12, 12, 12), np.nan)), "are NaN or infinite", 5),
    "a volume of one value": (volume(values=np.ones((12, 12, 12))), "one value", 5),
}


def check(path: Path):
    return check_site(path, MEDMOM, VolumesConfig(size=8), headers_only=False, progress=Console(quiet=True))


def table() -> dict[str, str]:
    part = DOCS.read_text(encoding="utf-8").partition("## Bad input")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| ([^|]+?) \| ([^|]*?) \|", part, re.MULTILINE)[1:])


@pytest.mark.parametrize("name", CASES)
def test_one_row_and_nothing_else_is_lost(tmp_path, name):
    change, text, usable = CASES[name]
    site = Site(tmp_path)
    change(site)
    found = check(site.write())
    problems = found.rows + found.files
    assert [text in p.problem for p in problems] == ([True] if text else [])
    assert all(p.remedy and p.row for p in problems)
    assert sum(map(len, found.grids.values())) == usable
    assert {s.patient_id for s in found.manifest.studies} == {"P1", "P2", "P3"}


@pytest.mark.parametrize(
    ("name", "ends", "encoding"),
    [("Windows line ends", "\r\n", "utf-8"), ("a byte order mark", "\n", "utf-8-sig"), ("UTF-16", "\r\n", "utf-16"),
     ("old Macintosh line ends", "\r", "utf-8")],
)  # fmt: skip
def test_line_ends_and_marks_of_any_program_change_nothing(tmp_path, name, ends, encoding):
    site = Site(tmp_path)
    plain = check(site.write()).manifest.studies
    found = check(site.write(ends, encoding))
    assert not found.rows + found.files and found.manifest.studies == plain


def test_another_encoding_is_one_row(tmp_path):
    site = Site(tmp_path)
    for line in (0, 1):
        site.set(line, "report", "Ödem.")
    found = check(site.write(encoding="cp1252"))
    assert ["not UTF-8: byte 0xd6" in p.problem for p in found.rows] == [True] and len(found.manifest.studies) == 3


def test_a_quotation_mark_that_never_closes_is_one_row_and_earlier_rows_hold(tmp_path):
    site = Site(tmp_path)
    site.set(5, "report", '"Mass.')
    found = check(site.write())
    assert ["quotation mark" in p.problem and p.row == 7 for p in found.rows] == [True]
    assert len(found.manifest.studies) == 3 and not found.files


def test_missing_sequences_are_a_row_of_ingest_and_none_of_check(tmp_path):
    brats_case(tmp_path, "BraTS2021_00000", ("flair", "t1", "seg"))
    brats_case(tmp_path, "BraTS2021_00001", ("flair", "t1", "t1ce", "t2"))
    found = settle(brats.scan(tmp_path), MEDMOM)
    assert ["BraTS2021_00000 has no T1ce, T2" in p.problem for p in found.problems] == [True]
    assert len(found.rows) == 6
    site = Site(tmp_path)
    del site.lines[0]
    assert not check(site.write()).rows


@pytest.mark.skipif(os.name == "nt", reason="names of files are texts there")
def test_a_file_name_that_is_not_utf8_is_a_row_of_ingest(tmp_path):
    brats_case(tmp_path, "BraTS2021_00001", ("flair", "t1", "t1ce", "t2"))
    bad = os.fsencode(tmp_path) + b"/M\xfcller_t1.nii.gz"
    try:
        with open(bad, "wb") as file:
            file.write(b"")
    except OSError:
        pytest.skip("this disk takes no such name")
    found = brats.scan(tmp_path)
    assert ["Müller_t1.nii.gz: the name is not UTF-8" in p.problem for p in found.problems] == [True]
    assert len(found.rows) == 4


def test_links_that_lead_nowhere_are_a_row_of_ingest(tmp_path):
    brats_case(tmp_path, "BraTS2021_00001", ("flair", "t1", "t1ce", "t2"))
    path = tmp_path / "BraTS2021_00001" / "BraTS2021_00001_seg.nii.gz"
    path.symlink_to(tmp_path / "nowhere")
    found = brats.scan(tmp_path)
    assert ["1 files are links that lead nowhere" in p.problem for p in found.problems] == [True]
    assert len(found.rows) == 4 and not any(row.mask for row in found.rows)


def test_a_patient_in_two_sites_is_one_row(tmp_path):
    site = Site(tmp_path)
    site.header += ",site"
    site.lines = [f"{line},{'north' if n else 'south'}" for n, line in enumerate(site.lines)]
    found = check(site.write())
    assert ["in site north, but in south in row 2 (leakage)" in p.problem for p in found.rows] == [True]
    assert not found.files and len(found.manifest.studies) == 3


def test_every_row_of_the_docs_is_tested_here_and_says_what_is_shown():
    rows = table()
    others = {
        "Windows line ends", "a byte order mark", "UTF-16", "old Macintosh line ends", "another encoding", "an open quotation mark",
        "missing phases or sequences", "a file name that is not UTF-8", "links that lead nowhere",
    }  # fmt: skip
    assert set(rows) == set(CASES) | others
    for name, (_, text, _) in CASES.items():
        assert (rows[name] == "no row") == (text is None)
