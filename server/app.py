"""Flower's side of the coordinator: `main` composes the config, builds the initial model and runs the federation.

`flwr run .` with Flower's simulation: make data first with `medmap-sim phantom`, which prints the run config to give, e.g.
`flwr run . --run-config 'sites-file="/abs/outputs/data/.../sites.json" overrides="stage=short"'`.
"""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

if TYPE_CHECKING:
    from configs.schema import Config
    from medmap_model.contract import Card
    from server.progress import Progress
    from server.rounds import Federation

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
app = ServerApp()
_OWN_DATA = "Each hospital brought patients of its own; none of their volumes or reports left it."


def federate(
    grid: Grid,
    config_json: str,
    *,
    folder: Path,
    condition: str = "federated",
    sites: int | None = None,
    progress: Progress | None = None,
    data: str | None = None,
) -> Federation:
    """Run both stages over a grid; returns the finished `Federation` (weights, state, history).

    folder: receives `checkpoints/` and `metrics.jsonl`; a checkpoint in it is resumed from. data: what the sites train on,
    for the checkpoints to say; None: `data.kind`.
    """
    from configs import from_json, load_vocabulary
    from medmap_model.checkpoint import Companions
    from medmap_model.groups import layout, pack
    from medmap_model.initialise import initialise
    from medmap_model.model import build_model
    from medmap_model.text import TextTable, build_text_encoder
    from server.progress import Event
    from server.rounds import Federation

    config = from_json(config_json)
    vocabulary, text = load_vocabulary(config.data.vocabulary), build_text_encoder(config.text)
    texts = TextTable.of(text)
    model = build_model(config.model, vocabulary, texts, seed=config.seed)
    if config.model.init != "random":  # the server alone: sites train what it sends
        report = initialise(model, config.model.init)
        if progress is not None:
            progress(Event("message", condition, text=str(report)))
    plan = layout(model)
    federation = Federation(
        grid,
        config,
        vocabulary,
        initial=pack(model, plan),
        layout=plan,
        text_hash=text.hash,
        folder=folder,
        condition=condition,
        progress=progress,
        sites=sites,
        companions=Companions(config, vocabulary, texts, data=data or config.data.kind),
    )
    federation.run()
    return federation


@app.main()
def main(grid: Grid, context: Context) -> None:
    """The whole federation; writes the run's folder on the coordinator's machine, where no other run may work meanwhile."""
    from configs import from_json, load, to_json
    from server.progress import make_progress
    from server.running.lock import working_in

    values = context.run_config
    overrides = [o for o in str(values.get("overrides", "")).split() if o]
    config_json = str(
        values.get("config") or to_json(load([f"experiment={values.get('experiment', 'flower')}", *overrides]))
    )
    config = from_json(config_json)
    folder = Path(str(values.get("output-dir") or config.output_dir)).absolute()
    sites_file = str(values.get("sites-file") or "")
    simulated = json.loads(Path(sites_file).read_text(encoding="utf-8")) if sites_file else []
    sites = len(simulated) or int(str(values.get("expected-sites") or 0)) or None
    with working_in(folder), make_progress(plain=True) as progress:
        if values.get("validate"):
            _validate(grid, config, str(values["validate"]).split(","), folder, sites=sites, progress=progress)
            return
        # Without a sites file every hospital brings its own manifest, whatever `data.kind` says.
        data = config.data.kind if sites_file else "manifest"
        federation = federate(grid, config_json, folder=folder, sites=sites, progress=progress, data=data)
        if config.privacy.validations:
            _validate(grid, config, [str(folder)], folder, sites=sites, progress=progress)
        _finish(folder, config, federation, data=data)


def _finish(folder: Path, config: Config, federation: Federation, *, data: str) -> None:
    """Write summary.json, which says that the run is complete, and report.html."""
    from server import shift, statistics, validate
    from server.files import read_json, write_json
    from server.report import write_report

    write_json(
        folder / "summary.json",
        {
            "schema_version": 1,
            "status": "completed",
            "seed": config.seed,
            "engine": "flower",
            "data": {"kind": data} | ({"note": _OWN_DATA} if data == "manifest" else {}),
            "sites": [_told(member.card) for member in federation.roster.members.values()],
            "model": {
                "name": config.model.name,
                "parameters": sum(v.size for v in federation.vectors.values()),
                "groups": [
                    {"name": g, "parameters": v.size, "megabytes": v.nbytes / 1e6}
                    for g, v in federation.vectors.items()
                ],
            },
            "stages": federation.stages(),
            "participation": federation.participation(),
            "communication": federation.communication(),
            "timing": {"rounds": [line["wall_s"] for line in federation.history]},
            "site_privacy": federation.site_privacy(),
            "private_updates": config.privacy.kind != "none",
            "privacy": _budgets(folder),
            "validation": read_json(folder / validate.FILE),
            "statistics": read_json(folder / statistics.FILE),
            "shift": read_json(folder / shift.FILE),
        },
    )
    print(f"The federation is complete: {write_report(folder)}")


def _budgets(folder: Path) -> dict[str, Any] | None:
    """Site -> what it told of its ledger with its last charge; None where no site tells."""
    from server.releases import read_receipts

    told = {site: r for site, r in sorted(read_receipts(folder).items()) if {"spent", "budget"} <= r.keys()}
    rows = {
        site: {"epsilon_spent": r["spent"], "epsilon_budget": r["budget"], "delta": None, "unit": "patient"}
        for site, r in told.items()
    }
    return rows or None


def _told(card: Card) -> dict[str, Any]:
    """A site's line in the summary, as it told of itself: of a hidden cohort the numbers are noisy."""
    return {
        "name": card.site,
        "external": False,
        "modalities": [m for m, n in card.volumes.items() if n],
        "organs": [o for o, n in card.studies.items() if n],
        "volumes": {m: n for m, n in card.volumes.items() if n},
        "studies": {k: card.splits.get(k, 0) for k in ("train", "val", "test")},
    }


def _named(paths: list[str]) -> dict[str, str]:
    """Each by the last part of its path; where two have the same, by the whole path."""
    names = [Path(p).name for p in paths]
    return {p if names.count(n) > 1 else n: p for n, p in zip(names, paths, strict=True)}


def _validate(
    grid: Grid, config: Config, checkpoints: list[str], folder: Path, *, sites: int | None, progress: Progress
) -> None:
    """Validate models that this machine has, each a run's folder or a checkpoint; writes `folder`/validation.json."""
    from configs import load_vocabulary
    from medmap_model.checkpoint import find
    from medmap_model.groups import layout
    from medmap_model.model import build_model
    from medmap_model.text import build_text_encoder
    from server.progress import Event
    from server.releases import open_releases
    from server.validate import read_model, validate

    vocabulary, text = load_vocabulary(config.data.vocabulary), build_text_encoder(config.text)
    plan = layout(build_model(config.model, vocabulary, text, seed=config.seed))
    found = {name: read_model(find(path), plan) for name, path in _named(checkpoints).items()}
    run = next((state["run"] for _, state in found.values() if state.get("run")), uuid.uuid4().hex)
    models = {name: model for name, (model, _) in found.items()}

    def tell(text: str) -> None:
        progress(Event("message", "run", text=text))

    releases = open_releases(grid, config, vocabulary, text_hash=text.hash, folder=folder, sites=sites, tell=tell)
    validate(releases, config, vocabulary, models, folder=folder, run=run, tell=tell)
