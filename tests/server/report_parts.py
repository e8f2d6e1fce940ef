"""Scores, subgroups and evaluation of a realistic summary, as the simulation writes them: parts of `report_run`."""

from __future__ import annotations

from typing import Any

BRAIN = ["T1", "T1ce", "T2", "FLAIR"]
LIVER = ["T2WI", "DWI", "InPhase", "OutPhase", "C-pre", "C+A", "C+V", "C+Delay"]
HOSTILE = "H6<script>alert(1)</script>"
SITES = {
    "H1": BRAIN,
    "H2": ["T1", "T2", "FLAIR"],
    "H3": ["T1ce", "FLAIR", "C-pre", "C+A", "C+V", "C+Delay"],
    "H4": ["T1", "T2", "T2WI", "DWI", "InPhase", "OutPhase"],
    "H5": LIVER,
    HOSTILE: ["C+A", "C+V", "T2WI", "DWI"],
}


def organs_of(modalities: list[str]) -> list[str]:
    return [o for o, own in (("brain", BRAIN), ("liver", LIVER)) if set(own) & set(modalities)]


def entry(auroc: float, n: int, width: float = 0.03) -> dict[str, Any]:
    return {
        "auroc": auroc,
        "auroc_ci": [auroc - width, min(auroc + width, 0.999)],
        "balanced_accuracy": auroc - 0.1,
        "balanced_accuracy_ci": [auroc - 0.15, auroc - 0.05],
        "macro_f1": auroc - 0.12,
        "sensitivity": auroc - 0.05,
        "specificity": auroc - 0.07,
        "mcc": auroc - 0.2,
        "kappa": auroc - 0.22,
        "ece": 0.13,
        "ece_ci": [0.08, 0.19],
        "n": n,
    }


CLASSES = {
    "brain": ["no_tumour", "tumour"],
    "liver": ["hemangioma", "icc", "abscess", "metastasis", "cyst", "fnh", "hcc"],
}
SINGLE = "one class only: no_tumour (12 patients)"


def subgroups() -> dict[str, Any]:
    """As `simulation.comparison` writes them; at H2 there is one class only."""

    def parts(organ: str, n: int, sites: list[str]) -> dict[str, Any]:
        by_class = {
            c: entry(0.9 - 0.01 * i, n) | {"of": 7 * n, "threshold": 0.21} for i, c in enumerate(CLASSES[organ])
        }
        slots = len(BRAIN if organ == "brain" else LIVER)
        by_site: dict[str, Any] = {s: entry(0.88 - 0.01 * i, 28) for i, s in enumerate(sites)}
        if "H2" in by_site:
            by_site["H2"] = dict.fromkeys(entry(0.9, 1)) | {"n": 12, "ece": 0.2, "specificity": 0.75}
            by_site["H2"]["reasons"] = dict.fromkeys(("auroc", "mcc"), SINGLE)
        return {
            "classes": by_class,
            "modalities": {str(k): entry(0.7 + 0.02 * k, 20) for k in range(1, slots + 1)},
            "sites": by_site,
        }

    inside = {o: [s for s in SITES if o in organs_of(SITES[s])] for o in CLASSES}
    return {
        "common": {o: parts(o, 24, inside[o]) for o in CLASSES},
        "own": {o: parts(o, 20, inside[o]) for o in CLASSES},
        "external": {o: parts(o, 10, ["external"]) for o in CLASSES},
    }


def operating_points() -> dict[str, Any]:
    liver = {"rule": "validation", "thresholds": dict.fromkeys(CLASSES["liver"], 0.5), "patients": 0}
    liver["reasons"] = dict.fromkeys(CLASSES["liver"], "no validation patients: 0.5")
    return {
        "brain": {"rule": "validation", "thresholds": {"no_tumour": 0.37, "tumour": 0.63}, "patients": 96},
        "liver": liver,
    }


def curves() -> dict[str, Any]:
    """A ROC of each class (of two, the second's) and five bins of confidence; the liver has no bins."""
    points = [[(i / 20) ** 2, i / 20] for i in range(21)]
    bins = [{"confidence": 0.15 + 0.2 * i, "accuracy": 0.1 + 0.17 * i, "n": 5 + 9 * i} for i in range(5)]
    liver = {c: {"points": points, "at": [0.1 + 0.02 * i, 0.5]} for i, c in enumerate(CLASSES["liver"])}
    brain = {"tumour": {"points": points, "at": [0.2, 0.8]}}
    return {"brain": {"roc": brain, "reliability": bins}, "liver": {"roc": liver, "reliability": []}}


def missing(modalities: list[str]) -> dict[str, Any]:
    """Every subset: the more is hidden, the worse; without the last modality worst."""
    subsets = []
    for bits in range(2 ** len(modalities) - 1):
        hidden = [m for i, m in enumerate(modalities) if bits >> i & 1]
        auroc = 0.95 - 0.04 * len(hidden) - 0.03 * (modalities[-1] in hidden)
        subsets.append({"missing": hidden, "auroc": auroc, "balanced_accuracy": auroc - 0.1})
    worst = min(subsets, key=lambda s: s["auroc"])
    return {
        "modalities": modalities,
        "n": 70,
        "metric": "auroc",
        "full": 0.95,
        "mean": sum(s["auroc"] for s in subsets) / len(subsets),
        "expected": {"0.05": 0.94, "0.1": 0.93, "0.2": 0.91},
        "worst": {"value": worst["auroc"], "missing": worst["missing"]},
        "random": {
            "0.25": {"mean": 0.93, "all": 0.92, "worst": {"value": 0.92, "lost": modalities}},
            "0.5": {"mean": 0.88, "all": 0.85, "worst": {"value": 0.85, "lost": modalities}},
            "0.75": {"mean": None, "worst": None, "reason": "one class only"},
        },
        "noisy": {"low": 0.94, "mid": 0.9, "high": 0.78},
        "subsets": subsets,
    }


def corruptions() -> dict[str, Any]:
    names = ("bias_field", "ghosting", "motion", "undersampling", "noise", "resolution")
    rows = [
        {"name": n, "severity": s, "auroc": 0.95 - 0.02 * s - 0.01 * i, "balanced_accuracy": 0.8, "ece": 0.1 + 0.03 * s}
        | {"calibration_shift": -0.01 if s == 1 else 0.04 * s}
        for i, n in enumerate(names)
        for s in (1, 2, 3)
    ]
    clean = {"auroc": 0.95, "balanced_accuracy": 0.85, "ece": 0.1}
    worst = min(rows, key=lambda r: r["auroc"])
    return {
        "clean": clean,
        "rows": rows,
        "mean": 0.9,
        "worst": worst,
        "skipped": {"motion": "motion needs torchio <i>x</i>"},
    }


def evaluation() -> dict[str, Any]:
    """As `simulation.evaluate` writes it: the brain whole, of the liver what may be missing."""
    found = {"recall@1": 0.21, "recall@5": 0.55, "recall@10": 0.75, "median_rank": 4.5, "n": 70}
    both = {"image_to_report": found, "report_to_image": {**found, "recall@1": 0.19}, "n": 70}
    empty = {"image_to_report": None, "report_to_image": None, "n": 0, "reason": "no patient has a report"}
    return {
        "test_set": "external hospital, 70 patients per organ",
        "zero_shot": {
            "brain": {"pretrained": entry(0.71, 70), "final": entry(0.83, 70)},
            "liver": {"pretrained": None, "final": {"auroc": None, "n": 3, "reasons": {"auroc": SINGLE}}},
        },
        "retrieval": {"brain": {"pretrained": both, "final": both}, "liver": {"final": empty}},
        "missing": {"brain": missing(BRAIN), "liver": missing(LIVER)},
        "corruptions": {
            "brain": corruptions(),
            "liver": {"clean": {"auroc": None}, "rows": [], "mean": None, "worst": None},
        },
        "importance": {"brain": {"T1": 0.02, "T1ce": 0.31, "T2": -0.04, "FLAIR": None}, "liver": {}},
    }
