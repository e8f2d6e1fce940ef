"""Parts of the report's page: macros that every section uses, and the sections on traffic, time, privacy, settings."""

MACROS = """
{% macro box(label) %}
<div class="box" role="region" aria-label="{{ label }}" tabindex="0">
{{ caller() }}
</div>
{% endmacro %}

{% macro bar(share) %}
<span class="bar" aria-hidden="true"><i style="width: {{ '%.1f' % (100 * ([0, [share or 0, 1] | min] | max)) }}%"></i></span>
{% endmacro %}

{% macro scored(s) %}
{{ s.value | number }}{% if s.has_interval %}<small>{{ interval(s) }}</small>{% endif %}
{% endmacro %}

{% macro interval(s) %}{{ s.low | interval(s.high) }}{% endmacro %}

{% macro legend(conditions) %}
<ul class="legend" aria-label="Legend">
{% for c in conditions %}
  <li><svg viewBox="0 0 38 14" aria-hidden="true"><line x1="0" y1="7" x2="38" y2="7" stroke="{{ c.colour }}"
    stroke-width="2" stroke-dasharray="{{ {'-': 'none', '--': '7 3', '-.': '8 3 2 3', ':': '2 3'}[c.dash] }}"/>
    {% if c.marker == 'o' %}<circle cx="19" cy="7" r="4.5" fill="{{ c.colour }}"/>
    {% elif c.marker == 's' %}<rect x="15" y="3" width="8" height="8" fill="{{ c.colour }}"/>
    {% elif c.marker == '^' %}<path d="M19 2 L24 11 L14 11 Z" fill="{{ c.colour }}"/>
    {% else %}<path d="M19 2 L24 7 L19 12 L14 7 Z" fill="{{ c.colour }}"/>{% endif %}
    </svg>{{ c.label }}</li>
{% endfor %}
</ul>
{% endmacro %}

{% macro missing(what) %}<p class="soft">This run holds no {{ what }}.</p>{% endmacro %}
"""

COSTS = """
<section aria-labelledby="communication">
<h2 id="communication">Communication</h2>
{% if communication %}
{% call box("Communication") %}
<table class="communication">
<tbody>
<tr><th scope="row">Server to sites</th><td>{{ communication.bytes_down | size }}</td></tr>
<tr><th scope="row">Sites to server</th><td>{{ communication.bytes_up | size }}</td></tr>
<tr><th scope="row">The full model, once</th><td>{{ communication.bytes_full_model | size }}</td></tr>
</tbody></table>
{% endcall %}
{% if communication.groups %}
<h3>Sent up, by module group</h3>
{% call box("Bytes by module group") %}
<table class="groups">
<thead><tr><th scope="col" class="text">Module group</th><th scope="col">Sent up</th><th scope="col" class="text">Share of the largest</th></tr></thead>
<tbody>
{% for g in communication.groups %}
<tr><th scope="row">{{ g.name }}</th><td>{{ g.bytes | size }}</td><td>{{ bar(g.share) }}</td></tr>
{% endfor %}
</tbody></table>
{% endcall %}
{% endif %}
<p class="soft">The frozen text encoder never travels. 1 MB is a million bytes.</p>
{% else %}{{ missing("record of communication") }}{% endif %}
</section>

<section aria-labelledby="timing">
<h2 id="timing">Timing</h2>
{% if timing %}
{% call box("Timing") %}
<table class="timing">
<thead><tr><th scope="col" class="text">Phase</th><th scope="col">Time</th><th scope="col" class="text">Against the longest</th></tr></thead>
<tbody>
{% for p in timing.phases %}
<tr><th scope="row">{{ p.name }}</th><td>{{ p.seconds | duration }}</td><td>{{ bar(p.share) }}</td></tr>
{% endfor %}
</tbody>
<tbody>
<tr><th scope="row">Whole run, wall clock</th><td>{{ timing.wall_s | duration }}</td><td></td></tr>
<tr><th scope="row">Round, median of {{ timing.rounds }}</th><td>{{ timing.round_median_s | duration }}</td><td></td></tr>
<tr><th scope="row">Longest round</th><td>{{ timing.round_longest_s | duration }}</td><td></td></tr>
<tr><th scope="row">Overhead share</th><td>{{ timing.overhead_share | percent }}</td><td></td></tr>
</tbody></table>
{% endcall %}
<p class="soft">Methods run side by side, so phases may overlap. Overhead: the share of the rounds' time that is not
  training.</p>
{% else %}{{ missing("timing") }}{% endif %}
</section>

<section aria-labelledby="privacy">
<h2 id="privacy">Privacy</h2>
{% if summary.privacy %}
{% call box("Privacy") %}
<table class="privacy">
<thead><tr><th scope="col" class="text">Site</th><th scope="col">ε spent</th><th scope="col">ε budget</th>
<th scope="col">δ</th><th scope="col" class="text">Unit</th></tr></thead>
<tbody>
{% for site, p in summary.privacy.items() %}
<tr><th scope="row">{{ site }}</th><td>{{ p.epsilon_spent | number(2) }}</td><td>{{ p.epsilon_budget | number(2) }}</td>
<td>{{ "%.0e" % p.delta if p.delta else "–" }}</td><td class="text">{{ p.unit or "–" }}</td></tr>
{% endfor %}
</tbody></table>
{% endcall %}
{% else %}<p>Off. No differential privacy was applied, so there is no budget to show.</p>{% endif %}
</section>

<section aria-labelledby="model">
<h2 id="model">Model</h2>
{% if (summary.model or {}).groups %}
{% call box("Module groups") %}
<table class="model">
<caption>{{ summary.model.name or "–" }}, {{ summary.model.parameters | count }} parameters in
  {{ summary.model.groups | length }} module groups.</caption>
<thead><tr><th scope="col" class="text">Module group</th><th scope="col">Parameters</th><th scope="col">Size, MB</th></tr></thead>
<tbody>
{% for g in summary.model.groups %}
<tr><th scope="row">{{ g.name }}</th><td>{{ g.parameters | count }}</td><td>{{ g.megabytes | number(3) }}</td></tr>
{% endfor %}
</tbody></table>
{% endcall %}
{% else %}{{ missing("list of module groups") }}{% endif %}
</section>

<section aria-labelledby="configuration">
<h2 id="configuration">Configuration</h2>
{% if config %}
<pre role="region" aria-label="Configuration" tabindex="0">{{ config }}</pre>
{% else %}{{ missing("configuration") }}{% endif %}
</section>
"""
