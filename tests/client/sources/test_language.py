"""A language model's text is used only where it says nothing but the facts; it is marked, counted, and kept from tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from client.manifest import read_manifest, split_of
from client.sources.found import Found, Row, SourceError
from client.sources.language import EXAMPLES, INSTRUCTION, Facts, fault, generate, trimmed
from client.sources.reports import Kind, add_reports, kind_of
from client.sources.write import write_manifest
from configs import load_vocabulary
from tests.client.sources.trees import lesion_study

MEDMOM = load_vocabulary("medmom")
BRAIN = Facts(
    "brain",
    ("T1", "T1ce", "T2", "FLAIR"),
    (
        "Focal lesion in the right posterior superior part of the brain",
        "18 x 20 x 16 mm, 2.1 mL in all",
        "hypointense on T1",
        "markedly hyperintense on T2",
        "isointense on FLAIR and T1ce",
    ),
)
TWO = replace(BRAIN, findings=("2 focal lesions, the largest in the left part of the brain", *BRAIN.findings[1:]))
NONE = replace(BRAIN, findings=("No focal lesion of the brain is marked",))
TOLD = replace(BRAIN, label="brain tumour")
GOOD = (
    "There is a focal lesion in the right posterior superior part of the brain. It measures 18 x 20 x 16 mm, with a "
    "volume of 2.1 mL. It is hypointense on T1, markedly hyperintense on T2 and isointense on FLAIR and T1ce."
)


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        (BRAIN, GOOD),
        (BRAIN, "The posterior superior brain on the right has a focal lesion of 18 by 20 by 16 mm (2.1 mL)."),
        (BRAIN, "On T1 the lesion is hypointense, on T2 it is hyperintense; T1ce and FLAIR are isointense."),
        (BRAIN, "The lesion on the right is markedly hyper-intense in T2, hypo-intense in T1, iso-intense in flair."),
        (BRAIN, "A lesion in the right brain, 20 mm long, was measured."),
        (TWO, "There are two focal lesions, the largest (18 x 20 x 16 mm) in the left part of the brain."),
        (NONE, "There is no focal lesion in the brain."),
        (TOLD, "Focal lesion in the right part of the brain, in keeping with a brain tumour."),
    ],
)
def test_a_text_that_says_the_facts_in_other_words_is_used(facts, text):
    assert fault(text, facts, MEDMOM) == ""


@pytest.mark.parametrize(
    ("why", "facts", "text"),
    [
        ("empty", BRAIN, ""),
        ("empty", BRAIN, "Focal lesion."),
        ("empty", BRAIN, "18 x 20 x 16 mm, 2.1 mL."),
        ("echo", BRAIN, f"{INSTRUCTION} {GOOD}"),
        ("echo", NONE, "No focal lesion of the brain is marked."),
        ("number", BRAIN, GOOD.replace("18 x", "19 x")),
        ("number", BRAIN, GOOD.replace("2.1 mL", "2.1 mm")),
        ("number", BRAIN, "The focal lesion of the brain has a size of 18 cm."),
        ("number", BRAIN, "There are three focal parts of the lesion in the brain."),
        ("number", BRAIN, "A 54-year-old with a focal lesion in the right part of the brain."),
        ("claim", BRAIN, GOOD.replace("right", "left")),
        ("claim", BRAIN, GOOD.replace("posterior", "anterior")),
        ("claim", BRAIN, f"{GOOD} There is oedema around it."),
        ("claim", BRAIN, f"{GOOD} It enhances in a ring."),
        ("claim", BRAIN, f"{GOOD} This suggests a glioblastoma."),
        ("claim", BRAIN, f"{GOOD} The findings fit FNH."),
        ("claim", BRAIN, f"{GOOD} No other lesion is seen."),
        ("claim", BRAIN, f"{GOOD} It is bright on diffusion."),
        ("claim", BRAIN, f"{GOOD} On DWI nothing was measured."),
        ("claim", BRAIN, f"{GOOD} It is isointense on T2ce as well."),
        ("claim", TWO, "There is a focal lesion in the left part of the brain."),
        ("claim", NONE, "There is a focal lesion of the brain."),
        ("claim", BRAIN, "There is no focal lesion in the brain."),
        ("claim", replace(TOLD, label="no brain tumour"), "Focal lesion of the brain, diagnosis: a brain tumour."),
        ("signal", BRAIN, GOOD.replace("hypointense on T1,", "isointense on T1,")),
        ("signal", BRAIN, "On T1 the lesion is hyperintense and on T2 it is hypointense."),
        ("signal", BRAIN, "The lesion is hypointense on T1 and FLAIR."),
        ("signal", BRAIN, "The lesion is markedly hypointense on T1."),
    ],
)
def test_a_text_that_says_anything_else_is_not(why, facts, text):
    assert fault(text, facts, MEDMOM) == why


@pytest.mark.parametrize("answer", [text for _, text in EXAMPLES])
def test_a_copy_of_an_example_is_found_out(answer):
    assert fault(answer, BRAIN, MEDMOM) and fault(answer, NONE, MEDMOM)


def test_a_text_ends_where_it_begins_to_repeat_and_has_no_half_sentences():
    assert trimmed("One is 2.5 mm.  Two\nis so. One is 2.5 mm. Three.", most=9) == "One is 2.5 mm. Two is so."
    assert trimmed("One is so. Two is so. Three is so.", most=2) == "One is so. Two is so."
    assert trimmed("One is so. Two is cut off in the mid", most=9) == "One is so."
    assert trimmed("no end " * 10_000, most=9) == ""


def test_texts_and_facts_are_never_mixed_up_when_some_are_void():
    raw = [GOOD, "", GOOD, f"{GOOD} So it is. So it was. It has 7 mm."]
    texts, faults = generate(lambda facts: raw, [BRAIN, BRAIN, NONE, BRAIN], MEDMOM)
    assert texts == [GOOD, "", "", f"{GOOD} So it is. So it was."]  # five findings: a sixth sentence is an invention
    assert faults == {"empty": 1, "claim": 1}
    with pytest.raises(ValueError, match="shorter"):
        generate(lambda facts: [GOOD], [BRAIN, BRAIN], MEDMOM)


def rows_of(folder: Path, patient: str, *, mask: bool = True, label: str = "tumour") -> list[Row]:
    paths = lesion_study(folder, bright={"T1": 0.7, "T2": 2.2})
    lesion = paths.pop("mask") if mask else None
    paths.pop("mask", None)
    return [Row(patient, "A", m, path, "brain", label, mask=lesion) for m, path in paths.items()]


def spoken(facts: Facts) -> str:
    return "There is a focal lesion in the right part of the brain." + (
        f" Diagnosis: {facts.label}." if facts.label else ""
    )


def test_what_is_void_falls_to_the_next_kind_and_is_counted(tmp_path):
    rows = [row for n in range(3) for row in rows_of(tmp_path / str(n), f"P{n}")]
    rows += rows_of(tmp_path / "bare", "P3", mask=False)
    given: list[Facts] = []

    def writer(facts):
        given.extend(facts)
        return [spoken(facts[0]), "The lesion measures 99 mm and is on the right.", ""]

    found = Found(rows)
    add_reports(found, MEDMOM, [Kind("generated", writer), Kind("measured"), Kind("caption")])
    by = {row.patient_id: row for row in found.rows}
    assert [by[f"P{n}"].report_source for n in range(4)] == ["generated", "measured", "measured", "caption"]
    assert by["P0"].report == spoken(given[0]) and by["P1"].report.startswith("Focal lesion in the right posterior")
    note = "Texts of the language model: 3, not used: 2 (has a number that was not measured: 1; says nothing: 1)."
    assert note in found.notes
    assert not found.problems


def test_a_study_that_cannot_be_measured_is_said_once_whatever_is_asked(tmp_path):
    rows = rows_of(tmp_path, "P1")
    rows[0].image.write_bytes(b"junk")
    found = Found(rows)
    add_reports(found, MEDMOM, [Kind("generated", lambda facts: [""] * len(facts)), Kind("measured")])
    assert len(found.problems) == 1 and not any(row.report for row in found.rows)


def test_a_writer_is_told_the_facts_alone_and_the_label_only_where_it_is_asked_for(tmp_path):
    given: list[Facts] = []

    def writer(facts):
        given.extend(facts)
        return [spoken(one) for one in facts]

    for informed in (False, True):
        found = Found(rows_of(tmp_path, "SECRET-7") + rows_of(tmp_path / "x", "SECRET-8", mask=False))
        add_reports(found, MEDMOM, [Kind("generated", writer, informed=informed)])
    assert [one.label for one in given] == ["", "brain tumour", "brain tumour"]  # without mask and label: not asked
    assert given[0].findings[0] == "Focal lesion in the right posterior superior part of the brain"
    assert given[0].modalities == ("T1", "T2") and given[2].findings == ()
    assert "SECRET" not in str(given) and str(tmp_path) not in str(given)
    assert "tumour" not in str(given[0])


def made(tmp_path: Path, *, informed: bool) -> Found:
    """30 patients of each of two classes with the same lesion, and texts of a model that says all that it knows."""
    found, first = Found(), rows_of(tmp_path / "x", "P")
    for n in range(60):
        for row in first:
            (image := row.image.with_name(f"{n}-{row.image.name}")).hardlink_to(row.image)
            label = ("tumour", "no_tumour")[n % 2]
            found.rows.append(replace(row, patient_id=f"P{n}", image=image, abnormality=label))
    add_reports(found, MEDMOM, [Kind("generated", lambda facts: [spoken(one) for one in facts], informed=informed)])
    return found


def test_the_leak_of_the_label_is_measured_and_that_the_label_was_told_is_said(tmp_path):
    blind, knowing = (made(tmp_path / str(informed), informed=informed).notes[-1] for informed in (False, True))
    assert "they tell little of the label" in blind and "was told" not in blind
    assert "they TELL the label" in knowing and "was told the label of 60 of them" in knowing


def test_generated_reports_reach_training_patients_alone(tmp_path):
    found, path = made(tmp_path, informed=False), tmp_path / "m.csv"
    write_manifest(found.rows, path)
    assert {row.report_source for row in found.rows} == {"generated"}
    read = {study.patient_id: study.report for study in read_manifest(path, MEDMOM).studies}
    splits = {name: split_of(name) for name in read}
    assert set(splits.values()) == {"train", "val", "test"}
    assert {name: report is not None for name, report in read.items()} == {n: s == "train" for n, s in splits.items()}
    # negative control: a radiologist's are read in validation as well
    path.write_text(path.read_text().replace(",generated,", ",radiologist,"))
    assert all(study.report for study in read_manifest(path, MEDMOM).studies)


@pytest.mark.parametrize(
    "asked", ["", "other", "generated", "generated:", "measured:x", "told:smollm2", "generated:no/such"]
)
def test_a_kind_that_is_none_is_one_sentence(asked):
    with pytest.raises(SourceError, match=r"is no kind of reports|is no folder"):
        kind_of(asked)


def test_kinds_as_they_are_typed():
    assert kind_of("measured") == Kind("measured")
    blind, knowing = kind_of("generated:command:cat"), kind_of("generated-with-label:command:cat -u")
    assert (blind.name, blind.informed, knowing.name, knowing.informed) == ("generated", False, "generated", True)
