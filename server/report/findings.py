"""What the numbers say: notices, headline and findings, every sentence computed from `summary.json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from server.report.formats import SPACE, interval, listed, number, words
from server.report.participation import incomplete
from server.report.scores import Score, organs, score
from server.report.tables import local_site

# Differences of AUROC below this are called level: a test set of a few hundred patients cannot show less.
LEVEL = 0.01


@dataclass(frozen=True)
class Remark:
    """A bold lead and the sentence behind it. `level`: `warn` for what a reader must not miss."""

    title: str
    text: str
    level: str = "info"


@dataclass(frozen=True)
class Question:
    """One comparison with the federated model: the condition and the test set, and how a title names them."""

    other: str
    test_set: str
    name: str
    where: str


QUESTIONS = (
    Question("local", "metrics", "the average local-only model", "On everyone's patients"),
    Question("local", "metrics_own", "the average local-only model", "On the sites' own patients"),
    Question("local", "metrics_external", "the average local-only model", "At a hospital that took no part"),
    Question("naive", "metrics", "naive averaging", "On everyone's patients"),
    Question("pooled", "metrics", "pooling all data", "On everyone's patients"),
)


# Where data come from: data.kind -> title, and a sentence for a run that has no note of its own.
ORIGINS = {
    "phantom": ("Simulated PHANTOM data.", "Every patient in this report was drawn by a program."),
    "real": ("Partly simulated PHANTOM data.", "A few real scans stand beside patients drawn by a program."),
    "manifest": ("Data from a manifest.", "The volumes are those that it lists."),
}
UNKNOWN = ("Data of unknown origin.", "The summary does not say where they come from.")


def notices(summary: dict[str, Any]) -> list[Remark]:
    """What a reader must know before any number: where the data come from, privacy, an unfinished run."""
    remarks = [_data_notice(summary.get("data") or {})]
    if not summary.get("private_updates", summary.get("privacy")):
        remarks.append(
            Remark(
                "Privacy is off.",
                "Updates left the sites without differential privacy. Scans did not leave, but nothing "
                "bounds what the updates reveal about a patient.",
                "warn",
            )
        )
    if gone := incomplete(summary):
        remarks.append(Remark("Not every site took part in every round.", f"No update came from {gone}.", "warn"))
    status = summary.get("status")
    if status != "completed":
        remarks.append(Remark("Not a finished run.", f"Its status is “{status}”; figures may be partial.", "warn"))
    return remarks


def _data_notice(data: dict[str, Any]) -> Remark:
    kind = data.get("kind")
    settings = [f"{words(k)} {_setting(v)}" for k, v in (data.get("difficulty") or {}).items()]
    difficulty = f"Difficulty settings: {', '.join(settings)}." if settings else ""
    title, text = ORIGINS.get(str(kind), UNKNOWN)
    text = str(data.get("note") or text)
    return Remark(title, f"{text} {difficulty}".strip(), "info" if kind == "manifest" else "warn")


def _setting(value: Any) -> str:
    return ("off", "on")[value] if isinstance(value, bool) else str(value)


def headline(summary: dict[str, Any]) -> list[str]:
    """One sentence per organ: federated against the baselines that ran, on the common test set; else how validation ended."""
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
        patients = f", n{SPACE}={SPACE}{ours.n}" if ours.n is not None else ""
        federated = " ".join(t for t in (number(ours.value, 2), interval(ours.interval)) if t)
        sentences.append(f"Federated {federated}{against} ({organ} AUROC, common test set{patients}).")
    curve = ((summary.get("stages") or {}).get("finetune") or {}).get("val_score") or [None]
    if not sentences and curve[-1] is not None:
        told = f"{number(curve[-1], 2)} after round {len(curve)} of stage 2"
        sentences.append(f"Validation AUROC {told}, on the sites' own validation patients. There are no test scores.")
    if not sentences and summary.get("validation"):
        sentences.append("There are no test scores; what the sites' noisy histograms say stands under Privacy.")
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
        clauses = []
        for organ, (ours, theirs) in pairs.items():
            best = f", best site {number(theirs.spread[1], 2)}" if theirs.spread else ""
            both = f"federated {number(ours.value, 2)}, {question.other} {number(theirs.value, 2)}{best}"
            clauses.append(f"{organ} {both} ({verdicts[organ][1]})")
        text = "; ".join(clauses)
        remarks.append(
            Remark(
                _title(question, {organ: v[0] for organ, v in verdicts.items()}),
                text[0].upper() + text[1:] + ".",
            )
        )
    return remarks + _site_findings(summary)


def _verdict(ours: Score, theirs: Score) -> tuple[str, str]:
    """How the federated score stands to another: a state, and the words for it."""
    assert ours.value is not None
    assert theirs.value is not None
    difference = ours.value - theirs.value
    if abs(difference) < LEVEL:
        return "level", "level"
    ahead = difference > 0
    word = "ahead" if ahead else "behind"
    if ours.interval is None:
        return word, f"{word}, no interval"
    # A mean over sites has no interval of its own: its value stands for both ends.
    low, high = theirs.interval or (theirs.value, theirs.value)
    if ours.interval[0] > high or ours.interval[1] < low:
        reason = "intervals apart" if theirs.interval else "outside the federated interval"
        return "better" if ahead else "worse", f"clearly {word}, {reason}"
    return word, f"{word}, but within the uncertainty"


def _title(question: Question, states: dict[str, str]) -> str:
    """The comparison in one line; states: organ -> state."""
    up = [organ for organ, state in states.items() if state in ("better", "ahead")]
    down = [organ for organ, state in states.items() if state in ("worse", "behind")]
    better = [organ for organ, state in states.items() if state == "better"]
    if up and down:
        text = f"federated is ahead for {listed(up)}, {question.name} for {listed(down)}"
    elif down:
        text = f"{question.name} is ahead" + ("" if len(down) == len(states) else f" for {listed(down)}")
    elif better:
        text = f"federated is better than {question.name}"
        text += "" if len(better) == len(states) else f" for {listed(better)} only"
    else:
        text = f"no clear gain over {question.name}" if up else f"{question.name} is as good"
    return f"{question.where}, {text}."


def _site_findings(summary: dict[str, Any]) -> list[Remark]:
    """Sites whose own model is ahead on their own patients, for whom the federation does nothing there."""
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
            tally = f"{len(ahead)} of {compared}"
            title = f"Site by site, {organ}: the site's own model is ahead at {tally} on its own patients."
            text = f"{listed(ahead)}. Few test patients per site: single sites mean little." if ahead else ""
            remarks.append(Remark(title, text))
    return remarks
