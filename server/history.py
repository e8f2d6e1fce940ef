"""The rounds of a federation as lines of metrics.jsonl: the file, and figures over them (curves per stage, traffic, means)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from medmap_model.contract import STAGES
from server.replies import Replies
from server.state import State

FILE = "metrics.jsonl"
Line = Mapping[str, Any]


def line(
    state: State,
    back: Replies,
    *,
    asked: Set[str],
    rounds: int,
    wall_s: float,
    bytes_down: int,
) -> dict[str, Any]:
    """A round that has just ended. asked: the sites that were to return an update."""
    figures = back.figures
    return {
        "condition": state.condition,
        "stage": state.stage,
        "round": state.round,
        "rounds": rounds,
        "loss": mean(figures, "loss", "studies"),
        "val_loss": None,  # known when the sites have seen this round's model
        "val_score": None,
        "wall_s": wall_s,
        "bytes_down": bytes_down,
        "bytes_up": sum(back.up.values()),
        "bytes_up_per_group": dict(sorted(back.up.items())),
        "sites": {s: dict(sorted(figures[s].items())) for s in sorted(figures)},
        "returned": sorted(figures),
        "missing": sorted(asked - set(figures) - set(back.refused)),
        "refused": [{"site": s, "reason": back.refused[s]} for s in sorted(back.refused)],
    }


def append(path: Path, line: Line) -> None:
    """Add a round's line."""
    with path.open("a", encoding="utf-8") as f:
        f.write(json.dumps(line, allow_nan=False) + "\n")


def reopen(path: Path, lines: int) -> list[dict[str, Any]]:
    """The lines that the checkpoint stands on; those of a round that was cut off are dropped from the file."""
    kept = path.read_text(encoding="utf-8").splitlines()[:lines] if lines else []
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    temporary.replace(path)
    return [json.loads(line) for line in kept]


def curves(lines: Sequence[Line]) -> dict[str, Any]:
    """Per stage: rounds done, and loss, validation loss and validation score of each."""
    found = {}
    for stage in STAGES:
        mine = [line for line in lines if line["stage"] == stage]
        found[stage] = {"rounds": len(mine)} | {k: [x[k] for x in mine] for k in ("loss", "val_loss", "val_score")}
    return found


def traffic(lines: Sequence[Line]) -> dict[str, Any]:
    """Bytes of parameters sent and received, in all and per module group."""
    per_group: dict[str, int] = {}
    for line in lines:
        for group, n in line["bytes_up_per_group"].items():
            per_group[group] = per_group.get(group, 0) + n
    return {
        "bytes_down": sum(line["bytes_down"] for line in lines),
        "bytes_up": sum(line["bytes_up"] for line in lines),
        "per_group": per_group,
    }


def mean(replies: Mapping[str, Mapping[str, float]], key: str, weight: str) -> float | None:
    """Mean over the sites that sent the figure, weighted; summed in site order, so that arrival does not matter."""
    rows = [(r[key], r.get(weight, 1.0)) for _, r in sorted(replies.items()) if key in r]
    total = sum(w for _, w in rows)
    return float(np.dot([v for v, _ in rows], [w for _, w in rows]) / total) if total > 0 else None
