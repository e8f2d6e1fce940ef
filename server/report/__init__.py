"""The run's report: `summary.json` and its neighbours in, one self-contained `report.html` out.

The page loads nothing and runs nothing: charts are inline SVG, slices are data URIs, and a content security
policy in the page itself forbids the rest. Names and report texts come from sites and are escaped.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server.report import figures, findings, formats, robustness, subgroups, tables
from server.report.alarms import ALARMS, alarms_view
from server.report.contents import contents
from server.report.figures import headline_figure
from server.report.page import PAGE
from server.report.participation import PARTICIPATION, participation_view
from server.report.partition import PARTITION, partition_view
from server.report.parts import COSTS, MACROS
from server.report.private import PRIVACY, privacy_view
from server.report.quality import quality_charts
from server.report.run import Run, read_run
from server.report.scores import MEASURES, conditions, organs
from server.report.sections import EVALUATION, SUBGROUPS
from server.report.shift import SHIFT, shift_view
from server.report.style import STYLE

__all__ = ["headline_figure", "write_report"]


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run's folder and return its path. Needs a `summary.json` there."""
    page = _render(read_run(run_dir))
    path = run_dir / "report.html"
    temporary = path.with_name(".report.html.tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)  # a reader sees the old page or the new one, never half of it
    return path


def _render(run: Run) -> str:
    from jinja2 import DictLoader, Environment

    parts = {"page.html": PAGE, "macros.html": MACROS, "costs.html": COSTS, "style.css": STYLE}
    parts["participation.html"] = PARTICIPATION
    parts |= {
        "subgroups.html": SUBGROUPS,
        "evaluation.html": EVALUATION,
        "privacy.html": PRIVACY,
        "alarms.html": ALARMS,
        "partition.html": PARTITION,
        "shift.html": SHIFT,
    }
    environment = Environment(loader=DictLoader(parts), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    for name in ("number", "signed", "count", "interval", "spread", "percent", "size", "duration", "words", "listed"):
        environment.filters[name] = _or_none(getattr(formats, name))
    view = _view(run)
    view["sections"], view["left_out"] = contents(view, run.summary)
    return environment.get_template("page.html").render(view)


def _view(run: Run) -> dict[str, Any]:
    """All that the page shows, by the names that its templates use."""
    summary = run.summary
    names = organs(summary)
    return {
        "summary": summary,
        "training_sites": sum(not site.get("external") for site in summary.get("sites") or []),
        "notices": findings.notices(summary),
        "headline": findings.headline(summary),
        "findings": findings.findings(summary),
        "score_tables": [tables.score_table(summary, organ) for organ in names],
        "score_charts": {organ: figures.score_chart(summary, organ) for organ in names},
        "measures": list(MEASURES.values()),
        "operating_points": subgroups.operating_points(summary),
        "quality": quality_charts(summary),
        "subgroups": subgroups.subgroup_tables(summary),
        "evaluation": robustness.evaluation_view(summary),
        "conditions": conditions(summary),
        "curve_conditions": figures.curve_conditions(run),
        "curves": figures.curve_charts(run),
        "heat_maps": tables.heat_maps(summary),
        "partition": partition_view(summary),
        "shift": shift_view(summary),
        "ownership": tables.ownership(summary),
        "participation": participation_view(summary, run.rounds),
        "alarms": alarms_view(run.rounds),
        "examples": run.examples,
        "overlays": any(m.get("overlay_uri") for e in run.examples for m in e.get("modalities") or []),
        "groups": tables.module_groups(summary),
        "communication": tables.communication(summary),
        "timing": tables.timing(summary),
        "private": privacy_view(summary),
        "config": run.config,
    }


def _or_none(format_value: Callable[..., str]) -> Callable[..., str]:
    """A filter to which a key that the summary lacks is the same as a null: both become a dash."""
    from jinja2 import Undefined

    def filter_value(value: Any, *args: Any) -> str:
        return format_value(None if isinstance(value, Undefined) else value, *args)

    return filter_value
