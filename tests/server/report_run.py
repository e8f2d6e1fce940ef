"""A realistic run's folder, as `medmap-sim` leaves it, with hostile names: what the report is tested on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.image import imsave

from tests.server.report_parts import (
    BRAIN,
    HOSTILE,
    LIVER,
    SITES,
    curves,
    entry,
    evaluation,
    operating_points,
    organs_of,
    subgroups,
)


def mean_over_sites(auroc: float, n: int) -> dict[str, Any]:
    return {
        "auroc": auroc,
        "auroc_range": [auroc - 0.11, auroc + 0.03],
        "balanced_accuracy": None,
        "n": n,
        "models": 4,
    }


def cross_site() -> dict[str, Any]:
    sites = [*SITES, "external"]
    models = ["federated", "pooled", "naive", *(f"local-{s}" for s in SITES)]
    tables = {}
    for organ in ("brain", "liver"):
        has = [organ in organs_of(SITES.get(s, [*BRAIN, *LIVER])) for s in sites]
        rows: list[list[float | None]] = []
        for i, model in enumerate(models):
            trained = i < 3 or has[i - 3]
            own = model.removeprefix("local-")
            base = 0.9 - 0.02 * i if i < 3 else 0.72 + 0.013 * i
            rows.append(
                [
                    (0.97 if s == own else base - 0.01 * j) if trained and ok else None
                    for j, (s, ok) in enumerate(zip(sites, has, strict=True))
                ]
            )
        tables[organ] = rows
    return {"models": models, "sites": sites, "metric": "auroc", "organ": tables}


def curve(start: float, end: float, rounds: int) -> list[float]:
    return [end + (start - end) * math.exp(-i / 3) + 0.02 * math.sin(2.3 * i) for i in range(rounds)]


def stages(worse: float) -> dict[str, Any]:
    finetune = {"rounds": 12, "loss": curve(0.9, 0.3 + worse, 12), "val_score": curve(0.5, 0.92 - worse, 12)}
    return {
        "pretrain": {"rounds": 8, "loss": curve(2.6, 1.1 + worse, 8), "val_loss": curve(2.6, 1.3, 8)},
        "finetune": finetune,
    }


def full_summary() -> dict[str, Any]:
    def scores(brain: float, liver: float, n: int) -> dict[str, Any]:
        return {"brain": entry(brain, n), "liver": entry(liver, n)}

    groups = [*(f"encoder/{m}" for m in (*BRAIN, *LIVER)), "fusion", "head/brain", "head/liver"]
    return {
        "schema_version": 1,
        "status": "completed",
        "seed": 0,
        "engine": "inprocess",
        "data": {
            "kind": "phantom",
            "note": "Lesion regions of a brain and an abdomen phantom.",
            "difficulty": {"scanner_strength": 0.4, "lesion_scale": 1.25, "confounders": 1.0},
        },
        "model": {
            "name": "tiny",
            "parameters": 985_000,
            "groups": [{"name": g, "parameters": 65_000, "megabytes": 0.26} for g in groups],
        },
        "sites": [
            {
                "name": s,
                "modalities": m,
                "organs": organs_of(m),
                "studies": {"train": 80 * len(organs_of(m)), "val": 16, "test": 28},
                "scanner": f"{'1.5' if i % 2 else '3'} T, vendor {'ABC'[i % 3]}",
                "external": s == "external",
                "volumes": dict.fromkeys(m, 68 + 2 * i),
            }
            for i, (s, m) in enumerate({**SITES, "external": [*BRAIN, *LIVER]}.items())
        ],
        "stages": stages(0.0),
        "baseline_stages": {"pooled": stages(-0.05), "naive": stages(0.08)},
        "metrics": {
            "federated": scores(0.945, 0.839, 168),
            "local": {"brain": mean_over_sites(0.835, 168), "liver": mean_over_sites(0.696, 168)},
            "pooled": scores(0.967, 0.847, 168),
            "naive": scores(0.915, 0.801, 168),
        },
        "metrics_own": {
            "federated": {"brain": mean_over_sites(0.905, 28), "liver": mean_over_sites(0.856, 28)},
            "local": {"brain": mean_over_sites(0.964, 28), "liver": mean_over_sites(0.808, 28)},
            "pooled": None,
            "naive": {"brain": mean_over_sites(0.94, 28), "liver": mean_over_sites(0.856, 28)},
        },
        "metrics_external": {
            "federated": scores(0.919, 0.924, 70),
            "local": scores(0.804, 0.752, 70),
            "pooled": scores(0.953, 0.9, 70),
            "naive": scores(0.9, 0.896, 70),
        },
        "cross_site": cross_site(),
        "operating_points": operating_points(),
        "subgroups": subgroups(),
        "curves": curves(),
        "evaluation": evaluation(),
        "privacy": None,
        "participation": [
            {
                "stage": "pretrain" if i < 8 else "finetune",
                "round": i % 8 + 1,
                "returned": [s for s in SITES if (s, i) != ("H2", 4)],
                "missing": ["H2"] if i == 4 else [],
                "refused": [{"site": HOSTILE, "reason": "policy <i>no</i>"}] if i == 9 else [],
            }
            for i in range(20)
        ],
        "communication": {
            "bytes_down": 212_000_000,
            "bytes_up": 198_000_000,
            "bytes_full_model": 3_940_000,
            "per_group": {g: 9_000_000 - 400_000 * i for i, g in enumerate(groups)},
        },
        "timing": {
            "wall_s": 281.4,
            "import_s": 6.1,
            "generate_s": 31.0,
            "prepare_s": 12.4,
            "train_s": 214.0,
            "evaluate_s": 14.2,
            "report_s": 2.2,
            "overhead_share": 0.021,
            "rounds": [8.0 + 0.2 * i for i in range(20)],
        },
    }


def write_run(folder: Path) -> Path:
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(full_summary()))
    (folder / "config.yaml").write_text("seed: 0\n" + "".join(f"key_{i}: value {i}\n" for i in range(60)))
    lines = []
    for condition, worse in (
        ("federated", 0.0),
        ("pooled", -0.05),
        ("naive", 0.08),
        ("local-H1", 0.1),
        ("local-H2", 0.2),
    ):
        for stage, figures in stages(worse).items():
            for i in range(figures["rounds"]):
                row = {
                    "condition": condition,
                    "stage": stage,
                    "round": i + 1,
                    "val_loss": -1,
                    "val_score": math.nan,
                }
                row |= {k: v[i] for k, v in figures.items() if k != "rounds"}
                row["sites"] = {s: {"loss": row["loss"], "train_s": 1.2} for s in SITES}
                lines.append(json.dumps(row))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"condition": "feder')
    (folder / "examples").mkdir()
    y, x = np.mgrid[-1:1:48j, -1:1:48j]
    examples = []
    for i, (organ, modalities) in enumerate((("brain", BRAIN), ("liver", LIVER), ("brain", ["T2", "FLAIR"]))):
        slices = []
        for j, m in enumerate(modalities):
            image = 40 + 120 * (x**2 + y**2 < 0.8) + (60 if j % 2 else -90) * ((x - 0.3) ** 2 + y**2 < 0.06)
            name = f"{i}_{j}.png"
            imsave(folder / "examples" / name, image, cmap="gray")
            slices.append({"name": m, "image": name})
            if i == 0 and m != "T2":
                imsave(folder / "examples" / f"heat_{name}", image, cmap="viridis")
                slices[-1]["overlay"] = f"heat_{name}"
        names = ["no_tumour", "tumour"] if organ == "brain" else ["hemangioma", "icc", "abscess", "hcc"]
        examples.append(
            {
                "site": "H1",
                "organ": organ,
                "patient": f"{organ}-{i:03d}",
                "abnormality": names[-1],
                "report": "Ring-enhancing mass with oedema in the left frontal lobe, about 3 cm. <img src=x onerror=1>",
                "probabilities": {n: (k + 1) / sum(range(len(names) + 1)) for k, n in enumerate(names)},
                "modalities": slices,
            }
        )
    examples[0]["importance"] = {"T1": 0.214, "T1ce": -0.03, "T2": None}
    examples[2]["modalities"].append({"name": "T1", "image": "../summary.json"})
    (folder / "examples" / "examples.json").write_text(json.dumps(examples))
    return folder
