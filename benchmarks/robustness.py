"""Missing modalities and MRI corruptions: seconds for every subset of modalities, or a finished run's scores, as CSV.

python -m benchmarks.robustness                   seconds for 100 patients x 15 and x 255 subsets, untrained models, on one
                                                  thread and on two: benchmarks/results/robustness_speed.csv
python -m benchmarks.robustness outputs/demo      the federated model of a run, every subset and every corruption:
                                                  benchmarks/results/robustness.csv, and docs/corruptions.png, what
                                                  the corruptions look like on its test patients
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from configs import from_dict, load, load_vocabulary, to_json
from configs.schema import EvaluationConfig
from medmap_model.batch import Batch
from medmap_model.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from medmap_model.evaluation.missing import encode_all, missing_modalities, subset_probabilities, subsets

RESULTS = Path(__file__).parent / "results"
SHEET = Path(__file__).parent.parent / "docs" / "corruptions.png"
PATIENTS = 100
MODELS = ("tiny", "medmap")


def batches(organ: str, *, slots: int, classes: int, size: int) -> Iterator[Batch]:
    """PATIENTS patients of noise, with all modalities."""
    generator = torch.Generator().manual_seed(0)
    for start in range(0, PATIENTS, 25):
        volumes = torch.randn(25, slots, size, size, size, generator=generator)
        label = torch.arange(start, start + 25) % classes
        yield Batch(
            organ, volumes, torch.ones(25, slots, dtype=torch.bool), label, torch.zeros(25, 1), torch.zeros(25).bool()
        )


def speed() -> Iterator[dict[str, Any]]:
    """A row per model, organ and number of threads. cpu_s: other jobs on the machine do not count; wall_s: they do."""
    from medmap_model.model import build_model
    from medmap_model.text import build_text_encoder

    for name in MODELS:
        config = load([f"model={name}", "text=hash"])
        vocabulary = load_vocabulary(config.data.vocabulary)
        model = build_model(config.model, vocabulary, build_text_encoder(config.text), seed=0)
        for organ in vocabulary.organs.values():
            shape = {"slots": len(organ.modalities), "classes": len(organ.abnormalities)}
            made = partial(batches, organ.name, **shape, size=config.model.encoder.size)
            encodings, kept = encode_all(model, made()), subsets(np.ones(shape["slots"], bool))
            damaged = encodings.embedded  # as costly as really damaged ones
            timed: dict[str, Callable[[], object]] = {
                "encode": partial(lambda m, f: encode_all(m, f()), model, made),
                "entire_missing": partial(missing_modalities, model, encodings),
                "random_missing": partial(subset_probabilities, model, encodings, ~kept, degraded=damaged),
            }
            for threads, (what, run) in product((1, 2), timed.items()):
                torch.set_num_threads(threads)
                begun, used = time.perf_counter(), time.process_time()
                run()
                yield {
                    "model": name, "organ": organ.name, "patients": PATIENTS, "subsets": len(kept), "what": what,
                    "threads": threads, "cpu_s": round(time.process_time() - used, 2),
                    "wall_s": round(time.perf_counter() - begun, 2),
                }  # fmt: skip


def scores_of(run_dir: Path) -> Iterator[dict[str, Any]]:
    """A row per organ and subset, level or corruption, of a finished run's federated model. Also draws SHEET."""
    import yaml

    from client.site import trainer_for
    from medmap_model.groups import layout, unpack
    from server import checkpoint
    from simulation.evaluate import choose_test_set, evaluate
    from simulation.experiment import prepare_data

    config = from_dict(yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8")))
    wanted = EvaluationConfig(zero_shot=False, retrieval=False, missing=True, corruptions=True, interpret=False)
    config = replace(config, evaluation=wanted)
    hospitals, _ = prepare_data(config, load_vocabulary(config.data.vocabulary), run_dir, lambda _: None)
    trainer = trainer_for(to_json(config))
    latest = checkpoint.latest(run_dir / "checkpoints")
    if latest is None:
        raise SystemExit(f"{run_dir} has no checkpoint: give the folder of a finished run")
    unpack(trainer.model, checkpoint.load(latest, layout(trainer.model))[0])
    test = choose_test_set(config, hospitals, run_dir)
    draw([next(test.batches(o)) for o in test.organs], seed=config.seed)
    found = evaluate(config, trainer, hospitals, run_dir)
    for organ, missing in found["missing"].items():
        for row in missing["subsets"]:
            name = "+".join(row["missing"]) or "nothing"
            yield {"organ": organ, "kind": "missing", "name": name, "level": len(row["missing"])} | _figures(row)
        for level, lost in missing["random"].items():
            for name in ("mean", "all", "worst"):
                auroc = lost["worst"]["value"] if name == "worst" else lost[name]
                yield {"organ": organ, "kind": "random", "name": name, "level": level} | _figures({"auroc": auroc})
        for level, auroc in missing["noisy"].items():
            yield {"organ": organ, "kind": "noisy", "name": "all", "level": level} | _figures({"auroc": auroc})
    for organ, corrupted in found["corruptions"].items():
        yield {"organ": organ, "kind": "corruption", "name": "clean", "level": 0} | _figures(corrupted["clean"])
        for row in corrupted["rows"]:
            yield {"organ": organ, "kind": "corruption", "name": row["name"], "level": row["severity"]} | _figures(row)


def _figures(row: dict[str, Any]) -> dict[str, Any]:
    keys = ("auroc", "balanced_accuracy", "ece", "calibration_shift")
    return {k: None if row.get(k) is None else round(row[k], 4) for k in keys}


def draw(examples: Sequence[Batch], *, seed: int) -> None:
    """A row per corruption, columns clean and severities 1 to 3, for the first patient of every organ."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = len(SEVERITIES) + 1
    size = (1.1 * columns * len(examples), 1.2 * len(CORRUPTIONS))
    figure, axes = plt.subplots(len(CORRUPTIONS), columns * len(examples), figsize=size, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    for row, name in enumerate(CORRUPTIONS):
        axes[row, 0].set_ylabel(name.replace("_", " "), fontsize=8)
        for o, batch in enumerate(examples):
            first = batch.rows(slice(0, 1))
            slot = int(first.present[0].nonzero()[-1])
            for severity in (0, *SEVERITIES):
                shown = corrupt(first, name, severity=severity, seed=seed) if severity else first.volumes
                axis, middle = axes[row, o * columns + severity], shown.shape[-1] // 2
                axis.imshow(shown[0, slot, :, :, middle].flip(0, 1).T.numpy(), cmap="gray", vmin=-4, vmax=3)
                if not row:
                    axis.set_title(f"{batch.organ} {severity}" if severity else f"{batch.organ} clean", fontsize=8)
    figure.tight_layout(pad=0.3)
    figure.savefig(SHEET, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="folder of a finished run")
    run_dir = parser.parse_args().run
    torch.set_num_threads(1)
    rows = list(scores_of(run_dir.absolute()) if run_dir else speed())
    path = RESULTS / ("robustness.csv" if run_dir else "robustness_speed.csv")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    table = Table(*rows[0], box=box.SIMPLE)
    for row in [r for r in rows if r.get("kind") != "missing"]:
        table.add_row(*("" if v is None else str(v) for v in row.values()))
    Console().print(table)
    print(path)


if __name__ == "__main__":
    main()
