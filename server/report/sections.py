"""Sections of the report's page on subgroups and on what `summary["evaluation"]` holds, as Jinja2 templates."""

SUBGROUPS = """
{% if "subgroups" in sections %}
<section aria-labelledby="subgroups">
<h2 id="subgroups">Subgroups</h2>
<p class="soft">The federated model. Sites and numbers of modalities differ in their patients too, so a difference
  between rows need not come from the site or from the modality. “Own patients” are pooled here, not averaged.</p>
{% for g in subgroups %}
<h3>{{ g.organ }}</h3>
<div class="halves">
{% for t in g.tables %}
{% call box(t.title ~ ", " ~ g.organ) %}
<table class="details">
<caption>{{ g.organ }}: {{ t.title | lower }}</caption>
{{ head([t.first, "Patients"] + t.columns, text=[0]) }}
{% for label, rows in t.groups %}
<tbody>
<tr><th scope="rowgroup" colspan="{{ t.columns | length + 2 }}">{{ label }}</th></tr>
{% for r in rows %}
<tr><th scope="row">{{ r.name }}{{ why(r.reason) }}</th><td>{{ r.patients }}</td>
{% for s in r.scores %}<td>{{ scored(s) }}</td>{% endfor %}
{% if r.threshold is not none %}<td>{{ r.threshold }}</td>{% endif %}</tr>
{% endfor %}
</tbody>
{% endfor %}
</table>
{% endcall %}
{% endfor %}
</div>
{% endfor %}
</section>
{% endif %}
"""

EVALUATION = """
{% if "zero-shot" in sections %}
<section aria-labelledby="zero-shot">
<h2 id="zero-shot">Zero-shot detection and retrieval</h2>
{% if evaluation.test_set %}<p class="soft">Test set of this and the next three sections: {{ evaluation.test_set }}.
  Federated model.</p>{% endif %}
{% if evaluation.zero_shot %}
{% call box("Zero-shot detection") %}
<table class="zero-shot">
<caption>Detection from the class prompts alone, without a trained head.</caption>
{{ head(["Organ", "Model", "AUROC", "Balanced accuracy", "Macro F1", "Patients"], text=[0, 1]) }}
<tbody>
{% for r in evaluation.zero_shot %}
<tr><th scope="row">{{ r.organ }}{{ why(r.reason) }}</th><td class="text">{{ r.model }}</td>
{% for s in r.scores %}<td>{{ scored(s) }}</td>{% endfor %}<td>{{ r.n | count }}</td></tr>
{% endfor %}
</tbody></table>
{% endcall %}
{% endif %}
{% if evaluation.retrieval %}
{% call box("Retrieval") %}
<table class="retrieval">
<caption>Retrieval among the test patients' images and reports. Chance of recall@k is about k over the patients.</caption>
{{ head(["Organ", "Model", "Asked for", "Recall@1", "Recall@5", "Recall@10", "Median rank", "Patients"],
  text=[0, 1, 2]) }}
<tbody>
{% for r in evaluation.retrieval %}
<tr><th scope="row">{{ r.organ }}{{ why(r.reason) }}</th><td class="text">{{ r.model }}</td>
<td class="text">{{ r.direction }}</td>
{% for v in r.recalls %}<td>{{ v | number(2) }}</td>{% endfor %}
<td>{{ r.rank | number(1) }}</td><td>{{ r.n | count }}</td></tr>
{% endfor %}
</tbody></table>
{% endcall %}
{% endif %}
</section>
{% endif %}

{% if "missing" in sections %}
<section aria-labelledby="missing">
<h2 id="missing">Missing and degraded modalities</h2>
{% for m in evaluation.missing %}
<h3>{{ m.organ }}: AUROC{% if m.n %}, {{ m.n | count }} patients{% endif %}</h3>
{% if m.reason %}<p class="soft">{{ m.reason }}</p>{% endif %}
<div class="halves">
{% call box("Missing modalities, " ~ m.organ) %}
<table class="missing">
{{ head(["What the model was left with", "AUROC"], text=[0]) }}
<tbody>
{% for name, value in m.rows %}<tr><th scope="row">{{ name }}</th><td>{{ value | number }}</td></tr>
{% endfor %}
</tbody></table>
{% endcall %}
{% if m.by_number %}
<div>
{% call box("By number of hidden modalities, " ~ m.organ) %}
<table class="missing">
{{ head(["Modalities hidden", "Subsets", "Mean AUROC", "Worst AUROC"], text=[0]) }}
<tbody>
{% for r in m.by_number %}
<tr><th scope="row">{{ r.hidden }}</th><td>{{ r.subsets }}</td><td>{{ r.mean | number }}</td>
<td>{{ r.worst | number }}</td></tr>
{% endfor %}
</tbody></table>
{% endcall %}
{% call box("Worst subsets, " ~ m.organ) %}
<table class="missing">
<caption>The {{ m.worst | length }} worst of {{ m.subsets }} subsets</caption>
{{ head(["Modalities left", "AUROC", "Balanced accuracy"], text=[0]) }}
<tbody>
{% for s in m.worst %}
<tr><th scope="row">{{ s.left }}</th><td>{{ s.auroc | number }}</td><td>{{ s.balanced_accuracy | number }}</td></tr>
{% endfor %}
</tbody></table>
{% endcall %}
</div>
{% endif %}
</div>
{% endfor %}
</section>
{% endif %}

{% if "corruptions" in sections %}
<section aria-labelledby="corruptions">
<h2 id="corruptions">Corrupted scans</h2>
<p class="soft">Severity 1 is mild, 3 severe. Calibration shift: how much more (+) or less (−) the mean confidence
  exceeds the accuracy than on the clean scans.</p>
<div class="halves">
{% for c in evaluation.corruptions %}
{% call box("Corruptions, " ~ c.organ) %}
<table class="corruptions">
<caption>{{ c.organ }}{% if c.mean is number %}: mean AUROC {{ c.mean | number }}{% endif %}</caption>
{{ head(["Corruption", "Severity", "AUROC", "Balanced accuracy", "ECE", "Calibration shift"], text=[0]) }}
<tbody><tr><th scope="row">clean</th><td>–</td><td>{{ c.clean.auroc | number }}</td>
<td>{{ c.clean.balanced_accuracy | number }}</td><td>{{ c.clean.ece | number }}</td><td>–</td></tr></tbody>
{% for name, rows in c.groups.items() %}
<tbody>
{% for r in rows %}
<tr>{% if loop.first %}<th scope="row" rowspan="{{ rows | length }}">{{ name | words }}</th>{% endif %}
<td>{{ r.severity }}</td><td>{{ r.auroc | number }}</td>
<td>{{ r.balanced_accuracy | number }}</td><td>{{ r.ece | number }}</td>
<td>{{ r.calibration_shift | signed }}</td></tr>
{% endfor %}
</tbody>
{% endfor %}
</table>
{% for note in c.notes %}<p class="soft">{{ note }}</p>{% endfor %}
{% endcall %}
{% endfor %}
</div>
</section>
{% endif %}

{% if "importance" in sections %}
<section aria-labelledby="importance">
<h2 id="importance">Which modality mattered</h2>
<p class="soft">How far the probability of the true class falls, on average, when a modality is hidden from a patient
  who has it. Below zero: the patients were classified better without it.</p>
<div class="halves">
{% for i in evaluation.importance %}
{% call box("Importance of modalities, " ~ i.organ) %}
<table class="importance">
<caption>{{ i.organ }}</caption>
{{ head(["Modality", "Fall of the probability", ""], text=[0, 2]) }}
<tbody>
{% for r in i.rows %}
<tr><th scope="row">{{ r.modality }}</th><td>{{ r.drop | signed(3) }}</td><td>{{ bar(r.share) }}</td></tr>
{% endfor %}
{% for m in i.unknown %}<tr><th scope="row">{{ m }}</th><td>–</td><td></td></tr>{% endfor %}
</tbody></table>
{% endcall %}
{% endfor %}
</div>
</section>
{% endif %}
"""
