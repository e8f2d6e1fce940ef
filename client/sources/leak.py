"""How well texts tell their label: (patient, text, label) in; balanced accuracy of a simple classifier out.

Bernoulli naive Bayes on the words of a text, cross-validated over patients. A study without a text counts as one
without words, so that having a text at all may tell the label too.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_FOLDS = 5
_FEWEST = 10  # patients of a class; with fewer a score says nothing
_MOST = 5000  # studies that are looked at; more would not change the score
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Leak:
    """balanced_accuracy: None where it cannot be measured, and `why`. chance: of guessing one class."""

    balanced_accuracy: float | None
    chance: float
    studies: int
    why: str = ""


def leak_of(studies: Sequence[tuple[str, str, str]]) -> Leak:
    """From (patient, text, label) of each labelled study. Classes of too few patients are left out."""
    patients = Counter(label for _, label in {(patient, label) for patient, _, label in studies})
    names = sorted(label for label, count in patients.items() if count >= _FEWEST)
    kept = sorted((s for s in studies if s[2] in names), key=lambda s: hashlib.sha256(s[0].encode()).digest())[:_MOST]
    if len(names) < 2:
        return Leak(None, 1.0, len(kept), f"that takes two classes with {_FEWEST} patients each")
    labels = np.array([names.index(label) for _, _, label in kept])
    words = _words([text for _, text, _ in kept])
    folds = _fold_of(kept)
    found = np.empty(len(kept), int)
    for fold in range(_FOLDS):
        out = folds == fold
        found[out] = _classify(words[~out], labels[~out], words[out], len(names))
    recall = [float((found[labels == c] == c).mean()) for c in range(len(names))]
    return Leak(sum(recall) / len(recall), 1 / len(names), len(kept))


def told(leak: Leak, organ: str, *, informed: int = 0) -> str:
    """What the screen says. informed: how many of the texts are by a language model that was told the label."""
    knew = f" A language model was told the label of {informed} of them." if informed else ""
    if leak.balanced_accuracy is None:
        return f"Whether such reports tell the label ({organ}) cannot be measured: {leak.why}.{knew}"
    score, chance = leak.balanced_accuracy, leak.chance
    verdict = "they TELL the label" if score > chance + (1 - chance) / 3 else "they tell little of the label"
    return (
        f"Such reports, {organ}: {verdict}. A bag-of-words classifier has balanced accuracy {score:.2f} on "
        f"{leak.studies} studies (chance {chance:.2f}). They are read of training patients alone.{knew}"
    )


def _fold_of(studies: Sequence[tuple[str, str, str]]) -> NDArray[np.int_]:
    """All studies of a patient in one fold; each class is spread over the folds."""
    homes: dict[str, int] = {}
    dealt: Counter[str] = Counter()
    for patient, _, label in studies:
        if patient not in homes:
            homes[patient] = dealt[label] % _FOLDS
            dealt[label] += 1
    return np.array([homes[patient] for patient, _, _ in studies])


def _words(texts: Sequence[str]) -> NDArray[np.bool_]:
    """(texts, words): which words a text holds."""
    bags = [set(_WORD.findall(text.casefold())) for text in texts]
    column = {word: i for i, word in enumerate(sorted(set().union(*bags)))}
    table = np.zeros((len(texts), len(column)), bool)
    for row, bag in zip(table, bags, strict=True):
        row[[column[word] for word in bag]] = True
    return table


def _classify(
    words: NDArray[np.bool_], labels: NDArray[np.int_], unseen: NDArray[np.bool_], classes: int
) -> NDArray[np.int_]:
    """The likeliest class of each unseen text, all classes equally likely beforehand."""
    share = np.array([(words[labels == c].sum(0) + 1) / ((labels == c).sum() + 2) for c in range(classes)])
    score = unseen @ np.log(share).T + ~unseen @ np.log(1 - share).T
    return score.argmax(1)
