"""The report's charts of the federated model's quality: ROC with operating points, and reliability, as inline SVG."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from server.report.figures import FAINT, INK, STYLE, figure_of, svg
from server.report.formats import words

# Okabe and Ito, darkened as the conditions' colours; an eighth class starts again, dashed.
COLOURS = ("#0072B2", "#D55E00", "#007A5A", "#444444", "#B0467F", "#8A6D00", "#3D8FBF")


def quality_charts(summary: dict[str, Any]) -> list[Markup]:
    """Per organ of `curves`: one ROC chart and one reliability chart; without those that have no point."""
    from matplotlib import rc_context

    charts = []
    with rc_context(STYLE):
        for organ, curves in (summary.get("curves") or {}).items():
            if (curves or {}).get("roc"):
                charts.append(_roc(organ, curves["roc"]))
            if (curves or {}).get("reliability"):
                charts.append(_reliability(organ, curves["reliability"]))
    return charts


def _roc(organ: str, by_class: dict[str, Any]) -> Markup:
    figure = figure_of(4.2, 3.6)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#8a8a8a", linewidth=0.8, linestyle=(0, (2, 2)))
    for i, (name, curve) in enumerate(by_class.items()):
        colour, dash = COLOURS[i % len(COLOURS)], "-" if i < len(COLOURS) else "--"
        x, y = zip(*curve["points"], strict=True)
        axes.plot(x, y, color=colour, linestyle=dash, linewidth=1.4, label=words(name))
        if curve.get("at"):
            axes.plot(*[[v] for v in curve["at"]], "o", color=colour, markersize=5.5, markeredgecolor="white")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_title(f"{organ}: ROC, common test set", fontsize=9.5, loc="left", parse_math=False)
    axes.set_xlabel("1 − specificity (dotted line: chance)")
    axes.set_ylabel("sensitivity")
    axes.legend(loc="lower right", fontsize=8)
    return svg(
        figure, f"ROC curves of {organ} on the common test set; dots: operating points. Classes: {_names(by_class)}."
    )


def _reliability(organ: str, bins: list[dict[str, Any]]) -> Markup:
    figure = figure_of(4.2, 3.6)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#8a8a8a", linewidth=0.8, linestyle=(0, (2, 2)))
    most = max(b["n"] for b in bins)
    confidence, accuracy = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
    axes.vlines(confidence, confidence, accuracy, color=FAINT, linewidth=1.2, zorder=1)
    axes.scatter(confidence, accuracy, s=[12 + 110 * b["n"] / most for b in bins], color=COLOURS[0], alpha=0.8)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.04, 1.04)
    axes.set_title(f"{organ}: reliability, common test set", fontsize=9.5, loc="left", color=INK, parse_math=False)
    axes.set_xlabel("confidence (dot: a bin, larger with more patients)")
    axes.set_ylabel("share that was right")
    return svg(figure, f"Reliability of {organ}: the share that was right against confidence, in {len(bins)} bins.")


def _names(by_class: dict[str, Any]) -> str:
    return ", ".join(words(name) for name in by_class)
