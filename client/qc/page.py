"""What quality control found, as one HTML file: remarks, medians, a picture of each volume; it needs nothing but itself."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from client.check import counted
from client.qc.measures import MEASURES
from client.qc.remarks import Volume
from client.qc.run import Quality
from client.qc.show import grouped, median_of

_ALL_SHOWN = 400  # volumes of which all have a picture; of more only those with a remark, and some for comparison
_COMPARED = 24  # of each modality

_STYLE = """
:root { color-scheme: light; --soft: #555; --line: #d9d9d9; --wash: #f5f6f8; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1.25rem 3rem; background: #fff; color: #1b1b1b;
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .5rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.5rem 0 .5rem; }
p { margin: .4rem 0 .7rem; max-width: 46rem; }
.soft { color: var(--soft); font-size: .85rem; }
.headline { font-size: 1.15rem; font-weight: 600; }
.notice { border-left: 4px solid #b35900; background: #fdf3e7; padding: .5rem .9rem; max-width: none; }
.box { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  overflow-wrap: anywhere; }
thead th { background: var(--wash); border-bottom: 1px solid #b5b5b5; vertical-align: bottom; }
table.numbers td, table.numbers thead th + th { text-align: right; }
table.numbers td { white-space: nowrap; }
th { overflow-wrap: normal; }
td:first-child, td:nth-child(2) { white-space: nowrap; }
.failed, .warning { display: inline-block; border-radius: 3px; padding: 0 .4rem; font-size: .82rem; font-weight: 600; }
.failed { background: #f3c9c0; }
.warning { background: #fbe3c6; }
.volumes { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); gap: .8rem; }
figure { margin: 0; border: 1px solid var(--line); padding: .5rem; break-inside: avoid; min-width: 0; }
figure.has-failed { border: 2px solid #c0392b; }
figure.has-warning { border: 2px solid #d98200; }
img { width: 100%; aspect-ratio: 272 / 88; display: block; background: #000; }
figcaption { font-size: .8rem; line-height: 1.35; margin-top: .35rem; overflow-wrap: anywhere; }
figcaption b { font-weight: 600; }
figcaption ul { list-style: none; margin: .3rem 0 0; padding: 0; }
details { color: var(--soft); margin-top: .25rem; }
details table { font-size: .78rem; }
details th, details td { padding: .05rem .5rem .05rem 0; border: 0; font-weight: 400; }
@page { size: A4; margin: 14mm 13mm; }
@media print { body { font-size: 9.5pt; padding: 0; } .box { overflow: visible; } }
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Quality of {{ name }}</title><style>{{ style | safe }}</style></head><body>
<h1>Quality of {{ name }}</h1>
<p class="headline">{{ headline }}</p>
<p class="notice">This page holds pictures and ids of patients. It was made inside the hospital and stays there.</p>
{% if remarks %}
<h2>Remarks</h2>
<div class="box" role="region" aria-label="Remarks" tabindex="0"><table>
<thead><tr><th scope="col">Row</th><th scope="col">Grade</th><th scope="col">Found</th>
<th scope="col">What to do</th></tr></thead>
<tbody>
{% for r in remarks %}
<tr><td>{% for row in r.rows %}{{ ", " if not loop.first }}{% if row in shown %}<a href="#row-{{ row }}">{{ row }}</a>
{%- else %}{{ row or "" }}{% endif %}{% endfor %}</td>
<td><span class="{{ r.grade }}">{{ r.grade }}</span></td><td>{{ r.told }}</td><td>{{ r.remedy }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endif %}
{% if groups %}
<h2>Medians of each modality</h2>
<div class="box" role="region" aria-label="Medians" tabindex="0"><table class="numbers">
<thead><tr><th scope="col">Modality</th><th scope="col">Volumes</th>
{% for m in measures %}<th scope="col">{{ m.title }}{{ ", " + m.unit if m.unit }}</th>{% endfor %}</tr></thead>
<tbody>
{% for g in groups %}
<tr><th scope="row">{{ g.modality }}</th><td>{{ g.count }}</td>{% for value in g.medians %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
<p class="soft">In brackets: of how many volumes, where not of all. What is measured, and how: docs/qc.md.</p>
<h2>Volumes</h2>
<p class="soft">Axial, coronal and sagittal, through the middle of the view; left is the patient's right.
Those with remarks come first.</p>
{% for g in groups %}
<h3>{{ g.modality }}{% if g.left_out %} <span class="soft">and {{ g.left_out }} more, without a remark</span>{% endif %}</h3>
<div class="volumes">
{% for v in g.volumes %}
<figure id="row-{{ v.row }}"{% if v.worst %} class="has-{{ v.worst }}"{% endif %}>
<img src="data:image/png;base64,{{ v.picture }}" alt="Row {{ v.row }}, {{ g.modality }}, three middle slices">
<figcaption><b>Row {{ v.row }}</b>, {{ v.patient }}, {{ v.study }}, {{ v.split }}
{% if v.remarks %}<ul>{% for r in v.remarks %}<li><span class="{{ r.grade }}">{{ r.grade }}</span> {{ r.told }}</li>
{% endfor %}</ul>{% endif %}
<details><summary>Numbers</summary><table>
{% for m in v.numbers %}<tr><th scope="row">{{ m.title }}</th><td>{{ m.value }}</td></tr>{% endfor %}
</table></details></figcaption></figure>
{% endfor %}
</div>
{% endfor %}
{% endif %}
</body></html>
"""


def write_page(found: Quality, path: Path) -> None:
    """Write the page, readable by its owner alone. Raises OSError."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o600)  # also where it was there already
        file.write(page(found))


def page(found: Quality) -> str:
    """The HTML; every name in it is escaped."""
    from jinja2 import Environment

    groups = [_group(modality, volumes, len(found.volumes)) for modality, volumes in grouped(found.volumes)]
    failed, warnings = found.count("failed"), found.count("warning")
    headline = f"{counted(len(found.volumes), 'volume')} measured: {counted(failed, 'failure')}, {counted(warnings, 'warning')}."
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_PAGE)
    return template.render(
        name=found.manifest.path.name, style=_STYLE, headline=headline, remarks=found.remarks, measures=MEASURES, groups=groups,
        shown={v["row"] for g in groups for v in g["volumes"]},
    )  # fmt: skip


def _group(modality: str, volumes: Sequence[Volume], in_all: int) -> dict[str, Any]:
    ordered = sorted(volumes, key=lambda v: (_rank(v), v.row))
    plain = sum(not v.remarks for v in volumes)
    left_out = max(0, plain - _COMPARED) if in_all > _ALL_SHOWN else 0
    return {
        "modality": modality, "count": len(volumes), "left_out": left_out,
        "medians": [median_of(volumes, m.name) for m in MEASURES],
        "volumes": [_volume(v) for v in ordered[: len(ordered) - left_out]],
    }  # fmt: skip


def _rank(volume: Volume) -> int:
    """Failures first, then warnings, then the rest."""
    return min((["failed", "warning"].index(r.grade) for r in volume.remarks), default=2)


def _volume(volume: Volume) -> dict[str, Any]:
    numbers = [
        {
            "title": m.title,
            "value": f"{volume.values[m.name]:.3g} {m.unit}" if m.name in volume.values else volume.reasons[m.name],
        }
        for m in MEASURES
    ]
    return {
        "row": volume.row, "patient": volume.study.patient_id, "study": volume.study.study_id, "split": volume.study.split,
        "worst": (*("failed", "warning"), "")[_rank(volume)], "remarks": volume.remarks, "numbers": numbers,
        "picture": base64.b64encode(volume.picture).decode(),
    }  # fmt: skip
