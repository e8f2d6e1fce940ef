"""The report's view of site shift: per organ a matrix of distances between the sites' images, and a dendrogram."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from server.report.figures import INK, STYLE, figure_of, svg

Row = dict[str, Any]
_RAMP = ((0xFF, 0xFF, 0xFF), (0xE6, 0x9F, 0x00))  # white to orange; black text stays readable


def shift_view(summary: Row) -> Row | None:
    """epsilon, features, organs: sites, rows of cells (text, background, beyond chance), dendrogram; None where not known."""
    told = summary.get("shift") or {}
    organs = [
        {"organ": organ, "sites": part["sites"], "rows": _rows(part), "dendrogram": _dendrogram(organ, part)}
        for organ, part in (told.get("organs") or {}).items()
    ]
    return (
        {"epsilon": told.get("epsilon"), "features": told.get("features") or [], "organs": organs} if organs else None
    )


def _rows(part: Row) -> list[Row]:
    largest = max((x for row in part["distance"] for x in row if x is not None), default=0.0) or 1.0
    rows = []
    for i, site in enumerate(part["sites"]):
        cells = []
        for j, value in enumerate(part["distance"][i]):
            share = 0.0 if value is None else value / largest
            rgb = [round(a + share * (b - a)) for a, b in zip(*_RAMP, strict=True)]
            chance = part["chance"][i][j]
            beyond = i != j and value is not None and chance is not None and value > chance
            background = "#{:02x}{:02x}{:02x}".format(*rgb)
            cells.append({"value": None if i == j else value, "background": background, "beyond": beyond})
        rows.append({"name": site, "patients": (part.get("patients") or {}).get(site), "cells": cells})
    return rows


def _dendrogram(organ: str, part: Row) -> Markup | None:
    """Average linkage; sites that share no modality count as far apart as any two. None for fewer than three sites."""
    import numpy as np
    from matplotlib import rc_context
    from scipy.cluster.hierarchy import dendrogram, linkage
    from scipy.spatial.distance import squareform

    if len(part["sites"]) < 3:
        return None
    distance = np.array(part["distance"], float)
    distance[np.isnan(distance)] = np.nanmax(distance)
    tree = linkage(squareform(distance, checks=False), "average")
    with rc_context(STYLE):
        figure = figure_of(4.6, 0.7 + 0.3 * len(part["sites"]))
        axes = figure.subplots()
        drawn = dendrogram(
            tree, orientation="left", ax=axes, no_labels=True, color_threshold=0, above_threshold_color=INK
        )
        names = [part["sites"][i] for i in drawn["leaves"]]
        axes.set_yticks([5 + 10 * i for i in range(len(names))], names, parse_math=False)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("Fréchet distance, average linkage")
        return svg(figure, f"Dendrogram of the sites' {organ} images; the table has the distances.")


SHIFT = """
{% if "shift" in sections %}
<section aria-labelledby="shift">
<h2 id="shift">How far apart the sites' images are</h2>
<p class="soft">Fréchet distance between the sites' volumes as the model sees them ({{ shift.features | listed(8) }}),
  mean over the modalities that two sites share, {% if shift.epsilon %}from noisy moments (ε {{ shift.epsilon | number(2) }} per
  site){% else %}from exact moments: a simulation{% endif %}. <strong>Bold</strong>: more than 95 of 100 draws showed in which
  all sites are alike. Sites that differ in their patients differ here too, not in scanners alone.</p>
{% for o in shift.organs %}
<h3>{{ o.organ }}</h3>
<div class="pair">
{% call box("Distances between sites, " ~ o.organ) %}
<table class="grid shift">
<thead><tr><th scope="col" class="text">Site</th><th scope="col">n</th>
{% for s in o.sites %}<th scope="col"><abbr title="{{ s }}">{{ loop.index }}</abbr></th>{% endfor %}</tr></thead>
<tbody>
{% for r in o.rows %}
<tr><th scope="row">{{ loop.index }} {{ r.name }}</th><td>{{ r.patients | count }}</td>
{% for c in r.cells %}
<td style="background: {{ c.background }}">{% if c.beyond %}<strong>{{ c.value | number(2) }}</strong>
{%- else %}{{ c.value | number(2) }}{% endif %}</td>
{% endfor %}</tr>
{% endfor %}
</tbody></table>
{% endcall %}
{% if o.dendrogram %}<div>{{ o.dendrogram }}</div>{% endif %}
</div>
{% endfor %}
</section>
{% endif %}
"""
