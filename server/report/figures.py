"""The report's charts: scores with intervals and learning curves as inline SVG, the headline picture as PNG.

Matplotlib is imported when a chart is drawn: a server that only runs rounds never loads it.
"""

from __future__ import annotations

import io
import os
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from server.report.run import Run, read_run
from server.report.scores import CONDITIONS, Condition, conditions, family, organs, score, test_sets

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT = "#222222", "#d5d5d5"
STYLE: Any = {  # matplotlib types the keys of its settings one by one
    "svg.fonttype": "none",  # text stays text: it scales, can be searched and is read aloud
    "svg.hashsalt": "medmap",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": "#8a8a8a",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "legend.frameon": False,
}
PANELS = (
    ("pretrain", "loss", "Stage 1 (pretrain): training loss", "contrastive loss"),
    ("pretrain", "val_loss", "Stage 1 (pretrain): validation loss", "contrastive loss"),
    ("finetune", "loss", "Stage 2 (finetune): training loss", "classification loss"),
    ("finetune", "val_score", "Stage 2 (finetune): validation AUROC", "AUROC"),
)
Curves = dict[tuple[str, str, str], list[tuple[int, float]]]  # (model, stage, figure) -> (round, value)


def score_chart(summary: dict[str, Any], organ: str) -> Markup:
    """AUROC of one organ with its intervals, by test set and condition."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        figure = figure_of(4.6, 0.55 + 0.78 * len(test_sets(summary)))
        _dots(figure.subplots(), summary, organ)
        return svg(
            figure,
            f"AUROC for {organ} with intervals, by test set and way of training; the table has the values.",
        )


def curve_conditions(run: Run) -> list[Condition]:
    """The conditions that have any learning curve, in the report's order."""
    found = {family(name) for name, _, _ in _curves(run)}
    return [c for c in CONDITIONS.values() if c.key in found]


def curve_charts(run: Run) -> list[Markup]:
    """Learning curves: one small chart per stage and figure that has any point."""
    from matplotlib import rc_context
    from matplotlib.ticker import MaxNLocator

    curves, charts = _curves(run), []
    with rc_context(STYLE):
        for stage, key, title, unit in PANELS:
            lines = {name: points for (name, s, k), points in curves.items() if (s, k) == (stage, key)}
            if not lines:
                continue
            figure = figure_of(4.2, 2.7)
            axes = figure.subplots()
            for name, points in sorted(lines.items(), key=lambda kv: -_rank(kv[0])):
                _line(axes, name, points)
            axes.set_title(title, fontsize=9.5, loc="left")
            axes.set_xlabel("round")
            axes.set_ylabel(unit)
            last = max(n for points in lines.values() for n, _ in points)
            axes.set_xlim(0.5, last + 0.5)  # so that a single round is marked as 1, and no fraction beside it
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
            axes.grid(axis="y", color=FAINT, linewidth=0.6)
            charts.append(svg(figure, f"{title} against round, for {_names(lines)}."))
    return charts


def headline_figure(run_dir: Path, path: Path) -> Path:
    """The picture for a README: one panel per organ, AUROC with intervals by test set and way of training."""
    from matplotlib import rc_context

    summary = read_run(run_dir).summary
    names = organs(summary) or ["no scores"]
    with rc_context({**STYLE, "font.size": 11}):
        figure = figure_of(5.2 * len(names), 1.9 + 0.95 * max(len(test_sets(summary)), 1))
        panels = figure.subplots(1, len(names), squeeze=False)[0]
        for axes, organ in zip(panels, names, strict=True):
            _dots(axes, summary, organ)
            axes.set_title(organ, fontsize=13, loc="left", fontweight="bold", parse_math=False)
            axes.label_outer()
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=max(len(labels), 1))
        kind = (summary.get("data") or {}).get("kind")
        origin = {"phantom": "simulated phantom patients", "real": "phantom and a few real patients"}
        title = f"Test AUROC on {origin.get(str(kind), 'the test patients')}"
        figure.suptitle(title, fontsize=12, x=0.01, ha="left")
        temporary = path.with_name(f".{path.name}.tmp")
        figure.savefig(temporary, format="png", dpi=160, facecolor="white", metadata={"Software": None})
        os.replace(temporary, path)
    return path


def _dots(axes: Axes, summary: dict[str, Any], organ: str) -> None:
    """Dot and whisker, the test sets from top to bottom, the conditions side by side within each."""
    kinds, sets = conditions(summary), test_sets(summary)
    step, lowest = 0.78 / max(len(kinds), 1), 0.5
    for i, c in enumerate(kinds):
        scores = [(y, score(summary, t.key, c.key, organ)) for y, t in enumerate(sets)]
        known = [(y + (i - (len(kinds) - 1) / 2) * step, s) for y, s in scores if s.value is not None]
        for y, s in known:
            ends = s.interval or s.spread
            if ends:
                width = 1.8 if s.interval else 0.8
                axes.plot(ends, [y, y], color=c.colour, linewidth=width, solid_capstyle="butt")
        values, heights = [s.value or 0.0 for _, s in known], [y for y, _ in known]
        axes.plot(values, heights, c.marker, color=c.colour, markersize=5.5, label=c.label)
        lowest = min([lowest, *values, *(ends[0] for _, s in known if (ends := s.interval or s.spread))])
    axes.axvline(0.5, color="#8a8a8a", linewidth=0.8, linestyle=(0, (2, 2)))
    for y in range(1, len(sets)):
        axes.axhline(y - 0.5, color=FAINT, linewidth=0.6)
    axes.set_yticks(range(len(sets)), [t.label for t in sets])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(max(len(sets), 1) - 0.5, -0.5)
    axes.set_xlim(max(lowest - 0.03, 0.0), 1.01)
    axes.set_xlabel("AUROC (dotted line: chance)\nthick: 95 % interval, thin: range over sites")


def _line(axes: Axes, name: str, points: list[tuple[int, float]]) -> None:
    c, alone = CONDITIONS.get(family(name)), family(name) != name
    axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        color=c.colour if c else "#777777",
        linestyle=c.dash if c else "-",
        marker=c.marker if c and len(points) <= 12 and not alone else None,
        markersize=3.5,
        linewidth=1.0 if alone else 1.7,
        alpha=0.85 if alone else 1.0,
    )


def _curves(run: Run) -> Curves:
    """Every curve of the run: from the metric lines; a condition that has none there, from the summary."""
    curves: Curves = {}
    for row in run.rounds:
        for key in ("loss", "val_loss", "val_score"):
            _add(curves, (str(row["condition"]), str(row["stage"]), key), int(row["round"]), row.get(key))
    logged = {name for name, _, _ in curves}
    stages = {"federated": run.summary.get("stages"), **(run.summary.get("baseline_stages") or {})}
    for name, by_stage in stages.items():
        for stage, figures in ({} if name in logged else by_stage or {}).items():
            for key in ("loss", "val_loss", "val_score"):
                for i, value in enumerate((figures or {}).get(key) or [], start=1):
                    _add(curves, (name, stage, key), i, value)
    return curves


def _add(curves: Curves, key: tuple[str, str, str], number: int, value: Any) -> None:
    # A validation loss of -1 is how a site without validation patients says that it has none.
    if value is not None and not (key[2] == "val_loss" and value == -1):
        curves.setdefault(key, []).append((number, float(value)))


def _rank(name: str) -> int:
    """Federated is drawn last, on top."""
    order = list(CONDITIONS)
    return order.index(family(name)) if family(name) in order else len(order)


def _names(lines: dict[str, Any]) -> str:
    return ", ".join(dict.fromkeys(family(name) for name in sorted(lines, key=_rank)))


def figure_of(width: float, height: float) -> Figure:
    """An empty figure; width and height in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def svg(figure: Figure, alternative: str) -> Markup:
    """The figure as an SVG element for a page: no prolog, no own style, ids that no other chart has."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s(?:xmlns(?::\w+)?|version)="[^"]*"', "", text)
    prefix = f"c{zlib.crc32(alternative.encode()):08x}-"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'(href="|url\()#', rf"\g<1>#{prefix}", text)
    label = Markup('<svg role="img" aria-label="{}"').format(alternative)
    return Markup(text.replace("<svg", str(label), 1))
