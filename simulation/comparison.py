"""Every model on every test set, from saved predictions: headline metrics, own and external ones, the cross-site matrix.

Three test sets, the same for all models: `common` (balanced, every site's scanner and modality subset), `own` (each site's
own test patients, its own label mix), `external` (a hospital never trained on). Missing is None, never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medmap_model.evaluation import scores
from medmap_model.vocabulary import Vocabulary
from simulation.conditions import Hospital, load_predictions

CONDITIONS = ("federated", "local", "pooled", "naive")
METRICS = ("auroc", "balanced_accuracy", "macro_f1")
Predictions = dict[tuple[str, str, str], tuple[np.ndarray, np.ndarray]]
Scores = dict[str, Any]


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

    def on(model: str, sites: Sequence[str], split: str, organ: str, resamples: int = 0) -> Scores | None:
        """A model's scores over the union of these hospitals' patients; None when it has none or knows not the organ."""
        found = [predictions[model][k] for s in sites if (k := (s, split, organ)) in predictions[model]]
        if not found or not sum(len(labels) for labels, _ in found):
            return None
        labels, p = np.concatenate([x for x, _ in found]), np.concatenate([x for _, x in found])
        return scores(labels, p, bootstrap=resamples, seed=seed)

    def conditions(of: Callable[[str, str], Scores | None]) -> dict[str, Any]:
        """Condition -> organ -> scores; `local` is the mean over the sites' own models."""
        table: dict[str, Any] = {}
        for condition in CONDITIONS:
            members = [m for m in models if m == condition or (condition == "local" and m.startswith("local-"))]
            rows = {o: _mean([s for m in members if (s := of(m, o)) is not None]) for o in organs}
            rows = {o: r for o, r in rows.items() if r is not None}
            table[condition] = rows if members and rows else None
        return table

    def own(model: str, organ: str) -> Scores | None:
        """A shared model: mean over sites of its score on the site's own patients; a local one: at home."""
        at = [s for s in internal if not model.startswith("local-") or model == f"local-{s}"]
        return _mean([s for name in at if (s := on(model, [name], "test", organ)) is not None])

    columns = [*internal, *external]
    return {
        "metrics": conditions(lambda m, o: on(m, internal, "common", o, bootstrap)),
        "metrics_own": conditions(own),
        "metrics_external": conditions(lambda m, o: on(m, external, "test", o, bootstrap)),
        "cross_site": {
            "models": list(models),
            "sites": columns,
            "metric": "auroc",
            "organ": {
                o: [[(on(m, [s], "test", o) or {}).get("auroc") for s in columns] for m in models] for o in organs
            },
        },
    }


def _mean(rows: Sequence[Scores]) -> Scores | None:
    """One row: itself, with its intervals. Several (models, or sites): their mean, with the range instead."""
    if len(rows) < 2:
        return rows[0] if rows else None
    result: Scores = {}
    for metric in METRICS:
        known = [r[metric] for r in rows if r.get(metric) is not None]
        result[metric] = float(np.mean(known)) if known else None
        result[f"{metric}_range"] = [min(known), max(known)] if known else None
    return result | {"n": max(r["n"] for r in rows), "models": len(rows)}
