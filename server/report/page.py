"""The report's Jinja2 page: the view made by `tables`, `findings` and `figures` in, HTML out.

It lives in a Python file because a Flower app bundle carries .py, .md, .toml, .yaml and .json only: an .html
file would not reach `flwr run`.
"""

PAGE = """
{% from "macros.html" import bar, box, head, legend, scored, site, why %}
<!DOCTYPE html>
<html lang="en-GB">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>MedMAP-FL run report</title>
<style>
{% include "style.css" %}
</style>
</head>
<body>
<header>
<h1>MedMAP-FL run report</h1>
{% set model = summary.model or {} %}
<p class="soft">{{ training_sites or "No" }} training sites · model {{ model.name or "–" }}
  ({{ model.parameters | count }} parameters) · engine {{ summary.engine or "–" }}
  · seed {{ summary.seed if summary.seed is number else "–" }} · status {{ summary.status or "–" }}</p>
{% for n in notices %}
<div class="notice {{ n.level }}"><p><strong>{{ n.title }}</strong> {{ n.text }}</p></div>
{% endfor %}
{% for sentence in headline %}
<p class="headline">{{ sentence }}</p>
{% else %}
<p class="headline">This run holds no test scores.</p>
{% endfor %}
<nav aria-label="Sections">
{% for id, name in sections.items() %}<a href="#{{ id }}">{{ name }}</a>
{% endfor %}
{% if left_out %}<a href="#left-out">Left out</a>{% endif %}
</nav>
</header>
<main>

{% if "results" in sections %}
<section aria-labelledby="results">
<h2 id="results">Results</h2>
{% if findings %}
<ul>
{% for f in findings %}
  <li><strong>{{ f.title }}</strong> {{ f.text }}</li>
{% endfor %}
</ul>
<p class="soft">In square brackets: 95 % bootstrap intervals over the test patients of this one run and seed.
  They do not cover the luck of training. In round brackets, and thin in the charts: the range over the sites
  behind a mean. Methods within the uncertainty are not shown to be equal: this run cannot tell.</p>
{% endif %}
{{ legend(conditions) }}
{% for t in score_tables %}
<h3>{{ t.organ }}: AUROC</h3>
<div class="pair">
{% call box("AUROC, " ~ t.organ) %}
<table class="scores">
<thead><tr><th scope="col" class="text">Training</th>
{% for set, n in t.test_sets %}
<th scope="col">{{ set.label }}{% if n %}<small>{{ n }}</small>{% endif %}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for c, scores in t.rows %}
<tr class="{{ c.key }}"><th scope="row">{{ c.label }}</th>
{% for s in scores %}<td>{{ scored(s) }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table>
{% endcall %}
<div>{{ score_charts[t.organ] }}</div>
</div>
{% endfor %}
<ul class="soft">
{% for c in conditions %}<li>{{ c.label }}: {{ c.meaning }}.</li>{% endfor %}
{% for set, n in score_tables[0].test_sets %}<li>{{ set.label }}: {{ set.meaning }}.</li>{% endfor %}
</ul>
<h3>Further measures</h3>
{% for t in score_tables %}
{% call box("Further measures, " ~ t.organ) %}
<table class="details">
<caption>{{ t.organ }}</caption>
{{ head(["Training"] + measures + ["Patients"], text=[0]) }}
{% for set, rows in t.details %}
<tbody>
<tr><th scope="rowgroup" colspan="{{ measures | length + 2 }}">{{ set.label }}</th></tr>
{% for c, scores, reason in rows %}
<tr class="{{ c.key }}"><th scope="row">{{ c.label }}{{ why(reason) }}</th>
{% for s in scores %}<td>{{ scored(s) }}</td>{% endfor %}
<td>{{ scores[0].n | count }}</td></tr>
{% endfor %}
</tbody>
{% endfor %}
</table>
{% endcall %}
{% endfor %}
{% if quality %}
<h3>Where it decides, and how sure it is: federated model</h3>
<div class="charts">
{% for chart in quality %}<div>{{ chart }}</div>{% endfor %}
</div>
{% endif %}
<ul class="soft">
{% for sentence in operating_points %}<li>{{ sentence }}</li>{% endfor %}
<li>Sensitivity and specificity: of the second of two classes; of more, the mean over each class against the rest. Each
  method has thresholds of its own, from its own validation patients.</li>
<li>MCC and Cohen κ: 0 is chance, 1 is perfect. ECE, expected calibration error: 0 is perfect, and a small test set
  reads high. Classes that no patient has are left out of every mean.</li>
</ul>
</section>
{% endif %}

{% include "subgroups.html" %}
{% if "curves" in sections %}
<section aria-labelledby="curves">
<h2 id="curves">Learning curves</h2>
{{ legend(curve_conditions) }}
<div class="charts">
{% for chart in curves %}<div>{{ chart }}</div>{% endfor %}
</div>
<p class="soft">{% if "local" in curve_conditions | map(attribute="key") %}Local models: one thin line per site. {% endif %}
Validation patients are the sites' own.</p>
</section>
{% endif %}

{% if "cross-site" in sections %}
<section aria-labelledby="cross-site">
<h2 id="cross-site">Cross-site results</h2>
<p class="soft">Each model (rows) on each site's own test patients (columns). Darker is better, from 0.5
  (chance) to 1. Outlined: a site's own model on its own patients. A dash: the model or the site does not know
  the organ.</p>
<div class="halves">
{% for map in heat_maps %}
{% call box("Cross-site " ~ map.metric ~ ", " ~ map.organ) %}
<table class="grid heat">
<caption>{{ map.organ }}, {{ map.metric }}</caption>
<thead><tr><th scope="col" class="text">Model</th>
{% for c in map.columns %}<th scope="col">{{ site(c) }}</th>{% endfor %}
</tr></thead>
<tbody>
{% for row in map.rows %}
<tr><th scope="row">{{ row.name }}</th>{% for cell in row.cells %}<td{% if cell.own %} class="own"{% endif %}
 style="background: {{ cell.background }}; color: {{ cell.colour }}">{{ cell.text }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table>
{% endcall %}
{% endfor %}
</div>
</section>
{% endif %}

{% include "evaluation.html" %}
{% if "sites" in sections %}
<section aria-labelledby="sites">
<h2 id="sites">Sites</h2>
{% call box("Sites") %}
<table class="sites">
{% set scanners = summary.sites | selectattr("scanner") | list %}
{{ head(["Site", "Organs", "Training studies", "Validation", "Test", "Role"] + (["Scanner"] if scanners else []),
  text=[0, 1, 5, 6]) }}
<tbody>
{% for s in summary.sites %}
<tr><th scope="row">{{ s.name }}</th><td class="text">{{ (s.organs or []) | join(", ") or "–" }}</td>
{% for split in ("train", "val", "test") %}<td>{{ (s.studies or {})[split] | count }}</td>{% endfor %}
<td class="text">{{ "external: never trained on" if s.external else "trains" }}</td>
{% if scanners %}<td class="text">{{ s.scanner or "–" }}</td>{% endif %}</tr>
{% endfor %}
</tbody></table>
{% endcall %}
</section>
{% endif %}

{% include "partition.html" %}
{% if "ownership" in sections %}
<section aria-labelledby="ownership">
<h2 id="ownership">Who owns which modality</h2>
<p>A site trains, sends and receives only the module groups of the modalities it owns. The fewer owners, the
  fewer patients behind an encoder.</p>
{% call box("Modalities by site") %}
<table class="grid owners">
<caption>Volumes per site and modality. Shaded: owned.</caption>
<thead>
{% if ownership.groups | length > 1 or ownership.groups[0][0] %}
<tr><td></td>
{% for organ, span in ownership.groups %}
<th scope="colgroup" colspan="{{ span }}">{{ organ or "other" }}</th>
{% endfor %}</tr>
{% endif %}
<tr><th scope="col" class="text">Site</th>
{% for m in ownership.modalities %}<th scope="col">{{ m }}</th>{% endfor %}</tr>
</thead>
<tbody>
{% for row in ownership.rows %}
<tr><th scope="row">{{ site(row) }}</th>
{% for cell in row.cells %}
{% if not cell.owned %}<td class="none"><span class="hidden">not owned</span></td>
{% elif cell.volumes is none %}<td class="has">✓<span class="hidden"> owned</span></td>
{% else %}<td class="has">{{ cell.volumes | count }}</td>{% endif %}
{% endfor %}</tr>
{% endfor %}
</tbody>
<tfoot><tr><th scope="row">Training sites that own it</th>
{% for n in ownership.owners %}<td>{{ n }}</td>{% endfor %}</tr></tfoot>
</table>
{% endcall %}
</section>
{% endif %}

{% include "shift.html" %}
{% include "participation.html" %}
{% if "examples" in sections %}
<section aria-labelledby="examples">
<h2 id="examples">Example patients</h2>
<p>Test patients with what the federated model says of them. The report is shown for comparison; the model did
  not read it.{% if overlays %} The second picture of a modality is the same slice with what the model looked at on
  it. The number below: how far the probability falls when the modality is hidden.{% endif %}</p>
<div class="examples">
{% for e in examples %}
{% set told = e.probabilities or {} %}
<article class="example">
<h3>{{ e.site or "–" }}, {{ e.organ or "–" }}, patient {{ e.patient or "–" }}</h3>
<div class="slices">
{% for m in e.modalities or [] %}
<figure>
{% if m.uri %}<img src="{{ m.uri }}" alt="{{ m.name }} slice, {{ e.organ }}, patient {{ e.patient }}">
{% else %}<p class="soft">no picture</p>{% endif %}
{% if m.overlay_uri %}<img src="{{ m.overlay_uri }}" alt="{{ m.name }}, where the model looked">{% endif %}
<figcaption>{{ m.name }}{% set mattered = (e.importance or {})[m.name] %}
{% if mattered is number %}<small>{{ mattered | signed }}</small>{% endif %}</figcaption></figure>
{% endfor %}
</div>
<blockquote>{{ e.report or "No report." }}</blockquote>
<table class="predictions">
<caption>Predicted probability. Truth: {{ e.abnormality | default("–", true) | words }}.</caption>
<tbody>
{% for name, p in told | dictsort(by="value", reverse=true) if p is not none %}
{% set truth = name == e.abnormality %}
<tr{{ ' class=truth' if truth }}><th scope="row">{{ name | words }}{{ " (truth)" if truth }}</th>
<td>{{ bar(p) }}</td><td>{{ p | number(2) }}</td></tr>
{% else %}<tr><td class="text">–</td></tr>{% endfor %}
</tbody></table>
</article>
{% endfor %}
</div>
</section>
{% endif %}
{% include "costs.html" %}
{% if left_out %}
<section aria-labelledby="left-out">
<h2 id="left-out">Left out</h2>
<ul>
{% for r in left_out %}<li><strong>{{ r.title }}</strong> {{ r.text }}</li>
{% endfor %}
</ul>
</section>
{% endif %}
</main>
<footer class="soft">
<p>Figures come from this run's summary.json and metrics.jsonl. A dash: the figure is missing.</p>
</footer>
</body>
</html>
"""
