"""Learning rate and rounds of the demo, chosen on validation patients of seeds that are not reported. Phantom results.

    python -m benchmarks.tune [key=value ...] [--seeds 100 101] [--lr 0.00075 0.0015 0.003] [--stage short demo]

Trains the federation alone for each setting and writes benchmarks/results/tune.csv: validation AUROC and loss after the last
round. Test patients are never looked at.
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
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101])
    parser.add_argument("--lr", type=float, nargs="+", default=[7.5e-4, 1.5e-3, 3e-3])
    parser.add_argument("--stage", nargs="+", default=["short", "demo"])
    parser.add_argument("overrides", nargs="*", help="settings, as for medmap-sim")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for stage in args.stage:
        for lr in args.lr:
            for seed in args.seeds:
                config = load(
                    [
                        f"stage={stage}", f"stage.pretrain.lr={lr}", f"stage.finetune.lr={lr}", f"seed={seed}", "baselines=[]",
                        "bootstrap=0", "engine.workers=1", f"output_dir=outputs/tune/{stage}-{lr:g}-{seed}", *args.overrides,
                    ]
                )  # fmt: skip
                with make_progress(plain=True) as progress:
                    folder = run(config, progress)
                curve = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["stages"]["finetune"]
                rows.append(
                    {
                        "stage": stage,
                        "lr": lr,
                        "seed": seed,
                        "val_auroc": curve["val_score"][-1],
                        "val_loss": curve["val_loss"][-1],
                    }
                )
                RESULTS.mkdir(exist_ok=True)
                write(RESULTS / "tune.csv", rows)
    for stage in args.stage:
        for lr in args.lr:
            mine = [r for r in rows if (r["stage"], r["lr"]) == (stage, lr)]
            auroc, loss = (statistics.fmean(r[k] for r in mine) for k in ("val_auroc", "val_loss"))
            print(f"{stage:<6} lr {lr:<8g} validation AUROC {auroc:.3f}  loss {loss:.3f}")


if __name__ == "__main__":
    main()
