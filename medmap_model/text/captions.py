"""Reports for patients who have a label and no report: a class's attributes in sentences; names in, one text out.

A caption says what is typical of the label in the modalities that the patient has, never what was seen in the patient.
"""

from __future__ import annotations

import random
from collections.abc import Collection

from medmap_model.vocabulary import Organ

DEFAULT = ("{findings} Impression: {diagnosis}.",)


def caption(organ: Organ, abnormality: str, modalities: Collection[str], *, seed: int) -> str:
    """A report made from the label: one of `organ.captions`, the attributes of the modalities that are there in it.

    abnormality: a class, or several with `;` between them for a multi-label organ. Of each class and modality the first
    attribute enters: the further ones hold for some patients only. The seed draws the template; the same arguments give
    the same text. Raises KeyError for a name that is no class. Label-to-caption templates as in UniMed-CLIP
    (arXiv 2412.10372); texts per modality as in MulModSeg (ChengyinLee/MulModSeg_2024).
    """
    there = [m for m in organ.modalities if m in modalities]
    classes = organ.classes_of(abnormality)
    for name in classes:
        organ.label(name)
    findings = [organ.attributes.get(c, {}).get(m, ())[:1] for c in classes for m in there]
    diagnosis = _listed([organ.spoken(c) for c in classes])
    text = (
        random.Random(seed)
        .choice(organ.captions or DEFAULT)
        .format(
            findings=" ".join(text for first in findings for text in first),
            diagnosis=diagnosis,
            Diagnosis=diagnosis[:1].upper() + diagnosis[1:],
            organ=organ.name,
            modalities=_listed(there),
        )
    )
    return " ".join(text.split())


def _listed(words: list[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
