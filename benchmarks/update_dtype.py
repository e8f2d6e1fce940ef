"""What small updates cost: bytes sent and AUROC by `strategy.update_dtype`, on the smoke experiment's phantom.

    python -m benchmarks.update_dtype [key=value ...] [--seeds 0 1 2]

Trains the federation alone for each dtype and seed and writes benchmarks/results/update_dtype.csv: megabytes of parameters from
and to all sites of a run, and the AUROC on the common test set, mean and standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

from benchmarks.demo import RESULTS, write
from configs import load
from server.progress import make_progress
from simulation.experiment import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("overrides", nargs="*", help="settings, as for medmap-sim")
    args = parser.parse_args()
    dtypes = ("float32", "float16", "int8")
    rows = [row(dtype, [summary(dtype, seed, args.overrides) for seed in args.seeds]) for dtype in dtypes]
    RESULTS.mkdir(exist_ok=True)
    write(RESULTS / "update_dtype.csv", rows)
    print(*rows, sep="\n")


def row(dtype: str, summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """A line of the table, from the summaries of several seeds."""
    line: dict[str, Any] = {"dtype": dtype, "seeds": len(summaries)}
    for way in ("up", "down"):
        line[f"{way}_mb"] = round(statistics.fmean(s["communication"][f"bytes_{way}"] for s in summaries) / 1e6, 2)
    for organ in sorted(summaries[0]["metrics"]["federated"]):
        aurocs = [s["metrics"]["federated"][organ]["auroc"] for s in summaries]
        line[f"{organ}_auroc_mean"] = round(statistics.fmean(aurocs), 3)
        line[f"{organ}_auroc_sd"] = round(statistics.stdev(aurocs), 3) if len(aurocs) > 1 else None
    return line


def summary(dtype: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """The summary.json of one run."""
    asked = [f"strategy.update_dtype={dtype}", f"seed={seed}", f"output_dir=outputs/update_dtype/{dtype}-{seed}"]
    with make_progress(plain=True) as progress:
        done = run(load(["experiment=smoke", "baselines=[]", "engine.workers=1", *asked, *overrides]), progress)
    return json.loads((done / "summary.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
