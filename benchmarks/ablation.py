"""MedMAP's ablation on the phantom: what pre-training, CSA and CCT bring, pooled and federated, over seeds. Phantom results.

    python -m benchmarks.ablation [key=value ...]                  -> results/ablation.csv, ablation_mean.csv, ablation.png
    python -m benchmarks.ablation --tune LABEL [key=value ...]     -> a row per seed in results/ablation_tune.csv

The first is `medmap-sim -m experiment=ablation` with its tables copied here. The second trains the full model federated alone
on seeds 100 and 101, which the ablation never reports, and notes validation scores: test patients are never looked at.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from pathlib import Path
from typing import Any

from simulation.sweep import plan, sweep, write_rows

RESULTS = Path(__file__).parent / "results"
COPIES = {"sweep.csv": "ablation.csv", "sweep_mean.csv": "ablation_mean.csv", "sweep.png": "ablation.png"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", metavar="LABEL", help="validation scores of other settings instead, under this name")
    parser.add_argument("overrides", nargs="*", help="settings, as for medmap-sim")
    args = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    if args.tune:
        tune(args.tune, args.overrides)
        return
    arguments = ["experiment=ablation", *args.overrides]
    code = sweep(arguments)
    folder = plan(arguments)[0].folder.parent
    for name, copy in COPIES.items():
        if (folder / name).is_file():
            shutil.copyfile(folder / name, RESULTS / copy)
    raise SystemExit(code)


def tune(label: str, overrides: list[str]) -> None:
    """Validation AUROC and loss after the last round, a row per seed; rows of the same label are replaced."""
    alone = ["seed=100,101", "variant=full", "baselines=[]", "sites.validation_patients=32"]
    arguments = ["experiment=ablation", *alone, f"output_dir=outputs/tune/{label}", *overrides]
    if sweep(arguments):
        raise SystemExit(1)
    path = RESULTS / "ablation_tune.csv"
    kept: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as f:
            kept = [r for r in csv.DictReader(f) if r["label"] != label]
    for run in plan(arguments):
        curve = json.loads((run.folder / "summary.json").read_text(encoding="utf-8"))["stages"]["finetune"]
        scores = {"val_auroc": round(curve["val_score"][-1], 4), "val_loss": round(curve["val_loss"][-1], 4)}
        kept.append({"label": label, "settings": " ".join(overrides), "seed": run.config.seed, **scores})
    write_rows(path, kept)


if __name__ == "__main__":
    main()
