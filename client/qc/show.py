"""What quality control found, on the screen: remarks, then the medians of each modality."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.check import counted, row_ranges
from client.qc.measures import MEASURES
from client.qc.remarks import Remark, Volume
from client.qc.run import Quality

_ABREAST = 4
_STYLES = {"failed": "bold red", "warning": "bold yellow"}


def show(found: Quality, console: Console) -> None:
    """Print remarks (those of one kind in a line), the medians, and the verdict."""
    remarks = found.remarks
    if remarks:
        console.print(_remarks(remarks))
    if found.volumes:
        console.print(*_medians(found.volumes))
        console.print(
            Text("In brackets: of how many volumes, where not of all. docs/qc.md says what is measured.", "dim")
        )
    failed, warnings = found.count("failed"), found.count("warning")
    told = f"{counted(len(found.volumes), 'volume')} measured: {counted(failed, 'failure')}, {counted(warnings, 'warning')}."
    console.print(Text(told, "bold red" if failed else "bold yellow" if warnings else "bold green"))


def _remarks(remarks: Sequence[Remark]) -> Table:
    groups: dict[tuple[str, str, str], list[Remark]] = {}
    for r in remarks:
        groups.setdefault((r.grade, r.detail or r.text, r.remedy), []).append(r)
    table = Table(box=box.SIMPLE_HEAD, title="Remarks", title_justify="left", title_style="bold", pad_edge=False)
    for name, ratio in (("row", None), ("grade", None), ("found", 3), ("what to do", 3)):
        table.add_column(name, ratio=ratio, overflow="fold")
    for (grade, text, remedy), alike in groups.items():
        rows = row_ranges([row for r in alike for row in r.rows])
        found = alike[0].told if len(alike) == 1 else text
        table.add_row(Text(rows), Text(grade, _STYLES[grade]), Text(found), Text(remedy))
    return table


def _medians(volumes: Sequence[Volume]) -> Iterator[Table]:
    """A row per measure, as many modalities side by side as a narrow screen holds."""
    everything = list(grouped(volumes))
    for groups in (everything[i : i + _ABREAST] for i in range(0, len(everything), _ABREAST)):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("median")
        for modality, _ in groups:
            table.add_column(modality, justify="right")
        table.add_row("volumes", *(str(len(group)) for _, group in groups))
        for measure in MEASURES:
            title = measure.title + (f", {measure.unit}" if measure.unit else "")
            table.add_row(title, *(median_of(group, measure.name) for _, group in groups))
        yield table


def grouped(volumes: Sequence[Volume]) -> Iterator[tuple[str, list[Volume]]]:
    """(modality, its volumes), in the order of the manifest."""
    for modality in dict.fromkeys(v.modality for v in volumes):
        yield modality, [v for v in volumes if v.modality == modality]


def median_of(group: Sequence[Volume], name: str) -> str:
    """The median of a measure, and of how many volumes where it is not all; a dash where none has it."""
    values = [v.values[name] for v in group if name in v.values]
    if not values:
        return "–"
    return f"{np.median(values):.3g}" + (f" ({len(values)})" if len(values) < len(group) else "")
