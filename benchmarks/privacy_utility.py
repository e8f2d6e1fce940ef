"""What stage 2 gains from private hospitals over a public start: epsilon x patients x what trains. Phantom results.

    python -m benchmarks.privacy_utility [--seeds 0 1 2] [--patients 100 50 400] [--sets all ...] [--again] [--table]

A model trained on a small public hospital (60 brains, one scanner, glioblastoma or normal) is fine-tuned by two private
hospitals with other scanners and other tumours: 6 rounds of 2 noisy steps, every patient in a step with chance 0.5. `inf`:
gradients are clipped, no noise is added. Learning rates: the same three factors of each set's own, the best on patients of
another public hospital, over all seeds; test patients choose nothing. Noise for delta 1e-5 by the PRV accountant; it is
secret, so that rows differ from one call to another, and torch's (privacy.secure_noise=false), for speed. Test sets: balanced
patients of both private hospitals (`union`), and of a hospital never seen (`external`).

Writes benchmarks/results/privacy_utility.csv, a row per run as it ends: what was stopped goes on where it was. From it,
privacy_utility_mean.csv, a row per cell, and docs/privacy_utility.png. --table: these two and the screen only.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.demo import RESULTS, write
from benchmarks.privacy_utility_table import cells, plot, show
from client.privacy.training import PrivateTrainer, network_to_train
from client.records import SiteRecords
from client.site import open_records
from client.training import Trainer
from configs import load, load_vocabulary
from medmap_model.accounting import noise_multiplier
from medmap_model.contract import Task
from medmap_model.evaluation import negative_log_likelihood, scores
from medmap_model.groups import owned, pack, trunks, unpack
from medmap_model.model import build_model
from medmap_model.text import build_text_encoder
from server.aggregation import Aggregator, Vectors
from simulation.phantom import generate
from simulation.sites import OrganShare, SiteSpec

ORGAN, PRIVATE = "brain", ("hospital-1", "hospital-2")
OUTPUTS = Path("outputs/privacy_utility")
FIGURE = Path(__file__).parent.parent / "docs" / "privacy_utility.png"
# What trains under privacy (all_adam: all of it, by Adam instead of SGD) -> the learning rate that the factors multiply.
SETS = {"norms": 2.0, "projections_heads": 0.5, "all": 0.5, "adapters": 1.0, "all_adam": 0.003}
FACTORS = (0.2, 1.0, 5.0)
EPSILONS = (1.0, 3.0, 8.0, math.inf)
DELTA, RATE, ROUNDS, STEPS = 1e-5, 0.5, 6, 2
MOST = 400
PUBLIC_ROUNDS = {"pretrain": 3, "finetune": 6}
SETTINGS = (
    "privacy=patient_dp", f"privacy.delta={DELTA}", f"privacy.sample_rate={RATE}", f"privacy.steps={STEPS}",
    "privacy.clip_norm=0.5", "privacy.engine=vmap", "privacy.chunk=32", "privacy.secure_noise=false",
    "stage.pretrain.objective=bank", "stage.finetune.supervised_floor=1", "data.phantom.size=16",
    "data.phantom.lesion_scale=1", "data.phantom.scanner_strength=0.8", "data.phantom.workers=1",
    "data.volumes.size=16", "data.volumes.spacing_mm=6", "engine.device=cpu",
)  # fmt: skip


def plan() -> list[SiteSpec]:
    """The hospitals: public, public for validation, two private ones, external."""

    def site(name: str, scanner: str, train: int, test: int, **mix: float) -> SiteSpec:
        share = OrganShare(train, 0, 0, test, ("T1", "T1ce", "T2", "FLAIR"), mix)
        return SiteSpec(name, scanner, {ORGAN: share}, missing_rate=0.15, unreported_rate=0.1)

    return [
        site("public", "aster-3T", 60, 0, normal=0.5, glioblastoma=0.5),
        site("public-validation", "ember-1.5T", 0, 120, normal=1),  # its test patients are balanced, whatever the mix
        site("hospital-1", "birch-1.5T", MOST, 150, normal=0.5, low_grade_glioma=0.4, glioblastoma=0.1),
        site("hospital-2", "cedar-3T", MOST, 150, normal=0.5, metastasis=0.3, meningioma=0.2),
        site("external", "grove-1.5T", 0, 200, normal=1),
    ]


@dataclass(frozen=True)
class Run:
    """One training; all but the seed and the factor make a cell of the table."""

    patients: int
    trainable: str
    epsilon: float
    seed: int
    factor: float


class Federation:
    """The hospitals of one seed, their model and its public start."""

    def __init__(self, seed: int) -> None:
        self.seed, self.config = seed, load([*SETTINGS, f"seed={seed}"])
        self.vocabulary = load_vocabulary(self.config.data.vocabulary)
        self.folder = generate(
            plan(), self.config.data.phantom, self.vocabulary, OUTPUTS / f"phantom-{seed}", seed=seed
        )
        self.model = build_model(self.config.model, self.vocabulary, build_text_encoder(self.config.text), seed=seed)
        self.start = self._public_start()

    def records(self, site: str, patients: int | None = None) -> SiteRecords:
        """A hospital's; patients: of those who train, only so many."""
        manifest = self.folder / site / "manifest.csv"
        return open_records(self.config, [_first(manifest, patients)], OUTPUTS / "cache")

    def owned(self, records: SiteRecords, stage: str) -> dict[str, int]:
        """Module group -> weight."""
        volumes, studies = records.counts("train")
        return owned(self.vocabulary, volumes, studies, stage, trunks(self.config.model, self.vocabulary))

    def _public_start(self) -> Vectors:
        """Both stages on the public hospital, whose patients nothing protects."""
        records, trainer = self.records("public"), Trainer(self.model, self.config)
        for stage, rounds in PUBLIC_ROUNDS.items():
            groups = set(self.owned(records, stage))
            for i in range(rounds):
                trainer.train(records, Task(stage, i, rounds, self.seed), groups, site="public")
        return pack(self.model, self.owned(records, "finetune"))

    def train(self, run: Run, sigma: float) -> tuple[Vectors, int]:
        """The weights after all rounds, and how many parameters trained. sigma: the noise multiplier.

        No ledger: a hospital's would refuse sigma 0, and rightly.
        """
        lr = SETS[run.trainable] * run.factor
        optimizer = "adam" if run.trainable.endswith("_adam") else "sgd"
        trainable = run.trainable.removesuffix("_adam")
        privacy = replace(self.config.privacy, trainable=trainable, optimizer=optimizer, noise_multiplier=sigma, lr=lr)
        trainer = PrivateTrainer(Trainer(self.model, replace(self.config, privacy=privacy)))
        current, groups = self.start, set(self.start)
        for i in range(ROUNDS):
            aggregator = Aggregator(current)
            for site in PRIVATE:
                records = self.records(site, run.patients)
                weights = self.owned(records, "finetune")
                unpack(self.model, current)
                trainer.train(records, Task("finetune", i, ROUNDS, run.seed), groups & set(weights))
                aggregator.add(pack(self.model, weights), weights)
            current = aggregator.result()
        network, names = network_to_train(self.model, groups, privacy, seed=0)
        return current, sum(network.get_parameter(n).numel() for n in names)

    def measure(self, vectors: Vectors) -> dict[str, float]:
        """AUROC and balanced accuracy on every set; on the public validation patients also the mean loss."""
        unpack(self.model, vectors)
        trainer = Trainer(self.model, self.config)
        found: dict[str, float] = {}
        sets = {"public_val": ("public-validation",), "union": PRIVATE, "external": ("external",)}
        for name, sites in sets.items():
            parts = [trainer.predict(self.records(s, 0), split="common", organ=ORGAN) for s in sites]
            labels, probabilities = (np.concatenate(column) for column in zip(*parts, strict=True))
            told = scores(labels, probabilities, metrics=("auroc", "balanced_accuracy"))
            found |= {f"{name}_auroc": float(told["auroc"]), f"{name}_bacc": float(told["balanced_accuracy"])}
            if name == "public_val":
                found["public_val_loss"] = float(negative_log_likelihood(labels, probabilities).mean())
        return {k: round(v, 4) for k, v in found.items()}


def _first(manifest: Path, patients: int | None) -> Path:
    """A manifest beside this one with only the first of the patients who train; they are in random order."""
    if patients is None:
        return manifest
    path = manifest.with_name(f"manifest-{patients}.csv")
    if not path.exists():
        with manifest.open(newline="", encoding="utf-8") as f:
            rows = list(csv.DictReader(f))
        train = list(dict.fromkeys(r["patient_id"] for r in rows if r["split"] == "train"))
        left_out = set(train[patients:])
        write(path, [r for r in rows if r["patient_id"] not in left_out])
    return path


def run_all(args: argparse.Namespace, path: Path) -> None:
    """Every cell, seed and factor that has no row yet; the file is written anew after each."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = [] if args.again else _read(path)
    done = {_run(r) for r in rows}
    federations: dict[int, Federation] = {}
    sigmas = {math.inf: 0.0}
    todo = [
        Run(n, s, e, seed, f)
        for n, s, e, seed, f in itertools.product(args.patients, args.sets, EPSILONS, args.seeds, FACTORS)
    ]
    start = [Run(0, "nothing", 0.0, seed, 0.0) for seed in args.seeds]
    for run in (r for r in [*start, *todo] if r not in done):
        begun = time.process_time()
        if run.seed not in federations:
            federations[run.seed] = Federation(run.seed)
        federation = federations[run.seed]
        vectors, count, sigma = federation.start, 0, 0.0
        if run.patients:
            if run.epsilon not in sigmas:
                sigmas[run.epsilon] = noise_multiplier(
                    [], epsilon=run.epsilon, delta=DELTA, sample_rate=RATE, steps=ROUNDS * STEPS
                )
            sigma = sigmas[run.epsilon]
            vectors, count = federation.train(run, sigma)
        rows.append({
            "patients": run.patients, "trainable": run.trainable, "epsilon": run.epsilon, "seed": run.seed,
            "factor": run.factor, "lr": round(SETS.get(run.trainable, 0.0) * run.factor, 4), "parameters": count,
            "noise_multiplier": round(sigma, 3), **federation.measure(vectors),
            "cpu_s": round(time.process_time() - begun, 1),
        })  # fmt: skip
        write(path, rows)
        print(*rows[-1].values(), flush=True)


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def _run(row: dict[str, Any]) -> Run:
    return Run(int(row["patients"]), row["trainable"], float(row["epsilon"]), int(row["seed"]), float(row["factor"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--patients", type=int, nargs="+", default=[100, 50, 400])
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--again", action="store_true", help="start over; else rows that are there are kept")
    parser.add_argument("--table", action="store_true", help="only the table and the figure of the rows that are there")
    args = parser.parse_args()
    path = RESULTS / "privacy_utility.csv"
    RESULTS.mkdir(exist_ok=True)
    if not args.table:
        run_all(args, path)
    table = cells(_read(path), factors=len(FACTORS))
    write(RESULTS / "privacy_utility_mean.csv", table)
    plot(table, list(SETS), EPSILONS, FIGURE)
    show(table)


if __name__ == "__main__":
    main()
