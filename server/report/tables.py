"""The report's tables as plain rows for the page: scores, heat map, ownership, costs."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

from server.report.formats import number
from server.report.scores import (
    LOCAL,
    MEASURES,
    Condition,
    Score,
    TestSet,
    conditions,
    entry_of,
    read_score,
    reasons,
    score,
    test_sets,
)

Row = dict[str, Any]

HEAT_LOW, HEAT_HIGH = 0.5, 1.0  # AUROC: chance to perfect
HEAT_RAMP = ((0xF4, 0xF8, 0xFC), (0x08, 0x45, 0x86))  # one hue, light to dark: reads in grey print too

PHASES = {
    "generate_s": "Making or finding the data",
    "import_s": "Federated: start-up and imports",
    "prepare_s": "Federated: preparing volumes",
    "train_s": "Federated: all rounds",
    "evaluate_s": "Federated: predicting every test set",
    "conditions_s": "All methods, side by side",
}


@dataclass(frozen=True)
class ScoreTable:
    """One organ: AUROC of every condition on every test set; in `details` all measures, with the reason for a missing one."""

    organ: str
    test_sets: list[tuple[TestSet, str]]
    rows: list[tuple[Condition, list[Score]]]
    details: list[tuple[TestSet, list[tuple[Condition, list[Score], str]]]]


def score_table(summary: Row, organ: str) -> ScoreTable:
    """The headline table of one organ."""
    kinds, sets = conditions(summary), test_sets(summary)
    details = []
    for t in sets:
        entries = [(c, entry_of(summary, t.key, c.key, organ)) for c in kinds]
        known = [(c, e) for c, e in entries if any(e.get(m) is not None for m in MEASURES)]
        if known:
            details.append((t, [(c, [read_score(e, m) for m in MEASURES], reasons(e)) for c, e in known]))
    return ScoreTable(
        organ=organ,
        test_sets=[(t, _patients(summary, t, organ, kinds)) for t in sets],
        rows=[(c, [score(summary, t.key, c.key, organ) for t in sets]) for c in kinds],
        details=details,
    )


def _patients(summary: Row, test_set: TestSet, organ: str, kinds: list[Condition]) -> str:
    """`n = 168`; a range when conditions were scored on different numbers of patients."""
    scores = [score(summary, test_set.key, c.key, organ) for c in kinds]
    numbers = sorted({s.n for s in scores if s.n is not None})
    if not numbers:
        return ""
    if all(s.spread for s in scores if s.value is not None):
        return f"n ≤ {numbers[-1]} per site"
    return f"n = {numbers[0]}" if len(numbers) == 1 else f"n = {numbers[0]} to {numbers[-1]}"


def local_site(model: str, sites: list[str]) -> str | None:
    """The site that a model was trained at alone: H1 for `local-H1` and for `H1`; None for the others."""
    name = LOCAL.sub("", model, count=1)
    return name if name in sites else None


def heat_maps(summary: Row) -> list[Row]:
    """Per organ: one row per model, one coloured cell per site; a site's own model is marked."""
    cross = summary.get("cross_site") or {}
    models, sites = [str(m) for m in cross.get("models") or []], [str(s) for s in cross.get("sites") or []]
    external = {str(s["name"]) for s in summary.get("sites") or [] if s.get("external")}
    maps = []
    for organ, values in (cross.get("organ") or {}).items():
        used = [j for j in range(len(sites)) if any(j < len(r) and r[j] is not None for r in values)]
        rows: list[Row] = []
        for model, row in zip(models, values, strict=False):
            if all(v is None for v in row):
                continue
            owner = local_site(model, sites)
            cells = [{**_heat(row[j] if j < len(row) else None), "own": owner == sites[j]} for j in used]
            name = f"{owner} alone" if owner else model
            rows.append({"name": name, "local": owner is not None, "cells": cells})
        rows.sort(key=lambda row: row["local"])  # shared models first
        if rows:
            columns = [{"name": sites[j], "external": sites[j] in external} for j in used]
            maps.append({"organ": organ, "metric": _measure(cross), "columns": columns, "rows": rows})
    return maps


def _measure(cross: Row) -> str:
    key = str(cross.get("metric") or "auroc")
    return MEASURES.get(key, key)


def _heat(value: float | None) -> Row:
    if value is None:
        return {"text": number(None), "background": "#ffffff", "colour": "#555555"}
    share = min(max((value - HEAT_LOW) / (HEAT_HIGH - HEAT_LOW), 0.0), 1.0)
    rgb = [round(a + share * (b - a)) for a, b in zip(*HEAT_RAMP, strict=True)]
    return {
        "text": number(value, 2),
        "background": "#{:02x}{:02x}{:02x}".format(*rgb),
        "colour": "#ffffff" if _luminance(rgb) < 0.179 else "#111111",
    }


def _luminance(rgb: list[int]) -> float:
    """Relative luminance as WCAG defines it; below 0.179 white text has more contrast than black."""
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def ownership(summary: Row) -> Row:
    """Who owns which modality: volumes per site and modality, grouped by organ where that is plain."""
    sites = summary.get("sites") or []
    seen: dict[str, set[str]] = {}
    # Longest list first: a site that owns everything gives the vocabulary's order.
    for site in sorted(sites, key=lambda s: -len(s.get("modalities") or [])):
        for modality in site.get("modalities") or []:
            here = set(site.get("organs") or [])
            seen[modality] = seen[modality] & here if modality in seen else here
    # A modality belongs to the one organ that all its owners share.
    organ_of = {m: next(iter(o)) if len(o) == 1 else "" for m, o in seen.items()}
    order = list(dict.fromkeys(organ_of.values()))
    modalities = sorted(seen, key=lambda m: order.index(organ_of[m]))
    rows = []
    for site in sites:
        owned, volumes = set(site.get("modalities") or []), site.get("volumes") or {}
        cells = [{"owned": m in owned, "volumes": volumes.get(m)} for m in modalities]
        rows.append({"name": site.get("name"), "external": bool(site.get("external")), "cells": cells})
    owners = [sum(r["cells"][i]["owned"] and not r["external"] for r in rows) for i in range(len(modalities))]
    groups = [(o, sum(organ_of[m] == o for m in modalities)) for o in order]
    return {"groups": groups, "modalities": modalities, "rows": rows, "owners": owners}


def communication(summary: Row) -> Row | None:
    """Bytes both ways, and what sites would have sent had every update carried every module group."""
    traffic = summary.get("communication")
    if not traffic:
        return None
    updates = sum(len(entry.get("returned") or []) for entry in summary.get("participation") or [])
    full, up = traffic.get("bytes_full_model"), traffic.get("bytes_up")
    whole = updates * full if updates and full else None
    share = up / whole if whole and up is not None else None
    return {**traffic, "updates": updates, "bytes_if_whole": whole, "share_of_whole": share}


def module_groups(summary: Row) -> Row | None:
    """What travels as one: rows (parameters, size and bytes sent up, in the model's order) and how many were never sent (idle).

    Those are left out of the rows where anything is known of traffic: with a large vocabulary most have no owner.
    """
    sent = (summary.get("communication") or {}).get("per_group") or {}
    known = {str(g["name"]): g for g in (summary.get("model") or {}).get("groups") or []}
    largest = max((v for v in sent.values() if v), default=0)
    rows = []
    for name in [*known, *(n for n in sent if n not in known)]:
        group = known.get(name, {})
        megabytes, up = group.get("megabytes"), sent.get(name)
        size = None if megabytes is None else 1e6 * megabytes
        share = up / largest if up and largest else 0
        rows.append({"name": name, "parameters": group.get("parameters"), "size": size, "sent": up, "share": share})
    shown = [r for r in rows if r["sent"]] if sent else rows
    return {"rows": shown, "idle": len(rows) - len(shown)} if shown else None


def timing(summary: Row) -> Row | None:
    """Wall time by phase, and the spread over rounds."""
    times: Row = summary.get("timing") or {}
    if all(times.get(k) is None for k in ("wall_s", "train_s")) and not times.get("rounds"):
        return None
    phases: list[Row] = [{"name": label, "seconds": times.get(k)} for k, label in PHASES.items() if k in times]
    longest = max((p["seconds"] or 0 for p in phases), default=0)
    for phase in phases:
        phase["share"] = (phase["seconds"] or 0) / longest if longest else 0
    per_round = [s for s in times.get("rounds") or [] if s is not None]
    return {
        "wall_s": times.get("wall_s"),
        "overhead_share": times.get("overhead_share"),
        "phases": phases,
        "rounds": len(per_round),
        "round_median_s": median(per_round) if per_round else None,
        "round_longest_s": max(per_round, default=None),
    }
