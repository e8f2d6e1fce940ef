"""The report's part on single sites' updates: alarms by site and kind, and whose update Krum took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

_WORDS = {
    "far": "far from the model, measured by the other sites' updates",
    "unchanged": "the model as it was sent",
    "repeated": "the update it had sent before",
}

ALARMS = """
{% from "macros.html" import box, head %}
{% if alarms.rows %}
<h3>Updates that look wrong</h3>
<p>An alarm refuses nothing: these updates are in the model, but for what a robust rule left out.</p>
{% call box("Alarms by site") %}
<table class="alarms">
{{ head(["Site", "Sent", "In rounds", "Largest ratio", "Module groups"], text=[0, 1, 2, 4]) }}
<tbody>
{% for a in alarms.rows %}
<tr><th scope="row">{{ a.site }}</th><td class="text">{{ a.what }}</td><td class="text">{{ a.rounds | listed }}</td>
<td>{% if a.ratio is not none %}{{ "%.0f" % a.ratio }}{% else %}–{% endif %}</td>
<td class="text">{{ a.groups | listed }}</td></tr>
{% endfor %}
</tbody></table>
{% endcall %}
{% endif %}
{% if alarms.chosen %}
<p>Whose update Krum took, counted over module groups and rounds:
{% for c in alarms.chosen %}{{ c.site }} ({{ c.times }}){{ "." if loop.last else ", " }}{% endfor %}</p>
{% endif %}
"""


def alarms_view(rounds: Sequence[Row]) -> Row:
    """rows: of each site and kind of alarm the rounds, the largest ratio and the module groups; chosen: how often whom."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    chosen: Counter[str] = Counter()
    for line in rounds:
        if line.get("condition") != "federated":
            continue
        chosen.update((line.get("chosen") or {}).values())
        for alarm in line.get("alarms") or []:
            key = (str(alarm["site"]), str(alarm["kind"]))
            row = found.setdefault(key, {"rounds": [], "groups": set(), "ratio": None})
            row["rounds"].append(f"{line['stage']} {line['round']}")
            if alarm["ratio"] is not None:
                row["ratio"] = max(alarm["ratio"], row["ratio"] or 0.0)
                row["groups"] |= set(alarm["groups"])
    return {
        "rows": [
            {
                "site": site,
                "what": _WORDS.get(kind, kind),
                **found[site, kind],
                "groups": sorted(found[site, kind]["groups"]),
            }
            for site, kind in sorted(found)
        ],
        "chosen": [{"site": site, "times": n} for site, n in sorted(chosen.items())],
    }
