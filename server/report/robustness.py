"""The report's view of `summary["evaluation"]`: zero-shot, retrieval, missing modalities, corruptions, what mattered."""

from __future__ import annotations

from typing import Any

from server.report.formats import listed, number, words
from server.report.scores import TEST_SETS, read_score, reasons

Row = dict[str, Any]

MODELS = {"pretrained": "After stage 1", "final": "At the end"}
DIRECTIONS = {"image_to_report": "Report for an image", "report_to_image": "Image for a report"}
RECALLS = ("recall@1", "recall@5", "recall@10")
WORST = 10  # subsets of modalities that are listed one by one


def evaluation_view(summary: Row) -> Row:
    """Everything that the page's sections on `evaluation` show; empty lists where the run holds nothing."""
    found = summary.get("evaluation") or {}
    return {
        "test_set": {t.part: t.label.lower() for t in TEST_SETS}.get(str(found.get("test_set")), found.get("test_set")),
        "zero_shot": _zero_shot(found.get("zero_shot") or {}),
        "retrieval": _retrieval(found.get("retrieval") or {}),
        "missing": [_missing(o, m) for o, m in (found.get("missing") or {}).items() if m],
        "corruptions": [_corruptions(o, c) for o, c in (found.get("corruptions") or {}).items() if c],
        "importance": [_importance(o, i) for o, i in (found.get("importance") or {}).items() if i],
    }


def _zero_shot(by_organ: Row) -> list[Row]:
    measures = ("auroc", "balanced_accuracy", "macro_f1")
    return [
        {
            "organ": organ,
            "model": label,
            "scores": [read_score(entry, m) for m in measures],
            "n": entry.get("n"),
            "reason": reasons(entry) or entry.get("reason"),
        }
        for organ, models in by_organ.items()
        for key, label in MODELS.items()
        if (entry := (models or {}).get(key))
    ]


def _retrieval(by_organ: Row) -> list[Row]:
    rows = []
    for organ, models in by_organ.items():
        for key, label in MODELS.items():
            told = (models or {}).get(key) or {}
            for direction, name in DIRECTIONS.items():
                entry = told.get(direction)
                if not entry and not told.get("reason"):
                    continue
                entry = entry or {}
                n = entry.get("n") or told.get("n")
                rows.append(
                    {
                        "organ": organ,
                        "model": label,
                        "direction": name,
                        "recalls": [entry.get(r) for r in RECALLS],
                        "rank": entry.get("median_rank"),
                        "n": n,
                        "reason": told.get("reason"),
                    }
                )
    return rows


def _missing(organ: str, found: Row) -> Row:
    """One organ: the headline figures, and its subsets by how many modalities are hidden."""
    modalities = list(found.get("modalities") or [])
    subsets = [s for s in found.get("subsets") or [] if s.get("auroc") is not None]
    by_number: dict[int, list[float]] = {}
    for s in subsets:
        by_number.setdefault(len(s.get("missing") or []), []).append(s["auroc"])
    worst = found.get("worst") or {}
    rows = [("All its modalities", found.get("full")), ("Mean over all subsets", found.get("mean"))]
    rows += [(f"Expected, each hidden with chance {p}", v) for p, v in (found.get("expected") or {}).items()]
    rows += [(f"Worst subset{f': {_left(modalities, worst)}' if worst.get('missing') else ''}", worst.get("value"))]
    for rate, lost in (found.get("random") or {}).items():
        rows += [(f"{_share(rate)} of the voxels lost, mean over all subsets", lost.get("mean"))]
        rows += [(f"{_share(rate)} of the voxels lost, worst subset", (lost.get("worst") or {}).get("value"))]
    rows += [(f"Noise, {level}", v) for level, v in (found.get("noisy") or {}).items()]
    return {
        "organ": organ,
        "n": found.get("n"),
        "reason": found.get("reason"),
        "rows": rows,
        "by_number": [
            {"hidden": k, "subsets": len(v), "mean": sum(v) / len(v), "worst": min(v)}
            for k, v in sorted(by_number.items())
        ],
        "worst": [{**s, "left": _left(modalities, s)} for s in sorted(subsets, key=lambda s: s["auroc"])[:WORST]],
        "subsets": len(subsets),
    }


def _left(modalities: list[str], subset: Row) -> str:
    """The modalities that a subset leaves; of a hidden one, no word."""
    return listed([m for m in modalities if m not in (subset.get("missing") or [])], 8) or "not known"


def _share(rate: str) -> str:
    try:
        return f"{100 * float(rate):.0f} %"
    except ValueError:
        return rate


def _corruptions(organ: str, found: Row) -> Row:
    """One organ: rows by corruption, each with its severities, beside the clean scan."""
    clean = found.get("clean") or {}
    groups: dict[str, list[Row]] = {}
    for row in found.get("rows") or []:
        groups.setdefault(str(row.get("name")), []).append(row)
    worst = found.get("worst") or {}
    notes = [str(reason) for reason in (found.get("skipped") or {}).values()]
    if worst.get("auroc") is not None:
        name = words(str(worst.get("name")))
        notes.insert(0, f"Worst: {name}, severity {worst.get('severity')}, {number(worst['auroc'])}.")
    return {"organ": organ, "clean": clean, "groups": groups, "mean": found.get("mean"), "notes": notes}


def _importance(organ: str, drops: Row) -> Row:
    """One organ: modality -> mean drop of probability, the greatest first, with the length of its bar."""
    known = {m: float(v) for m, v in drops.items() if isinstance(v, int | float)}
    largest = max(known.values(), default=0.0)
    rows = [
        {"modality": m, "drop": drop, "share": max(drop, 0.0) / largest if largest > 0 else 0.0}
        for m, drop in sorted(known.items(), key=lambda item: -item[1])
    ]
    return {"organ": organ, "rows": rows, "unknown": [m for m in drops if m not in known]}
