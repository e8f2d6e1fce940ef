"""Test scores out of `summary.json`: condition, test set, organ, measure -> value, interval, patients."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Condition:
    """One way of training, as the report names and draws it."""

    key: str
    label: str
    meaning: str
    colour: str
    marker: str
    dash: str


# Colours of Okabe and Ito's colour-blind-safe set, darkened where needed to a contrast of 3:1 on white;
# marker and dash tell the conditions apart in grey print.
CONDITIONS = {
    c.key: c
    for c in (
        Condition("federated", "Federated", "module groups averaged over their owners", "#0072B2", "o", "-"),
        Condition("pooled", "Pooled", "all data in one place, which hospitals cannot do", "#444444", "s", "--"),
        Condition("naive", "Naive", "everything averaged over everyone", "#D55E00", "^", "-."),
        Condition("local", "Local only", "each site alone; mean over sites", "#007A5A", "D", ":"),
    )
}


@dataclass(frozen=True)
class TestSet:
    """One set of test patients: the key of `summary.json` that holds its scores, and what it asks."""

    __test__ = False  # not a test, whatever pytest makes of the name

    key: str
    part: str  # its key in `subgroups`
    label: str
    meaning: str


TEST_SETS = (
    TestSet(
        "metrics", "common", "Common test set", "balanced new patients on every site's scanner and modality subset"
    ),
    TestSet(
        "metrics_own", "own", "Own patients", "each site's own test patients in its own label mix; mean over sites"
    ),
    TestSet("metrics_external", "external", "External hospital", "a hospital that took no part in training"),
)

LOCAL = re.compile(r"local[-:]")
MEASURES = {
    "auroc": "AUROC",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "mcc": "MCC",
    "kappa": "Cohen κ",
    "ece": "ECE",
}


@dataclass(frozen=True)
class Score:
    """One figure and its number of test patients; whatever is not known is None.

    interval: 95 %, over resampled patients. spread: least and greatest, where the value is a mean over sites.
    """

    value: float | None = None
    interval: tuple[float, float] | None = None
    spread: tuple[float, float] | None = None
    n: int | None = None


def score(summary: dict[str, Any], test_set: str, condition: str, organ: str, measure: str = "auroc") -> Score:
    """Look one score up; everything is None when the run does not hold it."""
    return read_score(entry_of(summary, test_set, condition, organ), measure)


def entry_of(summary: dict[str, Any], test_set: str, condition: str, organ: str) -> dict[str, Any]:
    """All scores of a condition on a test set of an organ; empty when the run does not hold them."""
    return ((summary.get(test_set) or {}).get(condition) or {}).get(organ) or {}


def read_score(entry: dict[str, Any], measure: str) -> Score:
    """One score of an entry such as `evaluation.scores` makes."""
    interval, spread = _ends(entry.get(f"{measure}_ci")), _ends(entry.get(f"{measure}_range"))
    return Score(entry.get(measure), interval, spread, entry.get("n"))


def reasons(entry: dict[str, Any]) -> str:
    """Why scores of an entry are missing, each reason once."""
    return "; ".join(dict.fromkeys(str(r) for r in (entry.get("reasons") or {}).values()))


def _ends(pair: Any) -> tuple[float, float] | None:
    return (pair[0], pair[1]) if pair and None not in pair else None


def family(model: str) -> str:
    """The condition that a model belongs to: `local` for a single site's (`local-H1`), else itself."""
    return "local" if LOCAL.match(model) else model


def organs(summary: dict[str, Any]) -> list[str]:
    """Organs with any score, in the order of the summary."""
    return list(dict.fromkeys(organ for _, _, organ in _entries(summary)))


def conditions(summary: dict[str, Any]) -> list[Condition]:
    """Conditions with any score, in the report's order."""
    found = {condition for _, condition, _ in _entries(summary)}
    return [c for c in CONDITIONS.values() if c.key in found]


def test_sets(summary: dict[str, Any]) -> list[TestSet]:
    """Test sets with any score, in the report's order."""
    found = {key for key, _, _ in _entries(summary)}
    return [t for t in TEST_SETS if t.key in found]


test_sets.__test__ = False  # type: ignore[attr-defined]


def _entries(summary: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for test_set in TEST_SETS:
        for condition, by_organ in (summary.get(test_set.key) or {}).items():
            for organ, entry in (by_organ or {}).items():
                if any((entry or {}).get(m) is not None for m in MEASURES):
                    yield test_set.key, condition, organ
