"""The end of a run in the terminal: one table from summary.json, and where to look next."""

from __future__ import annotations

import json
from pathlib import Path

SETS = {"metrics": "common", "metrics_own": "own", "metrics_external": "external"}
ROWS = {
    "pooled": "pooled (not possible in practice)",
    "federated": "federated",
    "naive": "naive FedAvg",
    "local": "local only",
}


def print_summary(run_dir: Path) -> None:
    """AUROC of every condition, organ and test set."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    console = Console()
    organs = [o for o in summary["cross_site"]["organ"] if any((summary["metrics"].get(c) or {}).get(o) for c in ROWS)]
    table = Table(title="AUROC on patients never trained on", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("")
    for organ in organs:
        for name in SETS.values():
            table.add_column(f"{organ}\n{name}", justify="right")
    for condition, label in ROWS.items():
        if not summary["metrics"].get(condition):
            continue
        cells = []
        for organ in organs:
            for key in SETS:
                value = ((summary[key].get(condition) or {}).get(organ) or {}).get("auroc")
                cells.append("–" if value is None else f"{value:.3f}")
        table.add_row(label, *cells, style="bold" if condition == "federated" else None)
    console.print(table)
    console.print(
        "common: every hospital's scanner and modalities, balanced. own: each hospital's own patients, mean.\n"
        "external: a hospital never trained on.",
        style="dim",
    )
    if summary["data"]["kind"] != "manifest":
        console.print(summary["data"]["note"], style="yellow")
    sent = summary["communication"]["bytes_up"] + summary["communication"]["bytes_down"]
    took, memory = summary["timing"]["wall_s"], summary["peak_memory_mb"]
    console.print(f"{took:.0f} s, {sent / 1e6:.1f} MB of parameters travelled, peak memory {memory:.0f} MB a process")
    console.print(f"Report: {run_dir / 'report.html'}", soft_wrap=True)
