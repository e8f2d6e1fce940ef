"""The report's section on who took part: per site the rounds with and without its update, and a matrix when any is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from statistics import median
from typing import Any

Row = dict[str, Any]

STATES = {"returned": "✓", "silent": "s", "refused": "r", "absent": "a"}
MAX_ROUNDS = 40  # columns of the matrix, the last ones: more do not fit a printed page
MAX_EVENTS = 40  # rounds without every site that are listed one by one

PARTICIPATION = """
{% if "participation" in sections %}
<section aria-labelledby="participation">
<h2 id="participation">Participation</h2>
{% call box("Participation by site") %}
<table class="participation">
<caption>Over {{ participation.rounds }} federated rounds.</caption>
{% set figures = ["Last training loss", "Training per round"] if participation.figures else [] %}
{{ head(["Site", "Returned", "Silent", "Refused", "Absent"] + figures, text=[0]) }}
<tbody>
{% for r in participation.rows %}
<tr><th scope="row">{{ r.site }}</th>
{% for state in ("returned", "silent", "refused", "absent") %}<td>{{ r[state] }}</td>{% endfor %}
{% if figures %}<td>{{ r.loss | number }}</td><td>{{ r.train_s | duration }}</td>{% endif %}</tr>
{% endfor %}
</tbody></table>
{% endcall %}
{% if participation.events %}
<h3>Rounds without every site</h3>
{% call box("Participation by site and round") %}
<table class="grid rounds">
<caption>✓ returned an update, s silent, r refused or was refused, a absent.
{% if participation.cut %}The last {{ participation.columns | length }} rounds.{% endif %}</caption>
<thead><tr><td></td>
{% for stage, span in participation.stages %}<th scope="colgroup" colspan="{{ span }}">{{ stage }}</th>{% endfor %}</tr>
<tr><th scope="col" class="text">Site</th>
{% for n in participation.columns %}<th scope="col">{{ n }}</th>{% endfor %}</tr></thead>
<tbody>
{% for name, cells in participation.matrix %}
<tr><th scope="row">{{ name }}</th>
{% for state, sign in cells %}<td class="{{ state }}"><span aria-hidden="true">{{ sign }}</span>
<span class="hidden">{{ state or "not asked" }}</span></td>{% endfor %}</tr>
{% endfor %}
</tbody></table>
{% endcall %}
<ul>
{% for e in participation.events %}<li>{{ e }}</li>
{% endfor %}
</ul>
{% if participation.more %}<p class="soft">And {{ participation.more }} more.</p>{% endif %}
{% else %}<p>Every site returned an update in every round it was asked in.</p>{% endif %}
{% include "alarms.html" %}
</section>
{% endif %}
"""


def participation_view(summary: Row, rounds: list[Row]) -> Row:
    """What the section shows. rounds: the lines of metrics.jsonl, for a run whose summary has no participation."""
    entries = summary.get("participation") or [r for r in rounds if r.get("condition") == "federated"]
    found = [_states(entry) for entry in entries]
    names = sorted({name for states in found for name in states})
    shown = entries[-MAX_ROUNDS:]
    events = [_event(entry, states) for entry, states in zip(entries, found, strict=True)]
    told = [e for e in events if e]
    rows = [{"site": s, **_count(s, found), **_last(s, rounds)} for s in names]
    return {
        "rounds": len(entries),
        "rows": rows,
        "figures": any(r[k] is not None for r in rows for k in ("loss", "train_s")),  # private sites send none
        "stages": [(stage, len(list(e))) for stage, e in groupby(shown, key=lambda e: e.get("stage"))],
        "columns": [e.get("round") for e in shown],
        "matrix": [(s, [(x.get(s, ""), STATES.get(x.get(s, ""), "")) for x in found[-MAX_ROUNDS:]]) for s in names],
        "cut": len(shown) < len(entries),
        "events": told[:MAX_EVENTS],
        "more": len(told[MAX_EVENTS:]),
    }


def incomplete(summary: Row) -> str:
    """In how many rounds each site's update was missing; empty when none was."""
    entries = summary.get("participation") or []
    gone = Counter(site for e in entries for site, state in _states(e).items() if state != "returned")
    return ", ".join(f"{site} in {n} of {len(entries)} rounds" for site, n in sorted(gone.items()))


def _states(entry: Row) -> dict[str, str]:
    """Site -> what it did in a round."""
    refused = [str(r.get("site")) for r in entry.get("refused") or []]
    listed: dict[str, Iterable[str]] = {
        "returned": entry.get("returned") or [],
        "silent": entry.get("missing") or [],
        "refused": refused,
        "absent": entry.get("absent") or [],
    }
    return {str(site): state for state, sites in listed.items() for site in sites}


def _event(entry: Row, states: dict[str, str]) -> str:
    """A round without every site as a sentence; empty when all returned."""
    reasons = {str(r.get("site")): f" ({r.get('reason')})" for r in entry.get("refused") or []}
    gone = [f"{s} {state}{reasons.get(s, '')}" for s, state in sorted(states.items()) if state != "returned"]
    return f"{entry.get('stage')}, round {entry.get('round')}: {', '.join(gone)}" if gone else ""


def _count(site: str, found: list[dict[str, str]]) -> Row:
    return {state: sum(states.get(site) == state for states in found) for state in STATES}


def _last(site: str, rounds: list[Row]) -> Row:
    """The site's last training loss and its median training time in the federated rounds."""
    rows = [(r.get("sites") or {}).get(site) for r in rounds if r.get("condition") == "federated"]
    present = [r for r in rows if r]
    times = [r["train_s"] for r in present if r.get("train_s") is not None]
    return {"loss": present[-1].get("loss") if present else None, "train_s": median(times) if times else None}
