"""The report's view of privacy: a picture of each ledger, validation from noisy histograms, and statistics of the cohorts."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from server.report.figures import FAINT, INK, STYLE, figure_of, svg
from server.report.scores import Score

SPENT, LEFT = "#4c78a8", "#e4e4e4"
Row = dict[str, Any]


def privacy_view(summary: Row) -> Row:
    """rows (one per ledger), whole (the ledgers themselves, not only what sites told), chart, validation and statistics."""
    ledgers = summary.get("privacy") or {}
    return {
        "rows": [{"site": site, **told} for site, told in ledgers.items()],
        "whole": any(told.get("delta") for told in ledgers.values()),
        "chart": _budget_chart(ledgers) if ledgers else None,
        "validation": _validation(summary.get("validation") or {}),
        "statistics": _statistics(summary.get("statistics") or {}),
    }


def _budget_chart(ledgers: dict[str, Row]) -> Markup:
    """A bar per site: the whole is its budget, the filled part what is spent; the growth by charge is the line inside."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        figure = figure_of(4.6, 0.75 + 0.34 * len(ledgers))
        axes = figure.subplots()
        for y, told in enumerate(ledgers.values()):
            budget, spent = told.get("epsilon_budget") or 0, told.get("epsilon_spent") or 0
            axes.barh(y, budget, color=LEFT, height=0.62)
            axes.barh(y, min(spent, budget), color=SPENT, height=0.62)
            label = f"{spent:.2f} of {budget:g}"
            axes.annotate(label, (budget, y), (5, 0), textcoords="offset points", va="center", color=INK, fontsize=8.5)
        axes.set_yticks(range(len(ledgers)), list(ledgers), parse_math=False)
        axes.invert_yaxis()
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("epsilon, over the ledger's life")
        axes.set_xlim(0, 1.3 * max((told.get("epsilon_budget") or 1) for told in ledgers.values()))
        axes.grid(axis="x", color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
        return svg(figure, "Epsilon spent and left, a bar per site; the table below has the values.")


FIGURES = {
    "threshold": "Threshold",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ece": "ECE",
    "prevalence": "Prevalence",
}


def _validation(told: Row) -> Row | None:
    """Per organ and class two tables, models down: AUROC of all sites and of each; the other figures of all together."""
    if not told:
        return None
    tables = []
    for organ, classes in (told.get("organs") or {}).items():
        for name, models in classes.items():
            sites = sorted({s for row in models.values() for s in row.get("sites") or {}})
            pooled = {model: row.get("pooled") for model, row in models.items()}
            auroc = {
                m: [_cell(pooled[m]), *(_cell((row.get("sites") or {}).get(s)) for s in sites)]
                for m, row in models.items()
            }
            rest = {m: [_cell(told, figure) for figure in FIGURES] for m, told in pooled.items()}
            point = "all sites together, at the threshold with the largest sensitivity + specificity"
            tables += [
                {"title": f"{organ}: {name}, AUROC", "columns": ["All sites", *sites], "rows": auroc},
                {"title": f"{organ}: {name}, {point}", "columns": list(FIGURES.values()), "rows": rest},
            ]
    keys = ("epsilon", "split")
    return {k: told.get(k) for k in keys} | {"tables": tables, "refused": told.get("refused") or []}


def _cell(told: Row | None, figure: str = "auroc") -> Score:
    """One figure with its interval; a dash when it is not known."""
    return Score((told or {}).get(figure), (told or {}).get(f"{figure}_ci"))


def _statistics(told: Row) -> Row | None:
    """Per organ the sum of the sites' noisy counts of classes, modalities and report lengths, with the noise's deviation."""
    if not told:
        return None
    organs = []
    for organ, tables in (told.get("organs") or {}).items():
        rows = []
        for name, words in (
            ("classes", "class"),
            ("modalities", "modality"),
            ("report_words", "words in the report, from"),
        ):
            table = tables.get(name) or {}
            for label, n in zip(table.get("names") or [], table.get("sum") or [], strict=False):
                rows.append({"what": f"{words} {label}", "n": n, "sd": table.get("sum_sd")})
        organs.append({"organ": organ, "rows": rows})
    return {"epsilon": told.get("epsilon"), "sites": told.get("sites") or [], "organs": organs}


PRIVACY = """
<section aria-labelledby="privacy">
<h2 id="privacy">Privacy</h2>
{% if private.rows %}
{% if not summary.private_updates %}
<p>The updates were <strong>not</strong> private; what was charged are releases.</p>
{% endif %}
<p class="soft">What every site's ledger says, in all: each patient is protected by (ε, δ) over the ledger's life.
{% if not private.whole %}As the sites told the server with their last charge in the rounds; δ and charges stand in the
  sites' own ledgers (“medmap-client budget”).{% endif %}</p>
<div class="charts"><div>{{ private.chart }}</div></div>
{% call box("Privacy") %}
<table class="privacy">
{% set ledger = ["δ", "Charges", "Spent on (ε if it were alone)"] if private.whole else [] %}
{{ head(["Site", "ε spent", "ε budget", "Unit"] + ledger, text=[0, 3, 6]) }}
<tbody>
{% for p in private.rows %}
<tr><th scope="row">{{ p.site }}</th><td>{{ p.epsilon_spent | number(2) }}</td>
<td>{{ p.epsilon_budget | number(2) }}</td><td class="text">{{ p.unit or "–" }}</td>
{% if private.whole %}
<td>{{ "%.0e" % p.delta if p.delta else "–" }}</td><td>{{ p.charges | count }}</td>
<td class="text">
{% for r in p.by_run or [] %}
{{ r.purpose }} {{ r.epsilon_alone | number(2) }}{{ "; " if not loop.last }}
{% endfor %}
</td>
{% endif %}
</tr>
{% endfor %}
</tbody></table>
{% endcall %}
{% elif summary.private_updates %}
<p>The updates were private. No site tells the server of its budget here: at the site, “medmap-client budget” shows what
  its ledger has spent.</p>
{% else %}<p>Off. No differential privacy was applied, so there is no budget to show.</p>{% endif %}
{% if private.validation %}
<h3>Validation from noisy histograms</h3>
<p class="soft">AUROC [95 % interval, of sampling and of the privacy noise], worked out from one noisy histogram per model and
  site (ε {{ private.validation.epsilon | number(2) }} each; split {{ private.validation.split }}).</p>
{% for t in private.validation.tables %}
{% call box("Private validation, " ~ t.title) %}
<table class="details">
<caption>{{ t.title }}</caption>
{{ head(["Model"] + t.columns, text=[0]) }}
<tbody>
{% for model, scores in t.rows.items() %}
<tr><th scope="row">{{ model }}</th>{% for s in scores %}<td>{{ scored(s) }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table>
{% endcall %}
{% endfor %}
{% for r in private.validation.refused %}<p>{{ r.site }} released nothing of {{ r.of }}: {{ r.reason }}.</p>{% endfor %}
{% endif %}
{% if private.statistics %}
<h3>Statistics of the cohorts, with noise</h3>
<p class="soft">Sums over {{ private.statistics.sites | listed(8) }}, as released
  (ε {{ private.statistics.epsilon | number(2) }} per site); ± is the standard deviation of the noise. Counts may be negative.</p>
<div class="halves">
{% for o in private.statistics.organs %}
{% call box("Statistics, " ~ o.organ) %}
<table class="details"><caption>{{ o.organ }}</caption>
{{ head(["", "Training patients", "±"], text=[0]) }}
<tbody>
{% for r in o.rows %}
<tr><th scope="row">{{ r.what }}</th><td>{{ r.n | number(0) }}</td><td>{{ r.sd | number(1) }}</td></tr>
{% endfor %}
</tbody></table>
{% endcall %}
{% endfor %}
</div>
{% endif %}
</section>
"""
