"""Every model on every test set, from saved predictions: headline metrics, own and external ones, the cross-site matrix.

Three test sets, the same for all models: `common` (balanced, every site's scanner and modality subset), `own` (each site's
own test patients, its own label mix), `external` (a hospital never trained on). Missing is None, never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medmap_model.evaluation import METRICS, interval, resampled, scores
from medmap_model.vocabulary import Vocabulary
from simulation.conditions import Hospital, load_predictions

CONDITIONS = ("federated", "local", "pooled", "naive")


class Scored(NamedTuple):
    """A model on a set of patients: its scores, and metric -> scores over resampled patients."""

    scores: dict[str, Any]
    draws: dict[str, np.ndarray]


def compare(
    run_dir: Path,
    models: Sequence[str],
    hospitals: Sequence[Hospital],
    vocabulary: Vocabulary,
    *,
    bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    """The parts of `summary.json` that compare models: metrics, metrics_own, metrics_external, cross_site."""
    predictions = {m: load_predictions(run_dir, m) for m in models}
    internal = [h.entry.name for h in hospitals if not h.external]
    external = [h.entry.name for h in hospitals if h.external]
    organs = list(vocabulary.organs)

    def on(model: str, sites: Sequence[str], split: str, organ: str) -> Scored | None:
        """A model on the union of these hospitals' patients; None when it has none or knows not the organ."""
        found = [predictions[model][k] for s in sites if (k := (s, split, organ)) in predictions[model]]
        if not found or not sum(len(labels) for labels, _ in found):
            return None
        labels, p = np.concatenate([x for x, _ in found]), np.concatenate([x for _, x in found])
        return Scored(scores(labels, p), resampled(labels, p, bootstrap=bootstrap, seed=seed) if bootstrap else {})

    def own(model: str, organ: str) -> list[Scored]:
        """A shared model at every site on the site's own patients; a local one at home."""
        at = [s for s in internal if not model.startswith("local-") or model == f"local-{s}"]
        return [found for s in at if (found := on(model, [s], "test", organ)) is not None]

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
    cells = {o: [[_mean([s] if (s := on(m, [c], "test", o)) else []) for c in columns] for m in models] for o in organs}

    def matrix(key: str) -> dict[str, Any]:
        return {o: [[(cell or {}).get(key) for cell in row] for row in rows] for o, rows in cells.items()}

    return {
        "metrics": conditions(lambda m, o: [on(m, internal, "common", o)]),
        "metrics_own": conditions(own),
        "metrics_external": conditions(lambda m, o: [on(m, external, "test", o)]),
        "cross_site": {"models": list(models), "sites": columns, "metric": "auroc", "organ": matrix("auroc")}
        | {key: matrix(key) for m in METRICS for key in (m, f"{m}_ci")},
    }


def _mean(rows: Sequence[Scored]) -> dict[str, Any] | None:
    """Mean over models or sites, with its interval over resampled patients; for several also their range."""
    if not rows:
        return None
    result: dict[str, Any] = {"n": max(r.scores["n"] for r in rows)}
    for metric in METRICS:
        known = [r for r in rows if r.scores[metric] is not None]
        values = [r.scores[metric] for r in known]
        result[metric] = float(np.mean(values)) if values else None
        draws = [r.draws[metric] for r in known if r.draws]
        result[f"{metric}_ci"] = interval(np.mean(draws, 0)) if draws else None
        if len(rows) > 1:
            result[f"{metric}_range"] = [min(values), max(values)] if values else None
    return result
