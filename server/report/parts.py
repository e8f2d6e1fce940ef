"""Parts of the report's page: the macros, and the sections on traffic, time, privacy and settings."""

MACROS = """
{% macro box(label) %}
<div class="box" role="region" aria-label="{{ label }}" tabindex="0">
{{ caller() }}
</div>
{% endmacro %}

{% macro bar(share) %}
<span class="bar" aria-hidden="true"><i style="width: {{ "%.1f" % (100 * share) }}%"></i></span>
{% endmacro %}

{% macro scored(s) %}
{{ s.value | number }}{% if s.interval %}<small>{{ s.interval | interval }}</small>
{% elif s.spread %}<small>{{ s.spread | spread }}</small>{% endif %}
{% endmacro %}

{% macro why(reason) %}{% if reason %}<small>{{ reason }}</small>{% endif %}{% endmacro %}

{% macro legend(conditions) %}
<ul class="legend" aria-label="Legend">
{% for c in conditions %}
{% set dashes = {"-": "none", "--": "7 3", "-.": "8 3 2 3", ":": "2 3"} %}
  <li><svg viewBox="0 0 38 14" aria-hidden="true"><line x1="0" y1="7" x2="38" y2="7" stroke="{{ c.colour }}"
    stroke-width="2" stroke-dasharray="{{ dashes[c.dash] }}"/>
    {% if c.marker == 'o' %}<circle cx="19" cy="7" r="4.5" fill="{{ c.colour }}"/>
    {% elif c.marker == 's' %}<rect x="15" y="3" width="8" height="8" fill="{{ c.colour }}"/>
    {% elif c.marker == '^' %}<path d="M19 2 L24 11 L14 11 Z" fill="{{ c.colour }}"/>
    {% else %}<path d="M19 2 L24 7 L19 12 L14 7 Z" fill="{{ c.colour }}"/>{% endif %}
    </svg>{{ c.label }}</li>
{% endfor %}
</ul>
{% endmacro %}

{% macro head(names, text) %}
<thead><tr>
{% for name in names %}<th scope="col"{{ " class=text" if loop.index0 in text }}>{{ name }}</th>
{% endfor %}
</tr></thead>
{% endmacro %}

{% macro site(s) %}
{{ s.name }}{% if s.external and s.name | lower != "external" %}<small>external</small>{% endif %}
{% endmacro %}

"""

COSTS = """
{% if "communication" in sections %}
<section aria-labelledby="communication">
<h2 id="communication">Communication</h2>
{% call box("Communication") %}
<table class="communication">
<tbody>
<tr><th scope="row">Server to sites</th><td>{{ communication.bytes_down | size }}</td></tr>
<tr><th scope="row">Sites to server</th><td>{{ communication.bytes_up | size }}</td></tr>
<tr><th scope="row">All module groups, once</th><td>{{ communication.bytes_full_model | size }}</td></tr>
</tbody></table>
{% endcall %}
{% if communication.bytes_if_whole %}
<p>Had each of the {{ communication.updates | count }} updates carried every module group, sites would have
  sent {{ communication.bytes_if_whole | size }}. They sent {{ communication.share_of_whole | percent(0) }} of
  it.</p>
{% endif %}
<p class="soft">The frozen text encoder never travels. 1 MB is a million bytes.</p>
</section>
{% endif %}

{% if "model" in sections %}
<section aria-labelledby="model">
<h2 id="model">Module groups</h2>
<p>What travels as one. Only the owners of a module group send and receive it.
{% if groups.idle %}Left out: {{ groups.idle }} that no site has sent; they are as they began.{% endif %}</p>
{% call box("Module groups") %}
<table class="groups">
{{ head(["Module group", "Parameters", "Size", "Sent up in all", "Against the largest"], text=[0, 4]) }}
<tbody>
{% for g in groups.rows %}
<tr><th scope="row">{{ g.name }}</th><td>{{ g.parameters | count }}</td><td>{{ g.size | size }}</td>
<td>{{ g.sent | size }}</td><td>{{ bar(g.share) }}</td></tr>
{% endfor %}
</tbody></table>
{% endcall %}
</section>
{% endif %}

{% if "timing" in sections %}
<section aria-labelledby="timing">
<h2 id="timing">Timing</h2>
{% call box("Timing") %}
<table class="timing">
{% if timing.phases %}
{{ head(["Phase", "Time", "Against the longest"], text=[0, 2]) }}
<tbody>
{% for p in timing.phases %}
<tr><th scope="row">{{ p.name }}</th><td>{{ p.seconds | duration }}</td><td>{{ bar(p.share) }}</td></tr>
{% endfor %}
</tbody>
{% endif %}
<tbody>
{% if timing.wall_s is not none %}
<tr><th scope="row">Whole run, wall clock</th><td>{{ timing.wall_s | duration }}</td><td></td></tr>
{% endif %}
<tr><th scope="row">Round, median of {{ timing.rounds }}</th>
<td>{{ timing.round_median_s | duration }}</td><td></td></tr>
<tr><th scope="row">Longest round</th><td>{{ timing.round_longest_s | duration }}</td><td></td></tr>
{% if timing.overhead_share is not none %}
<tr><th scope="row">Overhead share</th><td>{{ timing.overhead_share | percent }}</td><td></td></tr>
{% endif %}
{% if summary.peak_memory_mb %}
<tr><th scope="row">Peak memory</th><td>{{ (summary.peak_memory_mb * 1e6) | size }}</td><td></td></tr>
{% endif %}
</tbody></table>
{% endcall %}
{% if timing.phases %}
<p class="soft">Methods run side by side, so phases overlap and do not add up. Overhead: the share of the
  federated rounds' time that is neither training nor validation at a site.</p>
{% endif %}
</section>
{% endif %}

{% include "privacy.html" %}

{% if "configuration" in sections %}
<section aria-labelledby="configuration">
<h2 id="configuration">Configuration</h2>
<pre role="region" aria-label="Configuration" tabindex="0">{{ config }}</pre>
</section>
{% endif %}
"""
