"""Predictions on a terminal: a table with a line per study, then what was ignored, missing or wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.predict import Prediction, notices

_SHOWN = 3  # of many classes, the likeliest


def show(info: Mapping[str, Any], predictions: Sequence[Prediction], console: Console) -> None:
    """Print everything that the JSON says."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, ratio in (("study", 2), ("organ", None), ("call", 2), ("probabilities", 3), ("used", 2), ("missing", 2)):
        table.add_column(name, ratio=ratio, overflow="fold")
    for p in predictions:
        table.add_row(*map(Text, _row(p)))
    console.print(table)
    for source in dict.fromkeys((p.organ, p.source, _points(p)) for p in predictions if p.thresholds):
        organ, where, points = source
        console.print(Text(f"Operating point, {organ}: {points} ({where})"))
    for p in predictions:
        for line, style in _lines(p):
            console.print(Text(f"{_name(p)}: {line}", style))
    for notice in notices(info):
        console.print(Text(notice, "bold yellow"))


def _row(p: Prediction) -> tuple[str, ...]:
    if p.probabilities is None:
        return _name(p), p.organ or "", "–", f"none: {p.reason}", ", ".join(p.used), ", ".join(p.missing)
    likeliest = sorted(p.probabilities.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{c} {value:.3f}" for c, value in likeliest[:_SHOWN])
    call = ", ".join(p.call or []) or "none"
    return _name(p), p.organ or "", call, shown, ", ".join(p.used), ", ".join(p.missing)


def _points(p: Prediction) -> str:
    """Thresholds; two exclusive classes have one decision, so one threshold says it."""
    thresholds = list((p.thresholds or {}).items())
    return ", ".join(f"{c} {t:.3f}" for c, t in (thresholds[1:] if len(thresholds) == 2 else thresholds))


def _lines(p: Prediction) -> list[tuple[str, str]]:
    lines = [(f"ignored {i.file}: {i.reason}", "dim") for i in p.ignored]
    lines += [(str(problem), "red") for problem in p.problems]
    return lines + [(note, "yellow") for note in p.notes]


def _name(p: Prediction) -> str:
    return p.study_id if p.study_id.startswith(p.patient_id) else f"{p.patient_id}/{p.study_id}"
