"""The vocabulary that comes with MedMAP-FL: complete, free of leaks, true of the phantom; and faulty ones are refused."""

from __future__ import annotations

import copy
import re

import pytest
import torch

from configs import load_vocabulary
from configs.schema import PhantomConfig, TextConfig
from medmap_model.text import build_text_encoder
from medmap_model.text.bank import OTHER_ORGAN, PublicTexts
from medmap_model.vocabulary import Vocabulary, VocabularyError
from simulation.phantom.kinds import KINDS
from simulation.phantom.plan import single_case
from simulation.phantom.study import make_study
from simulation.phantom.wording import DIAGNOSIS_ROOTS

MEDMOM = load_vocabulary("medmom")
ORGANS = MEDMOM.organs.values()
ATTRIBUTES = [
    (o.name, c, m, t) for o in ORGANS for c, by in o.attributes.items() for m, texts in by.items() for t in texts
]


def roots_in(text: str) -> list[str]:
    return [root for root in DIAGNOSIS_ROOTS if root in text.lower()]


def test_every_modality_has_a_text_and_every_class_attributes_in_most_modalities():
    assert len(MEDMOM.modalities) == 12
    for organ in ORGANS:
        assert tuple(organ.modality_texts) == organ.modalities
        assert tuple(organ.attributes) == organ.abnormalities
        assert all(len(by) >= 7 for c, by in organ.attributes.items() if organ.name == "liver")
        assert all(len(by) == 4 for c, by in organ.attributes.items() if organ.name == "brain")


def test_what_enters_at_test_time_names_no_class():
    texts = [o.query for o in ORGANS] + [t for o in ORGANS for t in o.modality_texts.values()]
    assert not [t for t in texts if roots_in(t)]
    names = [n for o in ORGANS for n in o.abnormalities if n != "icc"]  # "icc" in a longer word would be chance
    assert not [t for t in texts for n in names if n in t.lower()]
    assert roots_in(MEDMOM.organs["liver"].prompts["cyst"][0]) == ["cyst"]  # the check can fail


def test_attributes_describe_and_name_no_class_at_all():
    assert not [t for *_, t in ATTRIBUTES if roots_in(t)]
    assert not [t for *_, t in ATTRIBUTES if re.search(r"\b(hcc|icc|fnh)\b", t, re.IGNORECASE)]


def test_no_text_is_said_of_two_classes_or_is_there_twice():
    for organ in ORGANS:
        texts = [t for name, _, _, t in ATTRIBUTES if name == organ.name]
        texts += [t for ts in organ.prompts.values() for t in ts]
        assert len(set(texts)) == len(texts)


# What a word of an attribute claims about a mass in the phantom: (whole, core, rim) over healthy tissue around it.
CLAIMS = {
    r"^(?!.*(isointense|slightly|mildly|markedly)).*hyperintense": lambda whole, core, rim: whole > 1.15,
    r"slightly hyperintense": lambda whole, core, rim: 1.1 < whole < 1.6,
    r"markedly hyperintense": lambda whole, core, rim: whole > 1.8,
    r"^(?!.*(slightly|mildly|markedly|centre)).*hypointense": lambda whole, core, rim: whole < 0.87,
    r"(slightly|mildly) hypointense": lambda whole, core, rim: 0.75 < whole < 0.97,
    r"markedly hypointense": lambda whole, core, rim: whole < 0.7,
    r"hypointense centre|hypoenhancing": lambda whole, core, rim: core < 0.87,
    r"isointense": lambda whole, core, rim: 0.87 < whole < 1.15,
    r"^(still )?no enhancement": lambda whole, core, rim: core < 0.6 and rim < 0.7,
    r"(homogeneous|nonrim) hyperenhancement": lambda whole, core, rim: whole > 1.3 and core > 1.3,
    r"rim enhancement|peripheral nodular|enhancing wall|wall enhancement": lambda whole, core, rim: rim > 1.15 * core,
    r"(?<!without )washout": lambda whole, core, rim: core < 0.93,
    r"enhancing capsule": lambda whole, core, rim: rim > 1.12 * core,
    r"fill-in|central enhancement": lambda whole, core, rim: whole > 1.15 and core > rim,
    r"signal drop on": lambda whole, core, rim: whole < 0.9,
}


def contradicted(abnormality: str, contrasts: dict[str, tuple[float, float, float]]) -> tuple[list[str], set[str]]:
    """The attributes of a class that measured contrasts contradict, and the claims that were tried."""
    wrong, tried = [], set()
    for organ, c, modality, text in ATTRIBUTES:
        for claim, holds in CLAIMS.items() if (organ, c) == ("liver", abnormality) else ():
            if re.search(claim, text, re.IGNORECASE):
                tried.add(claim)
                wrong += [] if holds(*contrasts[modality]) else [f"{modality}: {text} {contrasts[modality]}"]
    return wrong, tried


def test_attributes_of_the_liver_are_true_of_the_phantom():
    """On the reference scanner, of the mean over patients: a caption must not contradict the images it goes with."""
    config = PhantomConfig(size=24, scanner_strength=0, workers=1)
    measured: dict[str, dict[str, tuple[float, float, float]]] = {}
    for kind in KINDS["liver"]:
        studies = [make_study(single_case("liver", kind, f"{kind}-{i}"), config, seed=2) for i in range(6)]
        measured[kind] = {}
        for m in MEDMOM.organs["liver"].modalities:
            seen = [s.findings.contrast[m] for s in studies]
            whole, core, rim = (sum(getattr(x, k) for x in seen) / len(seen) for k in ("whole", "core", "rim"))
            measured[kind][m] = whole, core, rim
    assert not [wrong for kind in measured if (wrong := contradicted(kind, measured[kind])[0])]
    assert set.union(*(contradicted(kind, measured[kind])[1] for kind in measured)) == set(CLAIMS)
    # and of no other lesion: the attributes tell the classes apart
    assert not [(a, b) for a in measured for b in measured if a != b and not contradicted(a, measured[b])[0]]


def faulty(**changes: object) -> dict:
    spec = copy.deepcopy(MEDMOM.to_dict())
    spec["organs"]["liver"] |= changes
    return spec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"atributes": {}}, "liver.atributes is no key"),
        ({"names": {"hccc": "carcinoma"}}, "names.hccc is no abnormality"),
        ({"attributes": {"hcc": {"C+B": ["bright"]}}}, r"attributes.hcc.C\+B is no modality"),
        ({"attributes": {"hcc": {"DWI": ["Bright."]}, "fnh": {"DWI": ["Bright."]}}}, "said of both hcc and fnh"),
        ({"templates": ["MRI: "]}, "must have one {}"),
        ({"templates": ["{}: {}"]}, "must have one {}"),
        ({"captions": ["{finding}"]}, "needs one or more of {findings}"),
        ({"captions": ["MRI."]}, "needs one or more of {findings}"),
        ({"captions": ["{findings"]}, "is no template"),
        ({"captions": ["{findings.__class__}"]}, "no other braces"),
    ],
)
def test_a_faulty_vocabulary_is_one_clear_sentence(changes, message):
    with pytest.raises(VocabularyError, match=message) as caught:
        Vocabulary.from_dict(faulty(**changes))
    assert "\n" not in str(caught.value) and str(caught.value).startswith("organs.liver")


@pytest.mark.parametrize("key", ["names", "templates", "captions", "attributes", "modality_texts", "query"])
def test_every_text_is_part_of_the_hash(key):
    spec = MEDMOM.to_dict()
    assert Vocabulary.from_dict(spec).hash == MEDMOM.hash
    value = spec["organs"]["liver"][key]
    emptied = "Another?" if isinstance(value, str) else type(value)()
    assert Vocabulary.from_dict(faulty(**{key: emptied})).hash != MEDMOM.hash


def test_one_text_instead_of_a_list_is_one_text():
    liver = Vocabulary.from_dict(faulty(templates="A {}.", captions="{diagnosis}")).organs["liver"]
    assert liver.templates == ("A {}.",) and liver.captions == ("{diagnosis}",)


def test_the_ensemble_is_every_prompt_in_every_template():
    texts = PublicTexts(MEDMOM, build_text_encoder(TextConfig(kind="hash", dim=32)))
    embedding, label = texts.ensemble("liver")
    liver = MEDMOM.organs["liver"]
    assert label.bincount().tolist() == [len(p) * len(liver.templates) for p in liver.prompts.values()]
    expected = build_text_encoder(TextConfig(kind="hash", dim=32)).embed(liver.ensemble("fnh"))
    assert torch.equal(embedding[label == liver.label("fnh")], expected)
    assert liver.ensemble("cyst")[1] == "Liver MRI. Simple hepatic cyst without enhancement."
    plain = PublicTexts(
        Vocabulary.from_dict(faulty(templates=["{}"])), build_text_encoder(TextConfig(kind="hash", dim=32))
    )
    bank = plain.bank("liver", "prompts")
    mine = bank.label != OTHER_ORGAN
    assert torch.equal(plain.ensemble("liver")[0], bank.embedding[mine])
    assert torch.equal(plain.ensemble("liver")[1], bank.label[mine])
