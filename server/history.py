"""The rounds of a federation as lines of metrics.jsonl: the file, and figures over them (curves per stage, traffic, means)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medmap_model.contract import STAGES

if TYPE_CHECKING:  # `medmap-server status` reads lines, and needs neither Flower nor torch for it
    from server.round import Round
    from server.state import State

FILE = "metrics.jsonl"
Line = Mapping[str, Any]


def line(state: State, now: Round, *, rounds: int, wall_s: float) -> dict[str, Any]:
    """A round that has just ended, with a quorum."""
    back, figures = now.back, now.back.figures
    return {
        "condition": state.condition,
        "stage": state.stage,
        "round": state.round,
        "rounds": rounds,
        "loss": mean(figures, "loss"),
        "val_loss": None,  # known when the sites have seen this round's model
        "val_score": None,
        "wall_s": wall_s,
        "bytes_down": now.bytes_down(),
        "bytes_up": sum(back.up.values()),
        "bytes_up_per_group": dict(sorted(back.up.items())),
        "sites": {s: dict(sorted(figures[s].items())) for s in sorted(figures)},
        "groups": now.behind,
        "returned": sorted(figures),
        "missing": sorted(now.missing),
        "refused": [{"site": s, "reason": back.refused[s]} for s in sorted(back.refused)],
        "absent": sorted(now.absent),
        "alarms": now.alarms,
        "chosen": now.chosen,
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


def participation(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Round by round who returned an update, who was silent (missing), refused or away, for `summary.json`."""
    kept = ("stage", "round", "returned", "missing", "refused", "absent")
    return [{k: line.get(k, []) for k in kept} for line in lines]


def who_was_missing(line: Line) -> str:
    """The sites without an update in a round: `without west (silent), south (refused)`; empty when there are none."""
    gone = [f"{site} ({state})" for site, state in sorted(_gone(line).items())]
    return f"without {', '.join(gone)}" if gone else ""


def who_took_part(lines: Sequence[Line], condition: str) -> list[str]:
    """What a finished run says of who took part, a sentence a site; of a baseline only where somebody was missing."""
    rounds, returned = len(lines), Counter(site for line in lines for site in line["returned"])
    gone: dict[str, dict[str, dict[str, list[str]]]] = {}
    for line in lines:
        for site, state in _gone(line).items():
            gone.setdefault(site, {}).setdefault(state, {}).setdefault(line["stage"], []).append(str(line["round"]))
    names = sorted({*returned, *gone})
    if not gone and len(set(returned.values())) == 1:
        return [f"all {len(names)} sites returned an update in all {rounds} rounds"] * (condition == "federated")
    return [f"{site}: an update in {returned[site]} of {rounds} rounds{_when(gone.get(site, {}))}" for site in names]


def _gone(line: Line) -> dict[str, str]:
    """Site -> silent, refused or absent, of those that returned no update."""
    refused = [r["site"] for r in line["refused"]]
    away = line.get("absent", [])  # runs of before have none
    return dict.fromkeys(line["missing"], "silent") | dict.fromkeys(refused, "refused") | dict.fromkeys(away, "absent")


def _when(gone: Mapping[str, Mapping[str, Sequence[str]]]) -> str:
    told = [f"{state} in {stage} {', '.join(n)}" for state, stages in gone.items() for stage, n in stages.items()]
    return f" ({'; '.join(told)})" if told else ""


def mean(replies: Mapping[str, Mapping[str, float]], key: str, weight: str = "") -> float | None:
    """Mean over the sites that sent the figure, each by its figure `weight` or alike; summed in site order, so that arrival
    does not matter. None where nobody sent it, or sites sent what has no mean: no figure of theirs may end the run."""
    rows = [(r[key], r.get(weight, 1.0)) for _, r in sorted(replies.items()) if key in r]
    total = sum(w for _, w in rows)
    with np.errstate(over="ignore", invalid="ignore"):
        found = float(np.dot([v for v, _ in rows], [w for _, w in rows]) / total) if total > 0 else np.inf
    return found if np.isfinite(found) else None
