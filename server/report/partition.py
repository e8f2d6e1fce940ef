"""The report's picture of the partition: which site has which patients and modalities; from `summary["partition"]`.

    {"organs": {ORGAN: {"labels": [..], "modalities": [..]}},
     "sites": [{"name", "external", "patients": {SPLIT: n}, "reports": n, "organs": {ORGAN: {"patients": n,
                "labels": {LABEL: n}, "modalities": {MODALITY: n}}}}]}

Counts of an organ are of training patients; of an external site, of its test patients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server.report.figures import FAINT, INK, STYLE, figure_of, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
_NAMED = 60  # sites whose names and numbers can be read in one picture
_LOWEST, _HIGHEST = 1.3, 14.0  # inches of an organ's row


def partition_view(summary: Row) -> Row | None:
    """chart; None when the run does not tell of its partition."""
    told = summary.get("partition") or {}
    if not told.get("sites") or not told.get("organs"):
        return None
    from matplotlib import rc_context

    with rc_context(STYLE):
        text = "Training patients by abnormality, and who has which modality, per site; the tables below have numbers."
        return {"chart": svg(partition_figure(told), text)}


def partition_figure(told: Row) -> Figure:
    """A row per organ: on the left patients by abnormality, on the right the share of them who have each modality."""
    shown = {o: [s for s in told["sites"] if o in s["organs"]] for o in told["organs"]}
    heights = [min(_HIGHEST, max(_LOWEST, 0.8 + 0.26 * len(sites))) for sites in shown.values()]
    figure = figure_of(9.2, sum(heights) + 0.5)
    grid = figure.add_gridspec(len(shown), 2, width_ratios=(1.25, 1), height_ratios=heights)
    for row, (organ, sites) in enumerate(shown.items()):
        names, left = told["organs"][organ], figure.add_subplot(grid[row, 0])
        _labels(left, organ, sites, names["labels"])
        below = (0.5, -0.32 / (heights[row] - 0.6))  # clear of the axis' numbers, whatever the height
        left.legend(fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=below)
        _modalities(figure.add_subplot(grid[row, 1]), organ, sites, names["modalities"])
    return figure


def _labels(axes: Axes, organ: str, sites: list[Row], labels: list[str]) -> None:
    """Stacked bars, a site per line."""
    from matplotlib import colormaps

    palette = colormaps["tab10" if len(labels) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    ends = [0] * len(sites)
    for i, label in enumerate(labels):
        counts = [s["organs"][organ]["labels"].get(label, 0) for s in sites]
        colour = "#b5b5b5" if label == "not known" else palette[i % len(palette)]
        axes.barh(range(len(sites)), counts, left=ends, color=colour, height=0.72, label=label.replace("_", " "))
        ends = [end + n for end, n in zip(ends, counts, strict=True)]
    axes.set_title(f"{organ}: patients who train", loc="left", fontsize=9.5, color=INK)
    named = len(sites) <= _NAMED
    names = [f"{s['name']} (test)" if s.get("external") else s["name"] for s in sites]
    axes.set_yticks(range(len(sites)) if named else [], names if named else [], parse_math=False)
    axes.set_ylim(len(sites) - 0.5, -0.5)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)


def _modalities(axes: Axes, organ: str, sites: list[Row], modalities: list[str]) -> None:
    """A cell per site and modality: per cent of the patients who have it; empty where none has."""
    shares = [
        [s["organs"][organ]["modalities"].get(m, 0) / max(1, s["organs"][organ]["patients"]) for m in modalities]
        for s in sites
    ]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=2, aspect="auto", interpolation="nearest")
    if len(sites) <= _NAMED:
        for y, row in enumerate(shares):
            for x, share in enumerate(row):
                axes.text(x, y, f"{100 * share:.0f}" if share else "–", ha="center", va="center", fontsize=7.5)
    axes.set_title("per cent of them who have the modality", loc="left", fontsize=9.5, color=INK)
    axes.set_xticks(range(len(modalities)), modalities, fontsize=7.5, parse_math=False)
    if len(modalities) > 5:
        for text in axes.get_xticklabels():
            text.set(rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks([])
    axes.tick_params(axis="x", length=0)
    axes.spines[:].set_visible(False)


PARTITION = """
{% if "partition" in sections %}
<section aria-labelledby="partition">
<h2 id="partition">Who has what</h2>
<p class="soft">Before anything trained: training patients of each site by abnormality, and how many of them have each
  modality. Of an external site: its test patients.</p>
<div class="wide">{{ partition.chart }}</div>
</section>
{% endif %}
"""
