"""The conditions of an experiment: the federation and what it is compared with, each run by the same round loop.

federated: all sites, as configured · naive: all sites, every group averaged over everyone · pooled: one site that holds
everybody's patients · local: every site alone. Same initial weights, same rounds, same passes over every patient.
A condition ends with its predictions on every test set, in `predictions/<model>.npz`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from client.site import SiteEntry, open_records, trainer_for
from client.training import Predictions, Trainer
from configs import from_json, to_json
from configs.federated import PrivacyConfig
from configs.schema import Config
from medmap_model.groups import unpack
from server.app import federate
from server.files import write_json
from server.progress import Event, Progress
from simulation.engines import InProcessGrid, run_ray


@dataclass(frozen=True)
class Hospital:
    """A virtual hospital of the run. external: only tested on."""

    entry: SiteEntry
    external: bool


@dataclass(frozen=True)
class Job:
    """One model to train: its name, the sites it is trained over, and how they are aggregated."""

    model: str
    sites: tuple[SiteEntry, ...]
    config_json: str


def jobs(config: Config, hospitals: Sequence[Hospital]) -> list[list[Job]]:
    """What to train, in batches that belong to one worker each."""
    sites = tuple(h.entry for h in hospitals if not h.external)
    text = to_json(config)
    # What the federation is compared with is not private, masked, robust or compressed: a local model is a federation of one.
    off: dict[str, Any] = {"secure_aggregation": False, "site_clip": 0.0, "site_noise_multiplier": 0.0}
    off |= {"robust": "none", "update_dtype": "float32"}
    bare = replace(config.strategy, **off)
    plain = replace(config, privacy=PrivacyConfig(), strategy=bare)
    naive = to_json(replace(plain, strategy=replace(bare, kind="naive")))
    inprocess = to_json(replace(plain, engine=replace(config.engine, kind="inprocess")))
    everything = SiteEntry("pooled", tuple(m for s in sites for m in s.manifests))
    baselines = {
        "pooled": [Job("pooled", (everything,), inprocess)],
        "local": [Job(f"local-{s.name}", (s,), inprocess) for s in sites],
        "naive": [Job("naive", sites, naive)],
    }
    return [[Job("federated", sites, text)], *(baselines[b] for b in config.baselines)]


def run_job(job: Job, hospitals: Sequence[Hospital], run_dir: Path, progress: Progress) -> dict[str, Any]:
    """Train one model (resuming what is there), predict every test set, and return its curves and traffic."""
    begun = time.monotonic()
    described: dict[str, Any] = {}
    config = from_json(job.config_json)
    folder = run_dir if job.model == "federated" else run_dir / "baselines" / job.model
    folder.mkdir(parents=True, exist_ok=True)
    sites_file = folder / "sites.json"
    write_json(sites_file, [{"name": s.name, "manifests": [str(m) for m in s.manifests]} for s in job.sites])
    run_config = {
        "config": job.config_json,
        "sites-file": str(sites_file),
        "cache-dir": str(cache_dir(config, run_dir)),
    }
    trainer = trainer_for(job.config_json)
    imported = time.monotonic()
    for site in job.sites:
        open_records(config, site.manifests, cache_dir(config, run_dir))
    prepared = time.monotonic()
    if job.model == "federated":
        from simulation.describe import at_start

        entries = [h.entry for h in hospitals]
        records = {e.name: open_records(config, e.manifests, cache_dir(config, run_dir)) for e in entries}
        for line in at_start(config, trainer.model, records):
            progress(Event("message", "run", text=line))
    finished: list[Any] = []

    def serve(grid: Any) -> None:
        finished.append(
            federate(
                grid,
                job.config_json,
                folder=folder,
                condition=job.model,
                sites=len(job.sites),
                progress=progress,
            )
        )

    from client.app import app

    if config.engine.kind == "ray":
        gpus = 1.0 / max(1, config.engine.workers) if trainer.device.type == "cuda" else 0.0
        run_ray(app, len(job.sites), run_config, serve, gpus_per_site=gpus)
    else:
        serve(InProcessGrid(app, len(job.sites), run_config))
    federation = finished[0]
    trained = time.monotonic()
    unpack(trainer.model, federation.vectors)
    predictions = run_dir / "predictions" / f"{job.model}.npz"
    if not predictions.exists():
        _predict(job, config, hospitals, run_dir, predictions, federation.state.trained)
    if job.model == "federated":
        described = _describe(config, hospitals, run_dir, trainer)
    lines = federation.history
    working = sum(s.get("train_s", 0) + s.get("eval_s", 0) for x in lines for s in x["sites"].values())
    rounds_s = [x["wall_s"] for x in lines]
    return {
        "model": job.model,
        **described,
        "stages": federation.stages(),
        "communication": federation.communication(),
        "site_privacy": federation.site_privacy(),
        "participation": federation.participation(),
        "timing": {
            "import_s": imported - begun,
            "prepare_s": prepared - imported,
            "train_s": trained - prepared,
            "evaluate_s": time.monotonic() - trained,
            "rounds": rounds_s,
            "overhead_share": 1 - working / sum(rounds_s) if working and sum(rounds_s) else None,
        },
        "peak_memory_mb": max((s.get("peak_memory_mb", 0) for x in lines for s in x["sites"].values()), default=0),
    }


def cache_dir(config: Config, run_dir: Path) -> Path:
    """Prepared volumes are shared by all conditions, and by later runs on the same data."""
    return Path(config.data.volumes.cache_dir or run_dir.parent / "cache").absolute()


def _describe(config: Config, hospitals: Sequence[Hospital], run_dir: Path, trainer: Trainer) -> dict[str, Any]:
    """What only a process with model and volumes at hand can tell: sites, model, device, evaluation; the example pictures."""
    from simulation.describe import describe_hospital, describe_model, describe_shift
    from simulation.evaluate import evaluate
    from simulation.examples import write_examples

    vocabulary = trainer.model.vocabulary
    write_examples(run_dir, hospitals, config, vocabulary, trainer)
    records = {h.entry.name: open_records(config, h.entry.manifests, cache_dir(config, run_dir)) for h in hospitals}
    return {
        "sites": [describe_hospital(h, records[h.entry.name], vocabulary) for h in hospitals],
        "shift": describe_shift(config, hospitals, records, vocabulary),
        "description": describe_model(trainer.model),
        "evaluation": evaluate(config, trainer, hospitals, run_dir) or None,
        "device": str(trainer.device),
    }


def _predict(
    job: Job,
    config: Config,
    hospitals: Sequence[Hospital],
    run_dir: Path,
    path: Path,
    trained: Mapping[str, Sequence[str]],
) -> None:
    """Every test set of every hospital, and the validation patients of those trained on, who set the operating point.

    Arrays `<hospital>/<split>/<organ>/` labels, probabilities and modalities (how many the model could use).
    """
    trainer, cache = trainer_for(job.config_json), cache_dir(config, run_dir)
    modalities, organs = set(trained["modalities"]), set(trained["organs"])
    manifests = {m for s in job.sites for m in s.manifests}
    arrays: dict[str, np.ndarray] = {}
    for hospital in hospitals:
        records = open_records(config, hospital.entry.manifests, cache)
        validates = not hospital.external and manifests.issuperset(hospital.entry.manifests)
        for split in ("val", "test", "common") if validates else ("test", "common"):
            for organ in set(records.organs(split)) & organs:
                found = trainer.predictions(records, split=split, organ=organ, known=modalities)
                arrays |= {f"{hospital.entry.name}/{split}/{organ}/{k}": v for k, v in found._asdict().items()}
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp.npz")
    np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
    temporary.replace(path)


def load_predictions(run_dir: Path, model: str) -> dict[tuple[str, str, str], Predictions]:
    """(hospital, split, organ) -> labels, probabilities, modalities."""
    with np.load(run_dir / "predictions" / f"{model}.npz", allow_pickle=False) as z:
        names = sorted({k.rsplit("/", 1)[0] for k in z.files})
        return {tuple(n.split("/")): Predictions(*(z[f"{n}/{f}"] for f in Predictions._fields)) for n in names}
