"""Every model on every test set, from saved predictions: headline metrics, own and external ones, the cross-site matrix.

Three test sets, the same for all models: `common` (balanced, every site's scanner and modality subset), `own` (each site's
own test patients, its own label mix), `external` (a hospital never trained on). Missing is None, never 0. Sensitivity
and specificity are at thresholds chosen on each model's own validation patients, never on those it is tested on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from client.training import Predictions
from medmap_model.evaluation import METRICS, by_class, by_group, curves, interval, operating_points, resampled, scores
from medmap_model.vocabulary import Organ, Vocabulary
from simulation.conditions import Hospital, load_predictions

CONDITIONS = ("federated", "local", "pooled", "naive")
Saved = Mapping[tuple[str, str, str], Predictions]


class Scored(NamedTuple):
    """A model on a set of patients: its scores, and metric -> scores over resampled patients."""

    scores: dict[str, Any]
    draws: dict[str, np.ndarray]


class OperatingPoint(NamedTuple):
    """A model's thresholds for an organ, one per class, and how many validation patients chose them."""

    thresholds: list[float | None]
    patients: int


def compare(
    run_dir: Path,
    models: Sequence[str],
    hospitals: Sequence[Hospital],
    vocabulary: Vocabulary,
    *,
    bootstrap: int,
    seed: int,
    operating_point: str = "validation",
) -> dict[str, Any]:
    """The parts of `summary.json` that compare models: metrics, metrics_own, metrics_external, cross_site; and of the
    federated model operating_points, subgroups and (common test set) curves.

    operating_point: `evaluation.operating_point`, validation or half.
    """
    predictions = {m: load_predictions(run_dir, m) for m in models}
    internal = [h.entry.name for h in hospitals if not h.external]
    external = [h.entry.name for h in hospitals if h.external]
    organs = list(vocabulary.organs)

    @cache
    def point(model: str, organ: str) -> OperatingPoint:
        return _point(predictions[model], internal, vocabulary.organs[organ], operating_point)

    def settings(model: str, organ: str) -> dict[str, Any]:
        thresholds, multi_label = point(model, organ).thresholds, vocabulary.organs[organ].multi_label
        return {"bootstrap": bootstrap, "seed": seed, "threshold": thresholds, "multi_label": multi_label}

    @cache
    def on(model: str, sites: tuple[str, ...], split: str, organ: str) -> Scored | None:
        """A model on the union of these hospitals' patients; None when it has none or knows not the organ."""
        found = _union(predictions[model], sites, split, organ)
        if found is None:
            return None
        how = settings(model, organ)
        names = vocabulary.organs[organ].abnormalities
        value = scores(found.labels, found.probabilities, classes=names, **how | {"bootstrap": 0})
        return Scored(value, resampled(found.labels, found.probabilities, **how) if bootstrap else {})

    def own(model: str, organ: str) -> list[Scored]:
        """A shared model at every site on the site's own patients; a local one at home."""
        at = [s for s in internal if not model.startswith("local-") or model == f"local-{s}"]
        return [found for s in at if (found := on(model, (s,), "test", organ)) is not None]

    def conditions(of: Callable[[str, str], Sequence[Scored | None]]) -> dict[str, Any]:
        """Condition -> organ -> scores; `local` is the mean over the sites' own models."""
        table: dict[str, Any] = {}
        for condition in CONDITIONS:
            members = [m for m in models if m == condition or (condition == "local" and m.startswith("local-"))]
            rows = {o: _mean([s for m in members for s in of(m, o) if s is not None]) for o in organs}
            known = {o: r for o, r in rows.items() if r is not None}
            table[condition] = known or None
        return table

    columns = [*internal, *external]
    cells = {
        o: [[_mean([s] if (s := on(m, (c,), "test", o)) else []) for c in columns] for m in models] for o in organs
    }

    def matrix(key: str) -> dict[str, Any]:
        return {o: [[(cell or {}).get(key) for cell in row] for row in rows] for o, rows in cells.items()}

    def parts(sites: Sequence[str], split: str) -> dict[str, Any]:
        """Organ -> the federated model by class, by number of modalities and by site."""
        found = {o: _union(predictions["federated"], sites, split, o) for o in organs}
        return {
            o: _parts(predictions["federated"], sites, split, vocabulary.organs[o], settings("federated", o))
            for o, union in found.items()
            if union is not None
        }

    def drawn(organ: str) -> dict[str, Any] | None:
        found = _union(predictions["federated"], internal, "common", organ)
        if found is None:
            return None
        how = {k: v for k, v in settings("federated", organ).items() if k in ("threshold", "multi_label")}
        return curves(found.labels, found.probabilities, classes=vocabulary.organs[organ].abnormalities, **how)

    shared = tuple(internal), tuple(external)
    return {
        "metrics": conditions(lambda m, o: [on(m, shared[0], "common", o)]),
        "metrics_own": conditions(own),
        "metrics_external": conditions(lambda m, o: [on(m, shared[1], "test", o)]),
        "cross_site": {"models": list(models), "sites": columns, "metric": "auroc", "organ": matrix("auroc")}
        | {key: matrix(key) for m in METRICS for key in (m, f"{m}_ci")},
        "operating_points": {
            o: _told(point("federated", o), vocabulary.organs[o], operating_point)
            for o in organs
            if any(key[2] == o for key in predictions["federated"])
        },
        "subgroups": {
            "common": parts(internal, "common"),
            "own": parts(internal, "test"),
            "external": parts(external, "test"),
        },
        "curves": {o: found for o in organs if (found := drawn(o)) is not None},
    }


def _union(saved: Saved, sites: Sequence[str], split: str, organ: str) -> Predictions | None:
    """The patients of these hospitals, one after the other; None when there are none."""
    found = [saved[k] for s in sites if (k := (s, split, organ)) in saved and len(saved[k].labels)]
    return Predictions(*(np.concatenate(arrays) for arrays in zip(*found, strict=True))) if found else None


def _point(saved: Saved, sites: Sequence[str], organ: Organ, rule: str) -> OperatingPoint:
    """Of the validation patients of every hospital that the model was trained on, pooled.

    Pooled as only a simulation can: in a deployment each hospital chooses from its own.
    """
    found = _union(saved, sites, "val", organ.name) if rule == "validation" else None
    if found is None:
        return OperatingPoint([None] * len(organ.abnormalities), 0)
    chosen = operating_points(found.labels, found.probabilities, multi_label=organ.multi_label)
    return OperatingPoint(chosen, int((found.labels >= 0).sum()))


def _told(point: OperatingPoint, organ: Organ, rule: str) -> dict[str, Any]:
    """What the summary says of an operating point: class -> threshold, 0.5 where validation chose none."""
    chosen = dict(zip(organ.abnormalities, point.thresholds, strict=True))
    told: dict[str, Any] = {
        "rule": rule,
        "thresholds": {c: 0.5 if t is None else t for c, t in chosen.items()},
        "patients": point.patients,
    }
    if rule == "validation" and (without := [c for c, t in chosen.items() if t is None]):
        reason = (
            "no validation patient has it, or no threshold beats chance" if point.patients else "no validation patients"
        )
        told["reasons"] = dict.fromkeys(without, f"{reason}: 0.5")
    return told


def _parts(saved: Saved, sites: Sequence[str], split: str, organ: Organ, settings: Mapping[str, Any]) -> dict[str, Any]:
    """One test set of an organ by class, by number of modalities and by site."""
    every = _union(saved, sites, split, organ.name)
    assert every is not None
    names = organ.abnormalities
    each = {s: found for s in sites if (found := _union(saved, [s], split, organ.name)) is not None}
    return {
        "classes": by_class(every.labels, every.probabilities, classes=names, **settings),
        "modalities": by_group(every.labels, every.probabilities, every.modalities, classes=names, **settings),
        "sites": {s: scores(found.labels, found.probabilities, classes=names, **settings) for s, found in each.items()},
    }


def _mean(rows: Sequence[Scored]) -> dict[str, Any] | None:
    """Mean over models or sites, with its interval over resampled patients; for several also their range."""
    if not rows:
        return None
    result: dict[str, Any] = {"n": max(r.scores["n"] for r in rows)}
    reasons = {}
    for metric in METRICS:
        known = [r for r in rows if r.scores[metric] is not None]
        values = [r.scores[metric] for r in known]
        result[metric] = float(np.mean(values)) if values else None
        draws = [r.draws[metric] for r in known if r.draws]
        result[f"{metric}_ci"] = interval(np.mean(draws, 0)) if draws else None
        if len(rows) > 1:
            result[f"{metric}_range"] = [min(values), max(values)] if values else None
        if not values:
            reasons[metric] = "; ".join(dict.fromkeys(r.scores["reasons"][metric] for r in rows))
    return result | ({"reasons": reasons} if reasons else {})
