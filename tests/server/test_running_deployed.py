"""A run on real processes: a server kit and two SuperNodes; its server is killed (-9) while sites train, and it is gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from client.app import app
from configs import to_json
from server.app import federate
from server.running import runs
from server.running.lock import is_worked_in, worker
from server.running.record import RunError, read
from simulation.engines import InProcessGrid
from tests.conftest import SMALL, small_config
from tests.server.deployed import BIN, Deployed

# A message takes ten seconds and more on a busy machine: each is a new process that loads torch.
SETTINGS = (*SMALL, "stage.pretrain.rounds=0", "stage.finetune.rounds=2", "strategy.card_timeout_s=120")


@pytest.fixture(scope="module")
def deployed(tmp_path_factory) -> Iterator[Deployed]:
    made = Deployed(tmp_path_factory.mktemp("deployed"))
    try:
        made.server()
        made.site("north")
        made.site("south")
        made.online(2)
        yield made
    finally:
        made.end()


def until(what: Callable[[], bool], run: subprocess.Popen | None = None, *, wait_s: float = 240) -> None:
    end = time.monotonic() + wait_s
    while not what():
        assert time.monotonic() < end and (run is None or run.poll() is None)
        time.sleep(0.1)


@pytest.mark.slow
def test_a_run_whose_server_is_killed_goes_on_and_ends_as_if_nothing_had_been(deployed, tmp_path):
    out = deployed.folder / "out"
    where = ["--kit", deployed.kit, "--app", deployed.checkout]
    run = subprocess.Popen(
        list(map(str, [BIN / "medmap-server", "run", *SETTINGS, "-o", out, *where, "--resume-on-failure", 1])), cwd=deployed.folder,
        env=deployed.environment({}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    status = out / "status.json"
    until(status.exists, run)
    # While it goes on: no second run at this SuperLink, and none in this folder.
    other = deployed.command("run", *SETTINGS, "-o", deployed.folder / "other", *where)
    assert other.returncode == 1 and "goes on at this SuperLink" in other.stderr and other.stderr.count("\n") == 1
    same = deployed.command("run", *SETTINGS, "-o", out, *where)
    assert same.returncode == 1 and "holds a run already" in same.stderr

    until(lambda: json.loads(status.read_text())["round"] == 2, run)
    told = json.loads(deployed.command("status", out, "--json").stdout)
    assert (told["state"], told["server"]["state"]) == ("running", "serving")
    assert set(told["live"]["sites"]) == {"north", "south"} and told["live"]["done"] == 1
    serverapp = deployed.serverapp()
    os.kill(deployed.superlink(), signal.SIGKILL)
    os.kill(serverapp, signal.SIGKILL)
    assert deployed.processes["server"].wait(60) == 1
    dead = deployed.command("status", out)
    assert dead.returncode == 4 and f"to go on: medmap-server resume {out}" in dead.stdout

    deployed.server()
    text, _ = run.communicate(timeout=400)
    assert run.returncode == 0 and f"completed: {out}" in text, text
    assert "ended with finished:failed" in text and f"medmap-server resume {out}; going on by itself" in text
    record = read(out)
    assert len(record.attempts) == 2 and record.attempts[0].id != record.attempts[1].id
    assert all(len(a.bundle) == 64 for a in record.attempts)
    again = deployed.command("resume", out)
    assert again.returncode == 1 and "is complete" in again.stderr
    assert not (deployed.folder / "other").exists()
    assert "The federation is complete" in deployed.command("logs", out).stdout

    manifests = {n: deployed.folder / "data" / n / "manifest.csv" for n in ("north", "south")}
    assert_same_weights(out, undisturbed(tmp_path, manifests))


@pytest.mark.slow
def test_a_run_is_stopped_and_says_how_to_go_on(deployed):
    deployed.serving()
    out = deployed.folder / "stopped"
    many = (*SETTINGS, "stage.finetune.rounds=50")  # it must not come to its end before it is stopped
    begun = deployed.command("run", *many, "-o", out, "--kit", deployed.kit, "--app", deployed.checkout, "--detach")
    assert begun.returncode == 0, begun.stderr
    refused = deployed.command("resume", out)
    assert refused.returncode == 1 and "is going on" in refused.stderr
    until(lambda: is_worked_in(out))
    hangs = int(worker(out))
    os.kill(hangs, signal.SIGSTOP)
    with pytest.raises(RunError, match=f"is over to Flower, but after 1 s process {hangs} still works in {out}"):
        runs.stop(out, read(out), patience_s=1)
    assert deployed.command("status", out).stdout.splitlines()[-1] == "running"
    os.kill(hangs, signal.SIGCONT)
    stopped = deployed.command("stop", out)
    assert stopped.returncode == 0 and f"medmap-server resume {out}" in stopped.stdout, stopped.stderr
    told = deployed.command("status", out)
    assert told.returncode == 1 and told.stdout.splitlines()[-1].startswith("stopped")
    resumed = deployed.command("resume", out, "--detach")
    assert resumed.returncode == 0, resumed.stderr
    assert deployed.command("stop", out).returncode == 0
    first, second = read(out).attempts
    assert first.id != second.id and first.ended == second.ended == "finished:stopped"
    assert [r.status for r in deployed.link.runs()[:2]] == ["finished:stopped"] * 2


def undisturbed(folder, manifests) -> dict[str, np.ndarray]:
    """The same federation in one process, never interrupted."""
    config = to_json(small_config(*SETTINGS[len(SMALL) :]))
    sites = folder / "sites.json"
    sites.write_text(json.dumps([{"name": n, "manifests": [str(m)]} for n, m in manifests.items()]))
    values = {"config": config, "sites-file": str(sites), "cache-dir": str(folder / "cache")}
    (folder / "whole").mkdir()
    return federate(InProcessGrid(app, 2, values), config, folder=folder / "whole", sites=2).vectors


def assert_same_weights(out, vectors) -> None:
    from safetensors.numpy import load_file

    tensors = load_file(out / "checkpoints" / "finetune-0002" / "model.safetensors")
    ended = sorted(np.concatenate([t.ravel() for t in tensors.values()]).tolist())
    assert ended == sorted(np.concatenate(list(vectors.values())).tolist())
