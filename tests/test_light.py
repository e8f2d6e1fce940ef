"""What each process of a deployment loads: Flower starts one for every message, and people wait for every command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from configs import to_json
from tests.conftest import small_config

ROOT = Path(__file__).resolve().parent.parent
# A second or more each, and some 100 MB; whoever needs one imports it where it is used.
HEAVY = {
    "monai", "opacus", "transformers", "peft", "torchmetrics", "torch._dynamo", "sympy", "scipy.stats", "scipy.signal", "matplotlib",
    "tensorboard", "ray", "pandas", "sklearn",
}  # fmt: skip
COMMAND = "import sys\nfrom {side}.cli import main\nsys.argv[0] = 'x'\ntry: main()\nexcept SystemExit: pass"
TRAIN = """
import sys
from pathlib import Path
import client.app
from client.site import open_site
from medmap_model.contract import Task
from medmap_model.groups import group_names, pack
manifest, config, cache = sys.argv[1:]
site = open_site(config, "east", (Path(manifest),), Path(cache))
groups = [g for g in group_names(site.trainer.model.vocabulary) if g.split("/")[-1] in ("T1", "FLAIR", "brain", "fusion")]
vectors = pack(site.trainer.model, groups)
for stage in ("pretrain", "finetune"):
    update, figures = site.train(vectors, Task(stage=stage, round=0, rounds=2, seed=0))
    assert figures.loss and figures.val_loss and set(update) == set(groups)
"""


def loaded(code: str, *arguments: object) -> set[str]:
    """Names of the modules in a new process once the code has run."""
    code += "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT)
    assert shown.returncode == 0, shown.stderr
    return set(json.loads(shown.stdout.splitlines()[-1]))


@pytest.mark.parametrize("app", ["client.app", "server.app"])
def test_an_app_loads_flower_and_no_more(app):
    modules = loaded(f"import {app}")
    assert "flwr" in modules
    assert not modules & (HEAVY | {"torch", "scipy", "nibabel", "hydra"})


def test_a_training_message_loads_torch_and_nothing_heavy_besides(hospitals, tmp_path):
    modules = loaded(TRAIN, hospitals["east"], to_json(small_config()), tmp_path)
    assert {"torch", "client.training", "medmap_model.evaluation"} <= modules
    assert not modules & HEAVY


@pytest.mark.parametrize(
    ("side", "arguments", "words"),
    [
        ("server", ["status", "{run}"], "server.running.folder"),
        ("server", ["resume", "{run}"], "server.running.runs"),
        ("server", ["stop", "{run}"], "server.running.runs"),
        ("client", ["budget", "{run}/none.db"], "client.privacy.ledger"),
        ("client", ["audit", "{run}/audit.jsonl"], "client.gate.audit"),
    ],
)
def test_a_command_that_looks_or_steers_loads_neither_torch_nor_flower(tmp_path, side, arguments, words):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    modules = loaded(COMMAND.format(side=side), *(a.format(run=tmp_path) for a in arguments))
    assert words in modules, "control: the command itself was reached"
    assert not modules & (HEAVY | {"torch", "flwr", "scipy", "nibabel"})
