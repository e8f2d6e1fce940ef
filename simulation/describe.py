"""What the summary and the report say of a run besides its scores: hospitals, the model, a few patients to look at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from client.records import SiteRecords
from medmap_model.model import MedMAP, describe
from medmap_model.vocabulary import Vocabulary
from simulation.conditions import Hospital


def describe_hospital(hospital: Hospital, records: SiteRecords, vocabulary: Vocabulary) -> dict[str, Any]:
    """A hospital's line in the summary: what it owns, how many, on which simulated scanner."""
    volumes, organs = records.counts("test" if hospital.external else "train")
    splits = records.splits()
    return {
        "name": hospital.entry.name,
        "external": hospital.external,
        "modalities": [m for m in vocabulary.modalities if volumes.get(m)],
        "organs": [o for o in vocabulary.organs if organs.get(o)],
        "volumes": {m: n for m, n in volumes.items() if n},
        "studies": {k: splits.get(k, 0) for k in ("train", "val", "test")},
        "problems": len(records.problems),
        "scanner": _scanner(hospital.entry.manifests[0].parent.parent / "dataset.json", hospital.entry.name),
    }


def _scanner(dataset: Path, site: str) -> str | None:
    """The simulated scanner that `dataset.json` names, if there is one."""
    try:
        spec = json.loads(dataset.read_text(encoding="utf-8"))
        return next((s.get("scanner") for s in spec["sites"] if s["name"] == site), None)
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def describe_model(model: MedMAP) -> dict[str, Any]:
    """Parameters and megabytes, in all and per module group."""
    groups = describe(model)
    return {
        "name": model.config.name,
        "parameters": sum(g.parameters for g in groups),
        "groups": [{"name": g.name, "parameters": g.parameters, "megabytes": g.megabytes} for g in groups],
    }
