"""The report's subgroup tables: the federated model by class, by number of modalities and by site; and its thresholds."""

from __future__ import annotations

from typing import Any

from server.report.formats import SPACE, number, words
from server.report.scores import MEASURES, TEST_SETS, read_score, reasons

Row = dict[str, Any]

# Without ECE, which reads high where there are few patients.
BY_PATIENTS = ("auroc", "balanced_accuracy", "sensitivity", "specificity")
# Key of `subgroups` -> heading, name of the first column, measures.
PARTS = {
    "classes": ("Each class against the rest", "Class", ("auroc", "sensitivity", "specificity")),
    "modalities": ("By number of modalities", "Modalities", BY_PATIENTS),
    "sites": ("By site", "Site", BY_PATIENTS),
}


def subgroup_tables(summary: Row) -> list[Row]:
    """Per organ its tables, one per part: rows of scores, grouped by test set; without those that hold nothing."""
    subgroups = summary.get("subgroups") or {}
    organs = dict.fromkeys(organ for by_organ in subgroups.values() for organ in by_organ or {})
    found = []
    for organ in organs:
        tables = []
        for part, (title, first, measures) in PARTS.items():
            groups = []
            for test_set in TEST_SETS:
                entries = ((subgroups.get(test_set.part) or {}).get(organ) or {}).get(part) or {}
                if entries:
                    groups.append((test_set.label, [_row(part, k, e or {}, measures) for k, e in entries.items()]))
            columns = [MEASURES[m] for m in measures] + (["Threshold"] if part == "classes" else [])
            if groups:
                tables.append({"title": title, "first": first, "columns": columns, "groups": groups})
        if tables:
            found.append({"organ": organ, "tables": tables})
    return found


def _row(part: str, name: str, entry: Row, measures: tuple[str, ...]) -> Row:
    n, of = entry.get("n"), entry.get("of")
    return {
        "name": words(name) if part == "classes" else name,
        "reason": reasons(entry),
        "patients": number(n, 0) if of is None else f"{number(n, 0)} of {of}",
        "scores": [read_score(entry, m) for m in measures],
        "threshold": number(entry.get("threshold"), 2) if part == "classes" else None,
    }


def operating_points(summary: Row) -> list[str]:
    """One sentence per organ: the thresholds of the federated model, and where they come from."""
    sentences = []
    for organ, told in (summary.get("operating_points") or {}).items():
        thresholds = (told or {}).get("thresholds") or {}
        if not thresholds:
            continue
        patients, why = told.get("patients"), reasons(told)
        if told.get("rule") == "half" or not patients:
            source = "as the configuration asks" if told.get("rule") == "half" else "there are no validation patients"
            sentences.append(f"Operating point, {organ}: 0.5 for every class; {source}.")
            continue
        each = ", ".join(f"{words(c)}{SPACE}{number(t, 2)}" for c, t in thresholds.items())
        source = f"the largest sensitivity + specificity on {patients} validation patients"
        sentences.append(f"Operating point, {organ}: {each} ({source}{'; ' + why if why else ''}).")
    return sentences
