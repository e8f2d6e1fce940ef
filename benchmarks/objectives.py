"""Which objectives of stage 1 survive reports of the wrong patient. Phantom results.

    python -m benchmarks.objectives [--seeds 0 1 2] [--noise 0 0.1 0.3] [--epochs 10] [--only NAME ...] [--again] [--plot]

A share of the training reports is moved among patients, so that each of them has another patient's. Stage 1 alone, with the
words of the reports to say who is a positive (positives=text) and no public bank: labels would mend the noise. Measured on
clean test patients: AUROC of a linear probe on the frozen mean image embedding, fitted on the training patients' true labels,
and zero-shot AUROC by class prompts. Writes benchmarks/results/objectives.csv, a row per run, and objectives.png.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.demo import RESULTS, write
from client.site import open_records
from configs import load, load_vocabulary
from configs.schema import Config
from configs.stages import PretrainConfig
from medmap_model.batch import Batch
from medmap_model.evaluation import scores
from medmap_model.model import MedMAP, build_model
from medmap_model.objectives import Queue
from medmap_model.text import build_text_encoder
from simulation.experiment import prepare_data

ORGAN = "liver"
# Portal-venous, arterial, T2 and diffusion: what tells the seven lesions apart; all eight would double the time.
KEPT = ("T2WI", "DWI", "C+A", "C+V")
SETTINGS = (
    "sites=iid", f"sites.organs=[{ORGAN}]", "sites.count=1", "sites.patients=280", "sites.validation_patients=0",
    "sites.test_patients=0", "sites.common_patients=210", "sites.external_patients=0",
    "sites.missing_rate=0", "sites.unreported_rate=0", "data.phantom.size=16", "data.volumes.size=16",
    "data.volumes.spacing_mm=6", "engine.device=cpu",
)  # fmt: skip
COMMON: dict[str, Any] = {"positives": "text", "bank": "none", "same_text": 0.95}
OT: dict[str, Any] = {"objective": "partial_ot", "ot_mass": 0.7}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "untrained": {},
    "asymmetric": {"objective": "asymmetric"},
    "asymmetric_queue": {"objective": "asymmetric", "queue": 64},
    "siglip": {"objective": "siglip"},
    "dhn_nce": {"objective": "dhn_nce"},
    "ot_weights": {**OT, "ot_form": "weights"},
    "ot_weights_queue": {**OT, "ot_form": "weights", "queue": 64},
    "ot_cost": {**OT, "ot_form": "cost"},
    "bank": {"objective": "bank", "bank": "prompts"},
    # For reference, as it is meant: true labels say which public texts fit; only the own report may be wrong.
    "bank_labels": {"objective": "bank", "bank": "prompts", "positives": "abnormality"},
}
BATCH = 16


def patients(config: Config, folder: Path) -> tuple[Batch, Batch]:
    """All training and all test patients, each as one batch; phantom of seed 0, whatever the seed of the training."""
    vocabulary = load_vocabulary(config.data.vocabulary)
    hospitals, _ = prepare_data(config, vocabulary, folder, lambda event: None)
    records = open_records(config, hospitals[0].entry.manifests, folder / "cache")
    keep = torch.tensor([m in KEPT for m in vocabulary.organs[ORGAN].modalities])
    found = (next(records.eval_batches(split=s, organ=ORGAN, batch_size=10_000)) for s in ("train", "common"))
    train, test = (replace(b, present=b.present & keep) for b in found)
    return train, test


def moved(batch: Batch, share: float, seed: int) -> Batch:
    """The batch with this share of its reports passed on in a ring, each to another patient."""
    order = np.random.default_rng(seed).permutation(len(batch))[: round(share * len(batch))]
    place = np.arange(len(batch))
    place[order] = np.roll(order, 1)
    return replace(batch, report=batch.report[torch.from_numpy(place)])


def trained(model: MedMAP, train: Batch, settings: PretrainConfig, *, epochs: int, seed: int) -> None:
    """Stage 1 as a site runs it, without augmentation."""
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    model.train()
    for _ in range(epochs):
        queue = Queue(settings.queue) if settings.queue else None
        for index in torch.randperm(len(train)).split(BATCH):
            part = Batch(
                ORGAN,
                *(t[index] for t in (train.volumes, train.present, train.label, train.report, train.has_report)),
            )
            optimizer.zero_grad(set_to_none=True)
            model.pretrain_loss(part, settings, queue=queue)["loss"].backward()
            torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], settings.clip_norm)
            optimizer.step()


@torch.no_grad()
def embedded(model: MedMAP, batch: Batch) -> Tensor:
    """(N, D): mean image embeddings."""
    model.eval()
    parts = []
    for at in range(0, len(batch), 70):
        part = batch.rows(slice(at, at + 70))
        image, _ = model.image_embeddings(model.encode(part.volumes, part.present, ORGAN), part.present)
        parts.append(image[:, -1])
    return torch.cat(parts)


def measured(model: MedMAP, train: Batch, test: Batch) -> dict[str, float | None]:
    """AUROC (macro over classes) of the linear probe and of the class prompts."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    a, b = embedded(model, train).numpy(), embedded(model, test)
    scaler = StandardScaler().fit(a)
    probe = LogisticRegression(C=0.1, max_iter=500).fit(scaler.transform(a), train.label.numpy())
    with torch.no_grad():
        cosine = b @ model.class_embeddings(ORGAN).T
    labels, found = test.label.numpy(), {"probe_auroc": probe.predict_proba(scaler.transform(b.numpy()))}
    found["zero_shot_auroc"] = (cosine / 0.1).softmax(1).numpy()
    return {name: _number(scores(labels, p)["auroc"]) for name, p in found.items()}


def _number(value: Any) -> float | None:
    return None if value is None else round(float(value), 4)


def plot(rows: list[dict[str, Any]]) -> None:
    """Mean over seeds against the share of wrong reports, a panel per measure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharex=True)
    titles = ("Linear probe", "Zero-shot")
    for axis, measure, title in zip(axes, ("probe_auroc", "zero_shot_auroc"), titles, strict=True):
        found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            found[row["objective"]][float(row["noise"])].append(float(row[measure]))
        for name, by_noise in found.items():
            noise = sorted(by_noise)
            means = [statistics.fmean(by_noise[n]) for n in noise]
            low, high = ([f(by_noise[n]) for n in noise] for f in (min, max))
            (line,) = axis.plot([100 * n for n in noise], means, marker="o", label=name)
            axis.fill_between([100 * n for n in noise], low, high, color=line.get_color(), alpha=0.08)
        axis.set(xlabel="reports of another patient (%)", ylabel="AUROC, clean test patients", title=title)
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.suptitle("Phantom. Mean over seeds; shaded: smallest to largest")
    figure.tight_layout()
    figure.savefig(RESULTS / "objectives.png", dpi=110)


def table(rows: list[dict[str, Any]]) -> None:
    """Means over seeds, on the screen."""
    found: dict[tuple[str, float], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found[row["objective"], float(row["noise"])].append(row)
    for (name, noise), mine in found.items():
        means = [statistics.fmean(float(r[k]) for r in mine) for k in ("probe_auroc", "zero_shot_auroc")]
        print(f"{name:<18} {noise:4.0%}  probe {means[0]:.3f}  zero-shot {means[1]:.3f}  ({len(mine)} seeds)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.1, 0.3])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=list(OBJECTIVES), default=list(OBJECTIVES))
    parser.add_argument("--again", action="store_true", help="start over; else rows that are there are kept")
    parser.add_argument(
        "--plot", action="store_true", help="only draw the figure and print the table of an earlier run"
    )
    args = parser.parse_args()
    path = RESULTS / "objectives.csv"
    if not args.plot:
        run(args, path)
    with path.open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    plot(rows)
    table(rows)


def run(args: argparse.Namespace, path: Path) -> None:
    """Every objective, noise and seed; the file is written anew after each."""
    torch.set_num_threads(1)
    config = load(SETTINGS)
    vocabulary, text = load_vocabulary(config.data.vocabulary), build_text_encoder(config.text)
    RESULTS.mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []
    if path.exists() and not args.again:
        with path.open(newline="", encoding="utf-8") as f:
            rows = [dict(r) for r in csv.DictReader(f)]
    done = {(r["objective"], float(r["noise"]), int(r["seed"])) for r in rows}
    with tempfile.TemporaryDirectory() as folder:
        train, test = patients(config, Path(folder))
    for seed, noise, name in itertools.product(args.seeds, args.noise, args.only):
        if (name, noise, seed) in done or (name == "untrained" and noise):
            continue
        begun = time.process_time()
        model = build_model(config.model, vocabulary, text, seed=seed)
        settings = replace(config.stage.pretrain, **(COMMON | OBJECTIVES[name]))
        epochs = 0 if name == "untrained" else args.epochs
        trained(model, moved(train, noise, seed), settings, epochs=epochs, seed=seed)
        row = {"objective": name, "noise": noise, "seed": seed, **measured(model, train, test)}
        rows.append(row | {"cpu_s": round(time.process_time() - begun, 1)})
        print(rows[-1], flush=True)
        write(path, rows)


if __name__ == "__main__":
    main()
