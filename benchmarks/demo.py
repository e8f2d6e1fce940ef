"""The demo over several seeds: every condition on the three test sets, mean and spread. Phantom results.

    python -m benchmarks.demo [key=value ...] [--seeds 0 1 2]

A seed changes data, initialisation and sampling. Writes benchmarks/results/demo.csv (a row per seed, condition, organ, test
set) and demo_mean.csv (mean, standard deviation and smallest difference from `local` over seeds).
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from configs import load
from server.progress import make_progress
from simulation.experiment import run

SETS = {"metrics": "common", "metrics_own": "own", "metrics_external": "external"}
METRICS = ("auroc", "balanced_accuracy", "macro_f1")
RESULTS = Path(__file__).parent / "results"


def rows_of(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """A flat row per condition, organ and test set."""
    return [
        {"seed": summary["seed"], "condition": condition, "organ": organ, "test_set": name}
        | {m: scores.get(m) for m in METRICS}
        for key, name in SETS.items()
        for condition, organs in summary[key].items()
        for organ, scores in (organs or {}).items()
    ]


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds, and the paired difference from local-only."""
    found: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        found[row["test_set"], row["organ"], row["condition"]][row["seed"]] = row
    table = []
    for (test_set, organ, condition), seeds in sorted(found.items()):
        local = found.get((test_set, organ, "local"), {})
        line: dict[str, Any] = {"test_set": test_set, "organ": organ, "condition": condition, "seeds": len(seeds)}
        for metric in METRICS:
            values = [r[metric] for r in seeds.values() if r[metric] is not None]
            line[f"{metric}_mean"] = round(statistics.fmean(values), 3) if values else None
            line[f"{metric}_sd"] = round(statistics.stdev(values), 3) if len(values) > 1 else None
        gaps = [
            r["auroc"] - local[s]["auroc"]
            for s, r in seeds.items()
            if s in local and None not in (r["auroc"], local[s]["auroc"])
        ]
        line["auroc_over_local_smallest"] = round(min(gaps), 3) if gaps else None
        table.append(line)
    return table


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--name", default="demo", help="stem of the CSV files")
    parser.add_argument("overrides", nargs="*", help="settings, as for medmap-sim")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        config = load([*args.overrides, f"seed={seed}", f"output_dir=outputs/benchmark/{args.name}-{seed}"])
        with make_progress(plain=True) as progress:
            folder = run(config, progress)
        rows += rows_of(json.loads((folder / "summary.json").read_text(encoding="utf-8")))
    RESULTS.mkdir(exist_ok=True)
    write(RESULTS / f"{args.name}.csv", rows)
    write(RESULTS / f"{args.name}_mean.csv", table := means(rows))
    for line in table:
        print("  ".join(f"{v}" for v in line.values()))


if __name__ == "__main__":
    main()
