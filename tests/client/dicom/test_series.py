"""Which series is which modality: by name, by what was measured, by time after contrast; and how sure that is."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from client.dicom.index import index
from client.dicom.parts import Part, split
from client.dicom.rules import Choice, choose, facts_of, facts_of_series, ignored, read_rules
from configs import load_vocabulary
from configs.setting import ConfigError
from tests.client.dicom import scanner as s

BOOK = read_rules()


def parts_of(folder: Path) -> list[Part]:
    return [part for series in index(folder).series for part in split(series)[0]]


def chosen(folder: Path, organ: str | None = None) -> dict[str, Choice]:
    """Label of the volume (b, TE) -> choice."""
    return {part.label: choose(facts_of(part, BOOK), BOOK, organ) for part in parts_of(folder)}


@pytest.mark.parametrize(
    ("tags", "modality"),
    [
        (s.T1, "T1"), (s.T1CE, "T1ce"), (s.T2, "T2"), (s.FLAIR, "FLAIR"),
        ({**s.T1, "SeriesDescription": "MPRAGE sag", "RepetitionTime": 1900, "EchoTime": 2.5}, "T1"),
        ({**s.T1, "SeriesDescription": "AX T1 POST GAD"}, "T1ce"),
        ({**s.T1, "SeriesDescription": "t1_tse_tra_KM"}, "T1ce"),
        ({**s.T1, "SeriesDescription": "SAG 3D T1 BRAVO", "ContrastBolusAgent": "10 ml Dotarem"}, "T1ce"),
        ({**s.T1, "SeriesDescription": "AX T1 FLAIR", "InversionTime": 860, "RepetitionTime": 2500, "EchoTime": 9}, "T1"),
        ({**s.FLAIR, "SeriesDescription": "3D CUBE T2 FLAIR FS", "ContrastBolusAgent": "Gadovist"}, "FLAIR"),
        ({**s.T2, "SeriesDescription": "AX T2 PROPELLER"}, "T2"),
        ({**s.T1, "SeriesDescription": "AX T1 PRE CONTRAST"}, "T1"),
        ({**s.T1, "SeriesDescription": "T1 w/o contrast"}, "T1"),
        ({**s.T1, "SeriesDescription": "T1 posterior fossa"}, "T1"),
        ({**s.T1, "SeriesDescription": "T1 precontrast"}, "T1"),
        ({**s.T1, "SeriesDescription": "t1 se tra vor KM"}, "T1"),
        ({**s.T1, "SeriesDescription": "T1 sin contraste"}, "T1"),
        ({**s.T1, "SeriesDescription": "AX T1 postcontrast"}, "T1ce"),
        ({**s.T1, "SeriesDescription": "T1 INJ"}, "T1ce"),
        ({**s.FLAIR, "SeriesDescription": "t2_spc_da-fl_sag_p2_iso"}, "FLAIR"),
        ({**s.FLAIR, "SeriesDescription": "t2_space_sag_iso"}, "FLAIR"),
    ],
)  # fmt: skip
def test_a_brain_series_is_known_by_its_name(tmp_path, tags, modality):
    s.write_series(tmp_path, tags)
    (choice,) = chosen(tmp_path).values()
    assert (choice.modality, choice.organ) == (modality, "brain")
    assert choice.confidence >= BOOK.review_below


@pytest.mark.parametrize(("tags", "modality"), [(s.T1, "T1"), (s.T1CE, "T1ce"), (s.T2, "T2"), (s.FLAIR, "FLAIR")])
def test_without_a_telling_name_what_was_measured_decides_but_a_person_must_look(tmp_path, tags, modality):
    s.write_series(tmp_path, {**tags, "SeriesDescription": "axial 3"})
    (choice,) = chosen(tmp_path).values()
    assert choice.modality == modality
    assert choice.confidence < BOOK.review_below


def test_a_name_that_the_measurement_contradicts_is_not_trusted(tmp_path):
    s.write_series(tmp_path, {**s.T2, "SeriesDescription": "t1_se_tra"})
    (choice,) = chosen(tmp_path).values()
    assert choice.confidence < BOOK.review_below and "TR 4500 ms, not as expected" in choice.reason


def test_what_the_header_does_not_say_makes_less_sure(tmp_path):
    tags = {k: v for k, v in s.T1.items() if k not in ("RepetitionTime", "EchoTime")}
    s.write_series(tmp_path, tags)
    (choice,) = chosen(tmp_path).values()
    assert choice.modality == "T1" and choice.confidence == pytest.approx(0.95 * 0.9 * 0.9, abs=0.01)


def test_the_organ_is_read_where_it_is_named_and_otherwise_the_volume_waits_for_a_person(tmp_path):
    s.write_series(tmp_path / "a", s.T2, BodyPartExamined="", StudyDescription="MRT Leber")
    s.write_series(tmp_path / "b", s.T2, BodyPartExamined="")
    assert chosen(tmp_path / "a")[""].modality == "T2WI"
    assert chosen(tmp_path / "b")[""].confidence < BOOK.review_below
    assert chosen(tmp_path / "b", "liver")[""].modality == "T2WI"


@pytest.mark.parametrize(
    ("tags", "why"),
    [
        ({"SeriesDescription": "AAHead_Scout"}, "a localizer"),
        ({"SeriesDescription": "3-plane loc"}, "a localizer"),
        ({"SeriesDescription": "ep2d_diff_ADC"}, "a map"),
        ({"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]}, "a map or a screenshot"),
        ({"ImageType": ["DERIVED", "SECONDARY", "PROJECTION IMAGE"]}, "a projection"),
        ({"SeriesDescription": "vibe SUB"}, "a subtraction"),
        ({"ImageType": ["DERIVED", "PRIMARY", "DIXON", "FAT"]}, "a fat image"),
        ({"SeriesDescription": "TOF MRA"}, "susceptibility or angiography"),
        ({"SeriesDescription": "t2_star"}, "susceptibility or angiography"),
        ({"SeriesDescription": "t1_local_staging"}, None),  # a word that only begins like a localizer's
        ({"SeriesDescription": "t2 fat sat"}, None),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "NORM"]}, None),
    ],
)  # fmt: skip
def test_what_is_no_volume_to_train_on_is_told_why(tmp_path, tags, why):
    s.write_series(tmp_path, {**s.T1, **tags})
    (series,) = index(tmp_path).series
    assert ignored(facts_of_series(series, BOOK), BOOK) == why


def test_a_spine_in_an_exam_of_head_and_spine_is_no_brain(tmp_path):
    exam = {"StudyDescription": "MRT Kopf und HWS"}
    s.write_series(tmp_path / "a", s.T2, **exam, BodyPartExamined="CSPINE")
    s.write_series(tmp_path / "b", s.T2, **exam, BodyPartExamined="", number=2)
    facts = [facts_of(p, BOOK) for p in parts_of(tmp_path)]
    spine, brain = (choose(f, BOOK) for f in facts)
    assert spine.confidence < BOOK.review_below < brain.confidence and brain.modality == "T2"
    assert "but of 'cspine' by its body part" in spine.reason
    s.write_series(tmp_path / "c", {**s.T2, "SeriesDescription": "t2_tse_sag_HWS"}, **exam, number=3)
    (third,) = (x for x in index(tmp_path).series if x.header.SeriesNumber == 3)
    assert ignored(facts_of_series(third, BOOK), BOOK) == "another part of the body"


def test_b_values_of_one_series_are_volumes_of_their_own_and_the_one_near_800_is_best(tmp_path):
    uid = s.generate_uid()
    for k, b in enumerate((0, 50, 400, 800, 1500)):
        s.write_series(tmp_path, s.DWI, uid=uid, first=6 * k, DiffusionBValue=b, pixels=s.voxels(seed=k))
    choices = chosen(tmp_path)
    assert {label: c.modality for label, c in choices.items()} == {
        "b 0": None, "b 50": None, "b 400": "DWI", "b 800": "DWI", "b 1500": None,
    }  # fmt: skip
    assert choices["b 800"].distance < choices["b 400"].distance


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=["explicit", "implicit"])
@pytest.mark.parametrize("how", ["siemens", "ge", "philips", "name"])
def test_b_values_are_read_where_makers_put_them(tmp_path, how, syntax):
    def give(ds):
        ds.Manufacturer = {"ge": "GE MEDICAL SYSTEMS", "philips": "Philips Medical Systems"}.get(how, "SIEMENS")
        if how == "siemens":
            ds.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0C, "IS", 800)
        elif how == "philips":
            ds.private_block(0x2001, "Philips Imaging DD 001", create=True).add_new(0x03, "FL", 800.0)
        elif how == "ge":
            ds.private_block(0x0043, "GEMS_PARM_01", create=True).add_new(0x39, "IS", [1000000800, 8, 0, 0])
        else:
            ds.SequenceName = "*ep_b800t"

        ds.file_meta.TransferSyntaxUID = syntax

    for path in s.write_series(tmp_path, s.DWI):
        s.edit(path, give)
    assert parts_of(tmp_path)[0].images[0].b_value == 800
    assert chosen(tmp_path)[""].modality == "DWI"


def test_another_makers_private_attribute_is_no_b_value(tmp_path):
    (path,) = s.write_series(tmp_path, s.DWI, pixels=s.voxels(1), Manufacturer="GE MEDICAL SYSTEMS")
    s.edit(path, lambda ds: ds.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0C, "IS", 800))
    assert index(tmp_path).series[0].images[0].b_value is None


@pytest.mark.parametrize(
    ("field_t", "echoes_ms"), [(1.5, (2.3, 4.6)), (3.0, (1.15, 2.3)), (3.0, (3.45, 4.6))]
)  # fmt: skip
def test_in_and_opposed_phase_are_told_by_echo_time_and_field(tmp_path, field_t, echoes_ms):
    uid = s.generate_uid()
    for k, te in enumerate(echoes_ms):
        s.write_series(tmp_path, s.DIXON, uid=uid, first=6 * k, EchoTime=te, MagneticFieldStrength=field_t)
    modalities = [
        choose(facts_of(p, BOOK), BOOK).modality for p in sorted(parts_of(tmp_path), key=lambda p: p.te_ms or 0)
    ]
    assert modalities == ["OutPhase", "InPhase"]


def test_water_fat_in_and_opposed_phase_of_one_series_are_told_by_their_image_type(tmp_path):
    uid = s.generate_uid()
    for k, kind in enumerate(("F", "W", "IP", "OP")):  # a fat image first: it must not decide for the others
        tags = {
            **s.DIXON,
            "SeriesDescription": "mDIXON",
            "EchoTime": 1.8,
            "ImageType": ["ORIGINAL", "PRIMARY", kind, kind],
        }
        s.write_series(tmp_path, tags, uid=uid, first=6 * k)
    (series,) = index(tmp_path).series
    assert ignored(facts_of_series(series, BOOK), BOOK) is None
    told = {}
    for part in split(series)[0]:
        facts = facts_of(part, BOOK)
        told[facts.image_type.split()[-1]] = ignored(facts, BOOK) or choose(facts, BOOK).modality
    assert told == {"f": "a fat image", "w": None, "ip": "InPhase", "op": "OutPhase"}


def test_in_and_opposed_phase_after_contrast_are_neither_those_nor_a_phase(tmp_path):
    """A Dixon VIBE makes four images of each phase; of those after contrast the water image alone is one to use."""
    for number, (name, agent) in enumerate(
        [("pre_in", ""), ("pre_opp", ""), ("pre_W", ""), ("art_in", "Gd"), ("art_opp", "Gd"), ("art_W", "Gd")], 1
    ):
        tags = {**s.VIBE, "SeriesDescription": f"t1_vibe_dixon_tra_{name}", "ContrastBolusAgent": agent}
        s.write_series(tmp_path / name, tags, number=number)
    found = {p.series.folder.name: choose(facts_of(p, BOOK), BOOK).modality for p in parts_of(tmp_path)}
    assert found == {
        "pre_in": "InPhase",
        "pre_opp": "OutPhase",
        "pre_W": "dynamic",
        "art_in": None,
        "art_opp": None,
        "art_W": "dynamic",
    }


def test_without_the_field_strength_echo_time_tells_no_phase(tmp_path):
    s.write_series(tmp_path, {**s.DIXON, "MagneticFieldStrength": None}, EchoTime=4.6)
    assert chosen(tmp_path)[""].modality not in ("InPhase", "OutPhase")


def test_rules_name_modalities_of_the_vocabulary(tmp_path):
    medmom = load_vocabulary("medmom")
    known = {(o.name, m) for o in medmom.organs.values() for m in o.modalities} | {("liver", "dynamic")}
    assert {(rule.organ, rule.modality) for rule in BOOK.rules} <= known
    told = {rule.modality for rule in BOOK.rules} | {phase.modality for phase in BOOK.phases}
    assert set(medmom.modalities) <= told


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("review_below: 0.5\ncontrast: {words: a, not_words: b}\norgans: []\nrules:\n  - {modality: dynamic, organ: liver, when: {words: x}, confidence: 1}\nphases: []\n", "`phases` has no two"),
        ("review_below: 2\ncontrast: {words: a, not_words: b}\norgans: []\nrules: []\nphases: []\n", "out of range"),
        ("review_below: 0.5\ncontrast: {words: a, not_words: b}\norgans: []\nrules:\n  - {modality: T1, organ: brain, when: {word: x}, confidence: 1}\nphases: []\n", "did you mean `words`"),
        ("review_below: 0.5\ncontrast: {words: a, not_words: b}\norgans: []\nrules:\n  - {modality: T1, organ: brain, when: {words: '('}, confidence: 1}\nphases: []\n", "is not a regular expression"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_rules_is_one_sentence(tmp_path, text, said):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as error:
        read_rules(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
