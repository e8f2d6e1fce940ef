"""`flwr run` by Flower's own tools: what the app bundle holds, and a whole federation in Ray from it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import SMALL

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A checkout in a folder whose name Flower accepts, with the things around it that must stay out of a bundle."""
    folder = tmp_path_factory.mktemp("flwr") / "medmapfl"
    for name in ("server", "client", "medmap_model", "configs", "simulation", "tests", "docs", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def flower(tmp_path) -> Iterator[dict[str, str]]:
    """An environment with a Flower home and port of its own; whatever Flower leaves running in it is ended."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    home = tmp_path / "flower-home"
    env = os.environ | {
        "FLWR_HOME": str(home), "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(port), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1", "PATH": f"{BIN}:{os.environ['PATH']}",
    }  # fmt: skip
    yield env
    mine = f"FLWR_HOME={home}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mine in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGTERM)
        except OSError:
            continue


def test_the_bundle_holds_the_four_packages_and_nothing_else(checkout, flower):
    built = subprocess.run(
        [BIN / "flwr", "build", "--app", checkout],
        cwd=checkout,
        env=flower,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    with zipfile.ZipFile(next(checkout.glob("*.fab"))) as bundle:
        names = bundle.namelist()
    folders = {n.split("/")[0] for n in names if "/" in n and not n.startswith(".")}
    assert folders == {"server", "client", "medmap_model", "configs"}
    assert {"configs/vocabulary/medmom.yaml", "configs/config.yaml", "server/app.py", "client/app.py"} <= set(names)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to end what Flower leaves running")
def test_a_federation_runs_whole_from_the_bundle(checkout, flower, hospitals, tmp_path):
    sites = tmp_path / "sites.json"
    sites.write_text(json.dumps([{"name": k, "manifests": [str(v)]} for k, v in hospitals.items()]))
    overrides = " ".join(o for o in SMALL if not o.startswith("engine"))
    out = tmp_path / "out"
    values = {"sites-file": sites, "output-dir": out, "cache-dir": tmp_path / "cache", "overrides": overrides}
    subprocess.run(
        [BIN / "flwr", "run", checkout, "--federation-config", "num-supernodes=2 client-resources-num-cpus=1",
         "--run-config", " ".join(f'{k}="{v}"' for k, v in values.items())],
        cwd=tmp_path, env=flower, capture_output=True, text=True, timeout=180, check=True,
    )  # fmt: skip
    deadline, status = time.monotonic() + 300, ""
    while not status.startswith("finished") and time.monotonic() < deadline:
        asked = time.monotonic()  # each question is a process that loads Flower
        while not (out / "summary.json").exists() and time.monotonic() < asked + 20:
            time.sleep(0.2)
        shown = subprocess.run(
            [BIN / "flwr", "list", "--format", "json"],
            cwd=tmp_path,
            env=flower,
            capture_output=True,
            text=True,
            timeout=60,
        )
        runs = json.loads(shown.stdout or "{}").get("runs", [])
        status = runs[0]["status"] if runs else ""
    log = tmp_path / "flower-home" / "local-superlink" / "superlink.log"
    assert status == "finished:completed", log.read_text()[-3000:] if log.exists() else status
    summary = json.loads((out / "summary.json").read_text())
    assert summary["stages"]["finetune"]["rounds"] == 2
    assert {x["name"]: x["modalities"] for x in summary["sites"]} == {"east": ["T1", "FLAIR"], "west": ["T2", "FLAIR"]}
    assert summary["model"]["parameters"] == sum(g["parameters"] for g in summary["model"]["groups"]) > 100_000
    assert [len(json.loads(line)["returned"]) for line in (out / "metrics.jsonl").read_text().splitlines()] == [2, 2, 2]
    assert (out / "report.html").exists()
    validated = subprocess.run(
        [BIN / "medmap-server", "validate", out, "-o", tmp_path / "val", "--sites-file", sites, "--app", checkout,
         "--set", f"privacy.ledger_dir={tmp_path / 'ledgers'}"],
        cwd=tmp_path, env=flower, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert validated.returncode == 0, validated.stdout + validated.stderr
    told = json.loads((tmp_path / "val" / "validation.json").read_text())
    assert set(told["organs"]["brain"]["tumour"]["out"]["sites"]) == set(hospitals) and told["refused"] == []
    assert "brain: tumour" in validated.stdout
    assert {p.name for p in (tmp_path / "ledgers").glob("*.db")} == {f"{name}.db" for name in hospitals}
