"""A whole run: data, virtual hospitals, federation, baselines, comparison on three test sets, summary and report.

In: a Config. Out: the run's folder (config.yaml, metrics.jsonl, checkpoints/, predictions/, summary.json, report.html).
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from client.preprocess import nyul
from client.site import SiteEntry
from client.training import device_of
from configs import from_dict, load_vocabulary
from configs.schema import Config, TextConfig
from configs.setting import ConfigError
from medmap_model.accounting import planned_releases, with_noise
from medmap_model.model import build_model
from medmap_model.text import build_text_encoder
from medmap_model.vocabulary import Vocabulary
from server import shift, site_noise, statistics
from server.files import read_json, write_json
from server.progress import Event, Progress
from server.running.lock import working_in
from simulation.board import TensorBoard
from simulation.census import of_hospitals, write_census
from simulation.comparison import compare
from simulation.conditions import Hospital
from simulation.manifests import manifest_hospitals
from simulation.validate import validate_models
from simulation.workers import run_all

_BUSY_S = 2.0  # who only asks whether somebody works in a folder is gone sooner


def run(config: Config, progress: Progress) -> Path:
    """Run the experiment, or go on with the one in `config.resume`. Returns the run's folder.

    Raises FolderBusy where another process works in it.
    """
    begun = time.monotonic()
    device_of(config.engine)
    nyul.check(config)
    if config.privacy.kind != "none":
        from client.privacy.checks import check_settings

        check_settings(config)
    site_noise.check_settings(config)
    with _open_folder(config, progress) as (run_dir, opened):
        _run(opened, run_dir, progress, begun=begun, resumed=bool(config.resume))
    return run_dir


def _run(config: Config, run_dir: Path, progress: Progress, *, begun: float, resumed: bool) -> None:
    """All of it, from the data to the report. begun: monotonic seconds."""
    if config.text.cache_dir is None:  # beside the prepared volumes, for all processes of the run and the next one
        config = replace(config, text=replace(config.text, cache_dir=str(run_dir.parent / "cache" / "text")))
    if config.text.model != TextConfig.model:  # one that may be missing: say so before anything is simulated
        build_text_encoder(config.text)
    config = _private(config, run_dir)
    vocabulary = load_vocabulary(config.data.vocabulary)
    if config.privacy.kind != "none":
        from client.privacy.checks import check_model

        model = build_model(config.model, vocabulary, build_text_encoder(config.text), seed=config.seed)
        check_model(model, config, organs=config.sites.organs or None)
    hospitals, data = prepare_data(config, vocabulary, run_dir, progress)
    partition = write_census(of_hospitals(hospitals, vocabulary), run_dir)
    generated = time.monotonic()
    with TensorBoard(run_dir) as board:
        results = run_all(config, hospitals, run_dir, _both(progress, board))
    trained = time.monotonic()
    in_order = ["federated", *sorted(set(results) - {"federated"})]
    validation = validate_models(config, in_order, hospitals, run_dir, progress)
    progress(Event("message", "run", text="comparing the models on every test set"))
    federated = results["federated"]
    # Of a resumed run wall_s and train_s are those of the last sitting; rounds are all there.
    timing = {"resumed": resumed, "generate_s": generated - begun, **federated["timing"]}
    summary: dict[str, Any] = {
        "schema_version": 1,
        "status": "completed",
        "seed": config.seed,
        "engine": config.engine.kind,
        "machine": {
            "system": platform.system(),
            "python": platform.python_version(),
            "device": federated["device"],
        },
        "data": data,
        "partition": partition,
        "sites": federated["sites"],
        "model": federated["description"],
        "stages": federated["stages"],
        "baseline_stages": {m: r["stages"] for m, r in results.items() if m != "federated"},
        **compare(
            run_dir,
            list(results),
            hospitals,
            vocabulary,
            bootstrap=config.bootstrap,
            seed=config.seed,
            operating_point=config.evaluation.operating_point,
        ),
        "evaluation": federated["evaluation"],
        "private_updates": config.privacy.kind != "none",
        "privacy": _spent(config, hospitals),
        "validation": validation,
        "statistics": read_json(run_dir / statistics.FILE),
        "shift": read_json(run_dir / shift.FILE) or federated["shift"],
        "site_privacy": federated["site_privacy"],
        "participation": federated["participation"],
        "communication": federated["communication"],
        "peak_memory_mb": max(r["peak_memory_mb"] for r in results.values()),
        "timing": timing,
    }
    summary["timing"] |= {
        "conditions_s": trained - generated,
        "report_s": 0.0,
        "wall_s": time.monotonic() - begun,
    }
    write_json(run_dir / "summary.json", summary)
    from server.report import write_report

    reporting = time.monotonic()
    write_report(run_dir)
    # The report cannot hold the time it took itself; the summary can.
    summary["timing"] |= {"report_s": time.monotonic() - reporting, "wall_s": time.monotonic() - begun}
    write_json(run_dir / "summary.json", summary)


def _private(config: Config, run_dir: Path) -> Config:
    """Under privacy: fix the noise of all rounds, and give every hospital a ledger in this run."""
    if config.privacy.kind == "none" and not planned_releases(config.privacy):
        return config
    config = with_noise(config)
    folder = config.privacy.ledger_dir or str(run_dir / "ledgers")
    return replace(config, privacy=replace(config.privacy, ledger_dir=folder))


def _spent(config: Config, hospitals: Sequence[Hospital]) -> dict[str, Any] | None:
    """Hospital -> what its ledger says, as `medmap-client budget`; None when nothing was charged to anybody."""
    from client.privacy.budget import budget, open_existing

    if not config.privacy.ledger_dir:
        return None
    files = {h.entry.name: Path(config.privacy.ledger_dir) / f"{h.entry.name}.db" for h in hospitals}
    told = {name: budget(open_existing(path)) for name, path in files.items() if path.is_file()}
    return {name: t | {"noise_multiplier": config.privacy.noise_multiplier} for name, t in told.items()} or None


def _both(first: Progress, second: Progress) -> Progress:
    def tell(event: Event) -> None:
        first(event)
        second(event)

    return tell


@contextmanager
def _open_folder(config: Config, progress: Progress) -> Iterator[tuple[Path, Config]]:
    """The run's folder with its config.yaml, in which nobody else works for as long as this lasts.

    A folder that already holds a run is moved aside, never overwritten. Raises ConfigError, FolderBusy.
    """
    import yaml

    if config.resume:
        run_dir = Path(config.resume).absolute()
        saved = run_dir / "config.yaml"
        if not saved.is_file():
            raise ConfigError(f"resume={config.resume}: there is no run in that folder (no config.yaml)")
        with working_in(run_dir, wait_s=_BUSY_S):
            resumed = from_dict(yaml.safe_load(saved.read_text(encoding="utf-8")))
            yield run_dir, replace(resumed, engine=config.engine)
        return
    run_dir = Path(config.output_dir).absolute()
    folder = str(Path(config.data.folder or "outputs/data").absolute())  # so that the run can be resumed from anywhere
    manifest = str(Path(config.data.manifest).absolute()) if config.data.manifest else None
    config = replace(config, data=replace(config.data, folder=folder, manifest=manifest))
    text = yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)
    while True:
        with working_in(run_dir, wait_s=_BUSY_S):
            if (run_dir / "config.yaml").exists():
                _move_aside(run_dir, progress)
                continue  # the lock has moved along: take that of the new folder
            (run_dir / "config.yaml").write_text(text, encoding="utf-8")
            yield run_dir, config
            return


def _move_aside(run_dir: Path, progress: Progress) -> None:
    number = 1
    while (aside := run_dir.with_name(f"{run_dir.name}.{number}")).exists():
        number += 1
    run_dir.rename(aside)
    unfinished = not (aside / "summary.json").exists()
    hint = f"; to go on with it instead: medmap-sim resume={aside}" if unfinished else ""
    progress(Event("message", "run", text=f"{run_dir.name} held a run: moved to {aside.name}{hint}"))


def data_folder(config: Config, name: str, content: object) -> Path:
    """Where generated or fetched data lie: below `data.folder`, or outputs/data, named by what is in them."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
    return Path(config.data.folder or "outputs/data").absolute() / f"{name}-{digest}"


def prepare_data(
    config: Config, vocabulary: Vocabulary, run_dir: Path, progress: Progress
) -> tuple[list[Hospital], dict[str, Any]]:
    """The hospitals of the run, their data on disk, and what `summary.json` says of the data."""
    if config.data.kind == "manifest":
        hospitals = manifest_hospitals(config, vocabulary, run_dir, progress)
        note = f"Patients of {Path(config.data.manifest or '').name}, in simulated hospitals."
        return hospitals, {"kind": "manifest", "note": note, "difficulty": {}}
    real_hospitals, names = [], ""
    if config.data.kind == "real":  # before anything is simulated: without the packages the run ends at once
        from simulation import real

        folder = Path(config.data.folder or "outputs/data").absolute() / "real"
        fetched = real.fetch(folder, vocabulary, progress=lambda text: progress(Event("message", "run", text=text)))
        real_hospitals = [Hospital(SiteEntry(r["name"], (Path(r["manifest"]),)), external=False) for r in fetched]
        names = ", ".join(r["name"] for r in fetched)
    phantom_hospitals, note = _phantom(config, vocabulary, progress)
    if names:
        note = f"Real scans at {names}, simulated patients elsewhere. This proves the path, not accuracy."
    difficulty = asdict(config.data.phantom)
    difficulty.pop("workers")
    return [*real_hospitals, *phantom_hospitals], {"kind": config.data.kind, "note": note, "difficulty": difficulty}


def _phantom(config: Config, vocabulary: Vocabulary, progress: Progress) -> tuple[list[Hospital], str]:
    from simulation.phantom import generate
    from simulation.phantom.dataset import VERSION
    from simulation.sites import plan_sites

    specs = plan_sites(config.sites, vocabulary, seed=config.seed)
    phantom = asdict(config.data.phantom)
    phantom.pop("workers")
    folder = data_folder(config, "phantom", [VERSION, asdict(config.sites), phantom, vocabulary.hash, config.seed])

    def tell(done: int, total: int) -> None:
        progress(Event("message", "run", text="simulating patients", done=done, total=total))

    generate(specs, config.data.phantom, vocabulary, folder, seed=config.seed, progress=tell)
    hospitals = [Hospital(SiteEntry(s.name, (folder / s.name / "manifest.csv",)), s.external) for s in specs]
    return hospitals, "Simulated patients (phantom): these results say nothing about real patients."
