"""The ServerApp's own function, as Flower calls it: a private run, its summary and report; then validation in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from client.app import app
from configs import to_json
from medmap_model.checkpoint import find, read_info
from server.app import main
from server.export.card import write_card
from server.report import write_report
from simulation.engines import InProcessGrid
from tests.conftest import small_config
from tests.server.test_report import plain

PRIVATE = (
    "privacy=patient_dp", "privacy.epsilon=20", "privacy.noise_multiplier=3", "privacy.steps=1", "privacy.secure_noise=false",
    "stage.pretrain.rounds=0", "stage.finetune.rounds=1",
)  # fmt: skip


@pytest.mark.slow
def test_a_deployed_private_run_tells_what_the_sites_told_and_validation_is_added_to_its_report(
    tmp_path: Path, hospitals: dict[str, Path], cache: Path
) -> None:
    config = to_json(small_config(*PRIVATE, f"privacy.ledger_dir={tmp_path / 'ledgers'}"))
    sites = tmp_path / "sites.json"
    sites.write_text(json.dumps([{"name": n, "manifests": [str(m)]} for n, m in hospitals.items()]))
    # The sites know where their patients are; the server does not.
    grid = InProcessGrid(app, 2, {"config": config, "sites-file": str(sites), "cache-dir": str(cache)})
    told = {"config": config, "output-dir": str(tmp_path / "run"), "expected-sites": 2}
    main(grid, SimpleNamespace(run_config=told))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(summary["privacy"]) == {"east", "west"}
    assert all(0 < row["epsilon_spent"] < row["epsilon_budget"] == 20 for row in summary["privacy"].values())
    assert len(summary["timing"]["rounds"]) == 1
    text = plain((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert "Privacy is off" not in text and "Each hospital brought patients of its own" in text
    assert "medmap-server validate RUN -o RUN --kit KIT" in text
    info = read_info(find(tmp_path / "run"))
    assert "| 1 | " in (card := write_card(info, summary, kind="safetensors")) and "| not told | patient |" in card
    card = write_card(info, summary | {"privacy": None}, kind="safetensors")
    assert "they did not tell" in card, "a finished private run of sites that tell nothing is not called unfinished"

    main(grid, SimpleNamespace(run_config=told | {"validate": str(tmp_path / "run")}))
    text = plain(write_report(tmp_path / "run").read_text(encoding="utf-8"))
    assert "Validation from noisy histograms" in text and "medmap-server validate" not in text
