"""What the numbers say, in sentences computed from `summary.json`: notices, the headline and where each method wins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from server.report.formats import interval, listed, number, words
from server.report.scores import Score, organs, score
from server.report.tables import local_site

# Differences of AUROC below this are called level: one test patient changes that much.
LEVEL = 0.01


@dataclass(frozen=True)
class Remark:
    """A bold lead and the sentence behind it. `level`: `warn` for what a reader must not miss."""

    title: str
    text: str
    level: str = "info"


@dataclass(frozen=True)
class Question:
    """One comparison with the federated model, and the title for each way it may come out."""

    other: str
    test_set: str
    better: str
    worse: str
    level: str
    mixed: str


QUESTIONS = (
    Question(
        "local",
        "metrics",
        "Federation helps: better than local-only on everyone's patients.",
        "Local-only models are ahead even on everyone's patients.",
        "No clear gain over local-only models on everyone's patients.",
        "Better than local-only on everyone's patients, for some organs.",
    ),
    Question(
        "local",
        "metrics_own",
        "Federation helps on the sites' own patients too.",
        "Local models win on their own patients.",
        "Local models are as good on their own patients.",
        "On the sites' own patients the gain depends on the organ.",
    ),
    Question(
        "naive",
        "metrics",
        "Better than naive averaging.",
        "Naive averaging is ahead.",
        "Naive averaging is as good, within the uncertainty.",
        "Better than naive averaging for some organs only.",
    ),
    Question(
        "pooled",
        "metrics",
        "Ahead of pooling all data.",
        "Pooling all data stays ahead.",
        "No clear loss against pooling all data.",
        "Against pooling all data it depends on the organ.",
    ),
    Question(
        "local",
        "metrics_external",
        "At a hospital that took no part: better than local-only.",
        "At a hospital that took no part: local-only models are ahead.",
        "At a hospital that took no part: no clear gain over local-only.",
        "At a hospital that took no part: better than local-only for some organs.",
    ),
)


def notices(summary: dict[str, Any]) -> list[Remark]:
    """What a reader must know before any number: where the data come from, privacy, an unfinished run."""
    remarks = [_data_notice(summary.get("data") or {})]
    if not summary.get("privacy"):
        remarks.append(
            Remark(
                "Privacy is off.",
                "Updates left the sites without differential privacy; scans did not leave, but nothing bounds "
                "what the updates reveal about a patient.",
                "warn",
            )
        )
    status = summary.get("status")
    if status != "completed":
        remarks.append(
            Remark("Not a finished run.", f"Its status is “{status}”; figures may be partial.", "warn")
        )
    return remarks


def _data_notice(data: dict[str, Any]) -> Remark:
    kind, note = data.get("kind"), str(data.get("note") or "")
    settings = [f"{words(k)} {v}" for k, v in (data.get("difficulty") or {}).items()]
    difficulty = f"Difficulty settings: {', '.join(settings)}." if settings else ""
    if kind == "phantom":
        title = "Simulated data."
        text = "Every result comes from PHANTOM patients drawn by a program. None says how the method does on people."
    elif kind == "real":
        title = "Partly simulated data."
        text = "A few real scans next to PHANTOM patients drawn by a program. It shows that the path works, not accuracy."
    elif kind == "manifest":
        title, text = "Data from a manifest.", "The volumes are those that the manifest lists."
    else:
        title, text = "Data of unknown origin.", "The summary does not say where the data come from."
    level = "info" if kind == "manifest" else "warn"
    return Remark(title, " ".join(t for t in (text, note, difficulty) if t), level)


def headline(summary: dict[str, Any]) -> list[str]:
    """One sentence per organ: federated with its interval against the baselines that ran, on the common test set."""
    sentences = []
    for organ in organs(summary):
        ours = score(summary, "metrics", "federated", organ)
        if ours.value is None:
            sentences.append(f"No federated {organ} score on the common test set.")
            continue
        others = []
        for key, name in (("pooled", "pooled"), ("naive", "naive"), ("local", "local-only")):
            value = score(summary, "metrics", key, organ).value
            if value is not None:
                others.append(f"{number(value, 2)} {name}")
        against = f" against {listed(others)}" if others else ""
        patients = f", n = {ours.n}" if ours.n is not None else ""
        sentences.append(f"Federated {_brief(ours)}{against} ({organ} AUROC, common test set{patients}).")
    return sentences


def findings(summary: dict[str, Any]) -> list[Remark]:
    """The comparisons this run can make, the unwelcome ones included."""
    remarks = []
    for question in QUESTIONS:
        pairs = {}
        for organ in organs(summary):
            ours = score(summary, question.test_set, "federated", organ)
            theirs = score(summary, question.test_set, question.other, organ)
            if ours.value is not None and theirs.value is not None:
                pairs[organ] = (ours, theirs)
        if not pairs:
            continue
        verdicts = {organ: _verdict(*pair) for organ, pair in pairs.items()}
        clauses = [
            f"{organ} {_brief(ours)} federated, {_brief(theirs)} {question.other} ({verdicts[organ][1]})"
            for organ, (ours, theirs) in pairs.items()
        ]
        text = "; ".join(clauses)
        remarks.append(Remark(_title(question, [v[0] for v in verdicts.values()]), text[0].upper() + text[1:] + "."))
    return remarks + _site_findings(summary)


def _brief(s: Score) -> str:
    return " ".join(t for t in (number(s.value, 2), interval(s.low, s.high)) if t)


def _verdict(ours: Score, theirs: Score) -> tuple[str, str]:
    """How the federated score stands to another: a state, and the words for it."""
    assert ours.value is not None and theirs.value is not None
    difference = ours.value - theirs.value
    if abs(difference) < LEVEL:
        return "level", "level"
    word = "ahead" if difference > 0 else "behind"
    if not (ours.has_interval and theirs.has_interval):
        return word, f"{word}, interval not known"
    assert ours.low is not None and ours.high is not None and theirs.low is not None and theirs.high is not None
    if ours.low > theirs.high:
        return "better", "clearly ahead, intervals apart"
    if ours.high < theirs.low:
        return "worse", "clearly behind, intervals apart"
    return word, f"{word}, but the intervals overlap"


def _title(question: Question, states: list[str]) -> str:
    if all(s == "better" for s in states):
        return question.better
    if "better" in states:
        return question.mixed
    return question.worse if "worse" in states or "behind" in states else question.level


def _site_findings(summary: dict[str, Any]) -> list[Remark]:
    """Sites whose own model is ahead on their own patients: to them the federation offers nothing for those."""
    cross = summary.get("cross_site") or {}
    models, sites = [str(m) for m in cross.get("models") or []], [str(s) for s in cross.get("sites") or []]
    if "federated" not in models:
        return []
    remarks = []
    for organ, rows in (cross.get("organ") or {}).items():
        compared, ahead = 0, []
        for model, row in zip(models, rows, strict=False):
            site = local_site(model, sites)
            if site is None:
                continue
            column = sites.index(site)
            own, federated = row[column], rows[models.index("federated")][column]
            if own is None or federated is None:
                continue
            compared += 1
            if own > federated:
                ahead.append(f"{site} {number(own, 2)} against {number(federated, 2)}")
        if compared:
            title = f"Site by site, {organ}: the site's own model is ahead at {len(ahead)} of {compared} on its own patients."
            text = f"{listed(ahead)}. Few test patients per site: single sites mean little." if ahead else ""
            remarks.append(Remark(title, text))
    return remarks
