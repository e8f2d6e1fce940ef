"""Test scores out of `summary.json`: condition x test set x organ x measure -> value, interval, number of patients."""

from __future__ import annotations

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


# Colours are of Okabe and Ito's colour-blind-safe set, those with a contrast of 3:1 or more on white; marker and dash
# tell the conditions apart in grey print.
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
    label: str
    meaning: str


TEST_SETS = (
    TestSet("metrics", "Common test set", "balanced new patients on every site's scanner and modality subset"),
    TestSet("metrics_own", "Own patients", "each site's own test patients in its own label mix; mean over sites"),
    TestSet("metrics_external", "External hospital", "a hospital that took no part in training"),
)

MEASURES = {"auroc": "AUROC", "balanced_accuracy": "Balanced accuracy", "macro_f1": "Macro F1"}


@dataclass(frozen=True)
class Score:
    """One figure with its interval and its number of test patients; whatever is not known is None."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None

    @property
    def has_interval(self) -> bool:
        """Whether both ends are known."""
        return self.low is not None and self.high is not None


def score(
    summary: dict[str, Any], test_set: str, condition: str, organ: str, measure: str = "auroc"
) -> Score:
    """Look one score up; everything is None when the run does not hold it."""
    entry = ((summary.get(test_set) or {}).get(condition) or {}).get(organ) or {}
    low, high = entry.get(f"{measure}_ci") or (None, None)
    return Score(entry.get(measure), low, high, entry.get("n"))


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
