"""Captions say what the label implies of the modalities that are there, and nothing else."""

from __future__ import annotations

import copy

import pytest

from client.augment import mirror_report
from configs import load_vocabulary
from medmap_model.text.captions import caption
from medmap_model.vocabulary import Vocabulary

MEDMOM = load_vocabulary("medmom")
LIVER, BRAIN = MEDMOM.organs["liver"], MEDMOM.organs["brain"]


def test_only_what_the_modalities_show_is_said():
    late = caption(LIVER, "hcc", ["DWI", "C+Delay"], seed=0)
    assert "capsule in the delayed phase" in late and "diffusion-weighted" in late
    assert "arterial" not in late and "portal" not in late and "hepatocellular carcinoma" in late.lower()
    assert "arterial" in caption(LIVER, "hcc", ["C+A"], seed=0)
    for organ in (BRAIN, LIVER):
        for c in organ.abnormalities:
            for m in organ.modalities:
                said = [t for by in organ.attributes[c].values() for t in by]
                here = organ.attributes[c].get(m, ())[:1]
                text = caption(organ, c, [m], seed=3)
                assert [t for t in said if t in text] == list(here)


def test_of_a_mixed_class_only_what_holds_for_all_of_it_is_said():
    text = caption(BRAIN, "tumour", BRAIN.modalities, seed=0)
    assert "depends on its grade" in text
    assert "ring enhancement" not in text and "without enhancement" not in text


def test_the_seed_decides_and_templates_take_turns():
    texts = [caption(LIVER, "cyst", LIVER.modalities, seed=s) for s in range(40)]
    assert texts == [caption(LIVER, "cyst", LIVER.modalities, seed=s) for s in range(40)]
    assert len(set(texts)) == len(LIVER.captions)
    assert caption(LIVER, "cyst", LIVER.modalities[::-1], seed=1) == texts[1]
    assert all("{" not in t and "  " not in t and t.endswith(".") for t in texts)


def test_several_findings_are_joined():
    spec = copy.deepcopy(MEDMOM.to_dict())
    spec["organs"]["liver"]["multi_label"] = True
    liver = Vocabulary.from_dict(spec).organs["liver"]
    text = caption(liver, "cyst; hcc", ["C+A"], seed=0)
    assert "No enhancement at all" in text and "Nonrim hyperenhancement" in text
    assert "simple hepatic cyst and hepatocellular carcinoma" in text.lower()
    with pytest.raises(KeyError, match="hhc"):
        caption(liver, "cyst;hhc", ["C+A"], seed=0)
    with pytest.raises(KeyError):
        caption(LIVER, "cyst; hcc", ["C+A"], seed=0)  # one label only


def test_a_vocabulary_without_templates_has_a_plain_caption(vocabulary):
    assert caption(vocabulary.organs["brain"], "no_tumour", ["T1"], seed=5) == "Impression: no tumour."


def test_every_caption_can_follow_a_mirrored_scan():
    for organ in MEDMOM.organs.values():
        for c in organ.abnormalities:
            text = caption(organ, c, organ.modalities, seed=0)
            assert mirror_report(text) == text
