"""The dynamic volumes of one study in; which contrast phase each is, how sure that is and why out.

A phase told by the volume's own name holds. Otherwise time decides: seconds since the contrast agent, where a header says
when that was; else since the first volume after it, taken as a typical arterial phase, which is less sure.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from client.dicom.headers import DAY_S, seconds, text
from client.dicom.parts import Part
from client.dicom.rules import Choice, Facts, Phase

_BY_NAME, _BY_TIME, _BY_ORDER, _BETWEEN = 0.9, 0.85, 0.75, 0.6
_ALONE, _NO_TIME = 0.4, 0.3  # one volume after contrast and nothing to count from; no time at all


def phases_of(volumes: Sequence[tuple[Part, Facts]], phases: Sequence[Phase], organ: str | None) -> list[Choice]:
    """A choice for each volume, in the order given. `phases` in the order of time, the first before contrast."""
    parts = [part for part, _ in volumes]
    agent = [facts.contrast for _, facts in volumes]
    named = [_named(part, facts, phases) for part, facts in volumes]
    start_s = next((s for s in map(_start_s, parts) if s is not None), None)
    order = sorted((p.time_s, i) for i, p in enumerate(parts) if p.time_s is not None)
    after = _after(agent, named, phases, [i for _, i in order])
    shared = Counter((id(p.series), p.time_s) for p in parts)  # a time of several is their series', not theirs
    by_order = _BETWEEN if all(agent) else _BY_ORDER  # then none says it came before
    made = []
    for i, part in enumerate(parts):
        if (phase := named[i]) is not None:
            made.append(Choice(phase.modality, organ, _BY_NAME, "the phase is in its name"))
        elif part.time_s is None or shared[id(part.series), part.time_s] > 1:
            said = "a dynamic volume without a time of its own or a phase in its name"
            made.append(Choice(None, organ, _NO_TIME, said))
        elif start_s is not None:
            made.append(_timed(part.time_s - start_s, phases, organ, _BY_TIME, "after the contrast agent"))
        elif i not in after:
            made.append(Choice(phases[0].modality, organ, by_order, "the first of the dynamic series, before contrast"))
        elif len({parts[j].time_s for j in after}) == 1:
            made.append(
                Choice(phases[1].modality, organ, _ALONE, "no two times after contrast, to tell which phase it is")
            )
        else:
            first = next(j for _, j in order if j in after)
            came = named[first] or phases[1]
            delay = part.time_s - (parts[first].time_s or 0.0) + came.typical_s
            made.append(_timed(delay, phases, organ, by_order, f"after contrast, if {came.modality} came first"))
    return made


def _named(part: Part, facts: Facts, phases: Sequence[Phase]) -> Phase | None:
    """The one phase that its name tells; a name with two tells none, nor one shared by a series' time points."""
    found = [phase for phase in phases if re.search(phase.words, facts.words)]
    several = any(word in part.label for word in ("time", "acquisition"))
    return found[0] if len(found) == 1 and not several else None


def _start_s(part: Part) -> float | None:
    """When the agent was given, of the header, on the day that makes it nearest to the volume."""
    of_day = seconds("", text(part.series.header, "ContrastBolusStartTime"))
    if of_day is None or part.time_s is None:
        return None
    return part.time_s - (part.time_s - of_day + DAY_S / 2) % DAY_S + DAY_S / 2


def _after(
    agent: Sequence[bool], named: Sequence[Phase | None], phases: Sequence[Phase], order: Sequence[int]
) -> set[int]:
    """Which parts come after contrast: those that name an agent; where all or none do, all but the first."""
    if all(agent[i] == agent[order[0]] for i in order):
        has_pre = any(phase is phases[0] for phase in named)
        return set(order if has_pre else order[1:]) - {i for i in order if named[i] is phases[0]}
    first = next(i for i in order if agent[i])
    return set(order[order.index(first) :])


def _timed(delay_s: float, phases: Sequence[Phase], organ: str | None, confidence: float, said: str) -> Choice:
    reason = f"{delay_s:.0f} s {said}"
    if delay_s < 0:
        return Choice(phases[0].modality, organ, confidence, f"{-delay_s:.0f} s before the contrast agent")
    for phase in phases[1:]:
        if phase.after_s is not None and delay_s in phase.after_s:
            return Choice(phase.modality, organ, confidence, reason, abs(delay_s - phase.typical_s))
    nearest = min(phases[1:], key=lambda p: abs(p.typical_s - delay_s))
    return Choice(nearest.modality, organ, _BETWEEN, f"{reason}, between the phases", abs(delay_s - nearest.typical_s))
