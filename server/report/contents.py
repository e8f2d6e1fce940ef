"""What is in the report: its sections in their order, and why others are left out and which command fills them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.report.findings import Remark
from server.report.formats import listed

# Section's id -> its name in the list of sections.
TITLES = {
    "results": "Results",
    "subgroups": "Subgroups",
    "curves": "Learning curves",
    "cross-site": "Cross-site",
    "zero-shot": "Zero-shot",
    "missing": "Missing modalities",
    "corruptions": "Corruptions",
    "importance": "What mattered",
    "sites": "Sites",
    "partition": "Who has what",
    "ownership": "Modalities",
    "shift": "Shift",
    "participation": "Participation",
    "examples": "Examples",
    "communication": "Communication",
    "model": "Module groups",
    "timing": "Timing",
    "privacy": "Privacy",
    "configuration": "Configuration",
}
EVALUATED = ("zero-shot", "missing", "corruptions", "importance")
TESTED = (
    "results",
    "subgroups",
    "cross-site",
    *EVALUATED,
    "examples",
)  # of these the server of a deployed run has no patients
SIMULATED = ("partition",)  # a deployed run makes no hospitals


def contents(view: Mapping[str, Any], summary: Mapping[str, Any]) -> tuple[dict[str, str], list[Remark]]:
    """Id -> name of the sections that have something to say, and a remark for those left out, by reason."""
    evaluation = view["evaluation"]
    held = {
        "results": view["score_tables"],
        "subgroups": view["subgroups"],
        "curves": view["curves"],
        "cross-site": view["heat_maps"],
        "zero-shot": evaluation["zero_shot"] or evaluation["retrieval"],
        "missing": evaluation["missing"],
        "corruptions": evaluation["corruptions"],
        "importance": evaluation["importance"],
        "sites": summary.get("sites"),
        "partition": view["partition"],
        "ownership": view["ownership"]["modalities"],
        "shift": view["shift"],
        "participation": view["participation"]["rows"],
        "examples": view["examples"],
        "communication": view["communication"],
        "model": view["groups"],
        "timing": view["timing"],
        "privacy": True,  # that it is off is to be said
        "configuration": view["config"],
    }
    reasons: dict[str, list[str]] = {}
    for section in (s for s in TITLES if not held[s]):
        if reason := _why(section, summary):
            reasons.setdefault(reason, []).append(TITLES[section])
    left_out = [Remark(f"{listed(names, len(names))}.", reason) for reason, names in reasons.items()]
    return {s: name for s, name in TITLES.items() if held[s]}, left_out


def _why(section: str, summary: Mapping[str, Any]) -> str:
    """Why a section is left out and what fills it; empty where it has no place in such a run."""
    deployed = summary.get("engine") == "flower"
    if deployed and section in SIMULATED:
        return ""
    if deployed and section in TESTED:
        text = "Test patients stay at their hospitals."
        if summary.get("validation"):
            return f"{text} What the sites' noisy histograms say stands under Privacy."
        return (
            f"{text} “medmap-server validate RUN -o RUN --kit KIT” has the sites score the model by noisy histograms, at a cost "
            "in privacy; after “medmap-server report RUN” it stands under Privacy."
        )
    if deployed and section == "shift":
        return (
            "Sites release noisy moments of their images, at a cost in privacy, when privacy.shift_epsilon is above 0."
        )
    if section == "curves" and summary.get("private_updates"):
        return "Sites whose updates are private send no losses."
    if section in EVALUATED:
        return "This run did not measure it; evaluation=full does."
    return "The run's folder holds nothing of it."
