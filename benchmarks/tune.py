"""Learning rate and rounds of the demo, chosen on validation patients of seeds that are not reported. Phantom results.

    python -m benchmarks.tune [key=value ...] [--seeds 100 101] [--lr 0.00075 0.0015 0.003] [--stage short demo]

Trains the federation alone for each setting and writes benchmarks/results/tune.csv: validation AUROC and loss after the last
round. Test patients are never looked at.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import statistics
from typing import Any

from benchmarks.demo import RESULTS, write
from configs import load
from server.progress import make_progress
from simulation.experiment import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101])
    parser.add_argument("--lr", type=float, nargs="+", default=[7.5e-4, 1.5e-3, 3e-3])
    parser.add_argument("--stage", nargs="+", default=["short", "demo"])
    parser.add_argument("overrides", nargs="*", help="settings, as for medmap-sim")
    args = parser.parse_args()
    path = RESULTS / "tune.csv"
    RESULTS.mkdir(exist_ok=True)
    rows: dict[tuple[str, float, int], dict[str, Any]] = {}  # settings tried before stay, unless they are tried again
    if path.exists():
        with path.open(newline="", encoding="utf-8") as f:
            rows = {(r["stage"], float(r["lr"]), int(r["seed"])): dict(r) for r in csv.DictReader(f)}
    for stage, lr, seed in itertools.product(args.stage, args.lr, args.seeds):
        name = f"{stage}-{lr:g}-{seed}"
        settings = [f"stage={stage}", f"stage.pretrain.lr={lr}", f"stage.finetune.lr={lr}", f"seed={seed}"]
        alone = ["baselines=[]", "bootstrap=0", "engine.workers=1", f"output_dir=outputs/tune/{name}"]
        with make_progress(plain=True) as progress:
            folder = run(load([*settings, *alone, *args.overrides]), progress)
        curve = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["stages"]["finetune"]
        last = {"val_auroc": curve["val_score"][-1], "val_loss": curve["val_loss"][-1]}
        rows[stage, lr, seed] = {"stage": stage, "lr": lr, "seed": seed, **last}
        write(path, [rows[key] for key in sorted(rows)])
    for stage, lr in sorted({key[:2] for key in rows}):
        mine = [r for key, r in rows.items() if key[:2] == (stage, lr)]
        auroc, loss = (statistics.fmean(float(r[k]) for r in mine) for k in ("val_auroc", "val_loss"))
        print(f"{stage:<6} lr {lr:<8g} validation AUROC {auroc:.3f}  loss {loss:.3f}  ({len(mine)} seeds)")


if __name__ == "__main__":
    main()
