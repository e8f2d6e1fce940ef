"""A run and its server, for a terminal: what they do, how far they are, and how each site is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from server.progress import clean, clock_time
from server.running.folder import ago_s, partial

_NEXT = {
    "failed": "to go on: {resume}",
    "cut off": "nobody works on it; to go on: {resume}",
    "stopped": "to go on: {resume}",
}


def round_line(line: Mapping[str, Any]) -> str:
    """One round, as `status` and `run` print it."""
    loss, score = line["loss"], line["val_score"]
    return clean(
        f"{line['stage']:<9} round {line['round']:>3}/{line['rounds']:<3}"
        f"  loss {'-' if loss is None else f'{loss:.4f}':<8}"
        f"  validation AUROC {'-' if score is None else f'{score:.3f}':<6}"
        f"  {len(line['returned'])} sites, {line['wall_s']:.1f} s"
        + (f"  missing: {', '.join(line['missing'])}" if line["missing"] else "")
        + (f"  absent: {', '.join(line['absent'])}" if line.get("absent") else "")
        + "".join(f"  refused: {r['site']} ({r['reason']})" for r in line["refused"])
    )


def server_line(server: Mapping[str, Any]) -> str:
    """How the server is."""
    return f"server    {server['state']} ({server['detail']})"


def lines(told: Mapping[str, Any]) -> Iterator[str]:
    """What `server.running.folder.standing` tells, in lines."""
    if told["server"] is not None:
        yield server_line(told["server"])
    live = told["live"]
    yield from (round_line(line) for line in told["rounds"])
    if live is not None and told["state"] != "complete":
        yield _now(live)
        yield from _sites(live["sites"])
    yield _verdict(told)


def _now(live: Mapping[str, Any]) -> str:
    parts = [f"now       {live['phase']}"]
    if live["stage"]:
        parts.append(
            f"{live['stage']} round {live['round']} of {live['rounds']} ({live['done']} of {live['total']} done)"
        )
    if live["seconds_per_round"] is not None:
        parts.append(f"a round takes {clock_time(live['seconds_per_round'])}")
    if live["eta_s"] is not None:
        parts.append(f"{clock_time(live['eta_s'])} left")
    parts.append(f"last news {_ago(live['updated'])}")
    parts += [clean(live[k]) for k in ("void", "error") if live.get(k)]
    return ", ".join(parts)


def _sites(sites: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    if not sites:
        return
    rows = [("site", "state", "since", "last seen", "round", "took", "budget left", "reason")]
    for name, site in sorted(sites.items()):
        budget, took = site["budget"], site["seconds"]
        rows.append(
            (
                clean(name),
                site["state"],
                _ago(site["since"]),
                _ago(site["last_seen"]),
                "-" if site["last_round"] is None else str(site["last_round"]),
                "-" if took is None else clock_time(took),
                "-" if budget is None else f"{budget['budget'] - budget['spent']:.3g} of {budget['budget']:g}",
                clean(site["reason"] or ""),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _verdict(told: Mapping[str, Any]) -> str:
    if told["state"] == "complete":
        return f"complete{clean(partial(told['rounds']))}"
    folder = Path(told["folder"])
    resume = f"medmap-server resume {folder}" if told["attempts"] else f"medmap-sim resume={folder}"
    hint = _NEXT.get(told["state"], "").format(resume=resume)
    return f"{told['state']}{f'; {hint}' if hint else ''}"


def _ago(when: str | None) -> str:
    seconds = ago_s(when)
    return "-" if seconds is None else f"{clock_time(seconds)} ago"
