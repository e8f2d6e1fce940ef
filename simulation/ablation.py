"""A sweep's rows -> what each setting brings: mean and spread over seeds, paired differences from the first, table, figure.

The first value of what is swept is the reference: in the ablation the full model.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

METRICS = ("auroc", "balanced_accuracy")
Row = Mapping[str, Any]


def means(rows: Sequence[Row], keys: Sequence[str]) -> list[dict[str, Any]]:
    """A row per setting, condition, organ and test set: mean and sd over seeds, and of the differences from the reference.

    keys: the swept settings; those but `seed` tell settings apart. A difference is between runs of the same seed.
    """
    settings = [k for k in keys if k != "seed"]
    found: dict[tuple[Any, ...], dict[tuple[Any, ...], dict[str, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        place = (row["test_set"], row["organ"], row["condition"])
        found[place][tuple(row.get(k) for k in settings)][str(row.get("seed"))] = row
    first = next((tuple(r.get(k) for k in settings) for r in rows), ())
    table = []
    for (test_set, organ, condition), by_setting in found.items():
        for setting, by_seed in by_setting.items():
            line: dict[str, Any] = dict(zip(settings, setting, strict=True))
            line |= {"condition": condition, "organ": organ, "test_set": test_set, "seeds": len(by_seed)}
            for metric in METRICS:
                line |= _spread(metric, [r[metric] for r in by_seed.values()])
                paired = by_setting.get(first, {}) if setting != first else {}
                gaps = [
                    by_seed[s][metric] - paired[s][metric]
                    for s in by_seed
                    if s in paired and None not in (by_seed[s][metric], paired[s][metric])
                ]
                line |= _spread(f"{metric}_difference", gaps)
                line |= {
                    f"{metric}_difference_least": min(gaps, default=None),
                    f"{metric}_difference_most": max(gaps, default=None),
                }
            table.append(line)
    return table


def _spread(name: str, values: Sequence[float | None]) -> dict[str, float | None]:
    known = [float(v) for v in values if v is not None]
    return {
        f"{name}_mean": statistics.fmean(known) if known else None,
        f"{name}_sd": statistics.stdev(known) if len(known) > 1 else None,
    }


def summarise(rows: Sequence[Row], folder: Path, *, keys: Sequence[str]) -> None:
    """Write sweep_mean.csv and sweep.png into the folder, and print the table of the common test set."""
    from simulation.sweep import write_rows

    table = means(rows, keys)
    rounded = [{k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()} for line in table]
    write_rows(folder / "sweep_mean.csv", rounded)
    settings = [k for k in keys if k != "seed"]
    _print(table, settings)
    draw(rows, table, settings, folder / "sweep.png")
    print(f"Tables and figure: {folder / 'sweep.csv'}, sweep_mean.csv, sweep.png")


def _label(line: Row, settings: Sequence[str]) -> str:
    """How a setting is named in table and figure: a variant by its name alone. Experiments may vary in different things."""
    known = [(k, line[k]) for k in settings if line.get(k) is not None]
    return ", ".join(str(v) if k == "variant" else f"{k}={v}" for k, v in known) or "all runs"


def _columns(table: Sequence[Row]) -> list[tuple[str, str]]:
    """(organ, condition) in the order met."""
    return list(dict.fromkeys((line["organ"], line["condition"]) for line in table))


def _print(table: Sequence[Row], settings: Sequence[str]) -> None:
    """AUROC on the common test set: mean and sd over seeds; below it the paired difference from the first line."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    common = [line for line in table if line["test_set"] == "common"]
    seeds = max((line["seeds"] for line in common), default=0)
    title = f"AUROC, common test set: mean ± sd over {seeds} seeds; below, paired difference from the first"
    shown = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    shown.add_column("", no_wrap=True)
    columns = _columns(common)
    for organ, condition in columns:
        shown.add_column(f"{organ}\n{condition}", justify="right", no_wrap=True)
    for label in dict.fromkeys(_label(line, settings) for line in common):
        mine = {(x["organ"], x["condition"]): x for x in common if _label(x, settings) == label}
        shown.add_row(label, *(_cell(mine.get(c)) for c in columns))
    console = Console()
    console.width = max(console.width, shown.__rich_measure__(console, console.options.update(max_width=500)).maximum)
    console.print(shown)  # a narrow terminal breaks lines between cells, rather than every number in two


def _cell(line: Row | None) -> str:
    if line is None or line["auroc_mean"] is None:
        return "–"
    mean, sd = line["auroc_mean"], line["auroc_sd"]
    gap, gap_sd = line["auroc_difference_mean"], line["auroc_difference_sd"]
    text = f"{mean:.3f}" + (f" ± {sd:.3f}" if sd is not None else "")
    return text if gap is None else f"{text}\n{gap:+.3f}" + (f" ± {gap_sd:.3f}" if gap_sd is not None else "")


def draw(rows: Sequence[Row], table: Sequence[Row], settings: Sequence[str], path: Path) -> None:
    """A panel per organ: every run's AUROC on the common test set as a dot, the mean as a line, per setting and condition."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    common = [r for r in rows if r["test_set"] == "common"]
    labels = list(dict.fromkeys(_label(r, settings) for r in common))
    organs, conditions = (list(dict.fromkeys(r[k] for r in common)) for k in ("organ", "condition"))
    if not common:
        return
    size = (1.5 + 4.2 * len(organs), 1.6 + 0.55 * len(labels))
    figure, axes = plt.subplots(1, len(organs), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, organ in zip(axes[0], organs, strict=True):
        for at, condition in enumerate(conditions):
            shift = (at - (len(conditions) - 1) / 2) * 0.22
            dots = [r for r in common if (r["organ"], r["condition"]) == (organ, condition) and r["auroc"] is not None]
            y = [labels.index(_label(r, settings)) + shift for r in dots]
            axis.plot([r["auroc"] for r in dots], y, "o", color=f"C{at}", alpha=0.45, markersize=4, label=condition)
            for line in table:
                place = (line["organ"], line["condition"], line["test_set"])
                if place == (organ, condition, "common") and line["auroc_mean"] is not None:
                    height = labels.index(_label(line, settings)) + shift
                    axis.plot([line["auroc_mean"]] * 2, [height - 0.1, height + 0.1], color=f"C{at}", linewidth=2.5)
        axis.set_title(organ)
        axis.set_xlabel("AUROC, common test set (simulated patients)")
        axis.grid(axis="x", alpha=0.3)
    axes[0][0].set_yticks(range(len(labels)), labels)
    axes[0][0].invert_yaxis()
    axes[0][-1].legend(loc="best", fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
