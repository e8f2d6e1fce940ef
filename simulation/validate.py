"""Private cross-institution validation of a finished run: every hospital, the external one too, releases noisy histograms.

Costs each hospital `privacy.validation_epsilon` per model, on its own ledger (`server.validate`).
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from client.site import trainer_for
from configs import to_json
from configs.schema import Config
from medmap_model.checkpoint import find
from medmap_model.groups import layout
from medmap_model.text import build_text_encoder
from server.files import read_json, write_json
from server.progress import Event, Progress
from server.releases import open_releases
from server.validate import FILE, Model, read_model, validate
from simulation.conditions import Hospital, cache_dir
from simulation.engines import InProcessGrid


def validate_models(
    config: Config, models: Sequence[str], hospitals: Sequence[Hospital], run_dir: Path, progress: Progress
) -> dict[str, Any] | None:
    """The first `privacy.validations` of the models (the federated one, then the baselines); None when that is 0.

    What a run that was cut off has paid for already is not asked for again.
    """
    if not config.privacy.validations:
        return None
    if (done := read_json(run_dir / FILE)) is not None:
        return dict(done)
    from client.app import app

    text = to_json(config)
    trainer = trainer_for(text)
    found: dict[str, Model] = {}
    run = ""
    for name in models[: config.privacy.validations]:
        folder = run_dir if name == "federated" else run_dir / "baselines" / name
        found[name], state = read_model(find(folder), layout(trainer.model))
        run = run or state.get("run", "")
    sites_file = run_dir / "validation-sites.json"
    entries = [{"name": h.entry.name, "manifests": [str(m) for m in h.entry.manifests]} for h in hospitals]
    write_json(sites_file, entries)
    values = {"config": text, "sites-file": str(sites_file), "cache-dir": str(cache_dir(config, run_dir))}
    vocabulary, text_hash = trainer.model.vocabulary, build_text_encoder(config.text).hash

    def tell(line: str) -> None:
        progress(Event("message", "run", text=line))

    grid = InProcessGrid(app, len(hospitals), values)
    releases = open_releases(
        grid, config, vocabulary, text_hash=text_hash, folder=run_dir, sites=len(hospitals), tell=tell
    )
    return validate(releases, config, vocabulary, found, folder=run_dir, run=run or uuid.uuid4().hex, tell=tell)
