"""What the summary and the report say of a run besides its scores: hospitals, the model, a few patients to look at."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from client.records import SiteRecords
from configs.schema import Config
from configs.stages import OptimConfig
from medmap_model.contract import STAGES
from medmap_model.model import MedMAP, describe
from medmap_model.shift import FEATURES, features, sums
from medmap_model.vocabulary import Organ, Vocabulary
from server.shift import shift_between
from simulation.conditions import Hospital

_SHOWN = 5  # problems of a site told before it trains


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


def at_start(config: Config, model: MedMAP, records: Mapping[str, SiteRecords]) -> list[str]:
    """What to see before anything trains: volumes left out, sizes per module group, steps to come.

    Memory: parameters, their gradients and AdamW's two moments, in float32.
    """
    patients = {site: n for site, r in records.items() if (n := r.splits().get("train", 0))}
    groups = describe(model)
    total = sum(g.parameters for g in groups)
    lines = []
    for site, r in records.items():
        lines += [f"{site}: left out, {problem}" for problem in r.problems[:_SHOWN]]
        if len(r.problems) > _SHOWN:
            lines.append(f"{site}: and {len(r.problems) - _SHOWN} more; `medmap-client check` lists them all")
    lines += [f"model {model.config.name}: {total:,} parameters, {16 * total / 1e6:.0f} MB with gradients and AdamW"]
    kinds: dict[tuple[str, int], list[str]] = {}
    for g in groups:
        kind, _, name = g.name.partition("/")
        kinds.setdefault((kind, g.parameters), []).append(name)
    for (kind, parameters), names in kinds.items():
        count = f"{len(names)} x " if len(names) > 1 else ""
        name = f"{kind}/{names[0]}" if len(names) == 1 and names[0] else kind
        lines.append(f"  {name:<16}{count + format(parameters, ','):>12} parameters, {4 * parameters / 1e6:.3f} MB")
    for stage in STAGES:
        settings: OptimConfig = getattr(config.stage, stage)
        steps = sum(math.ceil(n / settings.batch_size) for n in patients.values()) * settings.epochs
        lines.append(
            f"{stage}: {settings.rounds} rounds x {len(patients)} sites, {steps} steps a round, "
            f"lr {settings.lr:g}, batch {settings.batch_size}"
        )
    return lines


def describe_shift(
    config: Config, hospitals: Sequence[Hospital], records: Mapping[str, SiteRecords], vocabulary: Vocabulary
) -> dict[str, Any] | None:
    """How far apart the hospitals' images are, from exact moments; None under privacy, where only noisy ones may show it."""
    if config.privacy.kind != "none":
        return None
    tables = {
        organ.name: {
            h.entry.name: _feature_sums(records[h.entry.name], organ, split="test" if h.external else "train")
            for h in hospitals
        }
        for organ in vocabulary.organs.values()
    }
    return shift_between(tables, vocabulary)


def _feature_sums(records: SiteRecords, organ: Organ, *, split: str) -> np.ndarray:
    """(M, EXACT) of a hospital's patients of an organ: exact, so never to leave a real one."""
    points: list[list[np.ndarray]] = [[] for _ in organ.modalities]
    for slots, cubes in records.cubes(split=split, organ=organ.name):
        for slot, cube in zip(slots, cubes.float().numpy(), strict=True):
            points[slot].append(features(cube))
    return np.stack([sums(np.reshape(own, (len(own), len(FEATURES)))) for own in points])


def describe_model(model: MedMAP) -> dict[str, Any]:
    """Parameters and megabytes, in all and per module group."""
    groups = describe(model)
    return {
        "name": model.config.name,
        "parameters": sum(g.parameters for g in groups),
        "groups": [{"name": g.name, "parameters": g.parameters, "megabytes": g.megabytes} for g in groups],
    }
