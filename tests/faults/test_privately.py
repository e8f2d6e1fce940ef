"""More rows of docs/reliability.md against real processes, in a private run: the disk is full, the network is cut, a budget is used up."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import SMALL
from tests.faults.federation import Hospitals, Watched, processes, until
from tests.faults.test_faults import Played

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.skipif(
        hasattr(os, "geteuid") and os.geteuid() != 0, reason="a small disk is mounted, which takes root"
    ),
]
ROUNDS, CUT_S = 6, 60
PRIVACY = """\
privacy:
  ledger: {ledger}
  epsilon: {epsilon}
  delta: 0.001
"""


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> Played:
    folder = tmp_path_factory.mktemp("privately")
    here, played, disk = (
        Hospitals(folder, {"north": ["T1", "FLAIR"], "south": ["T2", "FLAIR"]}),
        Played(),
        folder / "disk",
    )
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        here.policy("north", PRIVACY.format(ledger=disk / "north.db", epsilon=100))
        here.policy("south", PRIVACY.format(ledger=folder / "south.db", epsilon=3.3))
        here.server()
        for name in ("north", "south"):
            begun = here.kit_site(name)
            assert begun.returncode == 0, begun.stdout + begun.stderr
        here.online(2)
        _play(here, folder / "run", disk, played)
    finally:
        here.end()
        subprocess.run(["umount", "-l", disk], check=True)
    until(lambda: not processes(folder), "nothing is left", timeout_s=60)
    return played


def _play(here: Hospitals, out: Path, disk: Path, played: Played) -> None:
    """North's disk is full for a round, then the network is cut, and at last south has no budget left (for a fifth charge)."""
    own = [o for o in SMALL if "rounds" not in o]
    run = here.begin(
        out, *own, "privacy=patient_dp", "stage.pretrain.rounds=0", f"stage.finetune.rounds={ROUNDS}", "privacy.steps=1",
        "privacy.sample_rate=1", "privacy.noise_multiplier=2", "strategy.round_timeout_s=300", "strategy.quorum=0.5",
    )  # fmt: skip
    now = Watched(out, run)
    now.round(1)
    until(lambda: now.site("north").get("state") == "returned", "north has returned its first update")
    filler = disk / "filler"
    _fill(filler)
    until(lambda: now.site("north").get("state") == "refused", "north has no room for a charge", timeout_s=300)
    filler.unlink()
    played.seen["round"] = now.live()["done"] + 1  # counted from 0: the one after
    now.round(played.seen["round"] + 1)
    for network in here.networks.values():
        network.cut()
    time.sleep(CUT_S)
    for network in here.networks.values():
        network.restore()
    run.wait(420)
    played.code, played.said, played.lines = run.returncode, out.with_suffix(".log").read_text(), now.lines()
    played.logs = {n: here.log(n) + here.log(n, "worker.log") for n in ("north", "south")}


def _fill(filler: Path) -> None:
    """Write until there is no room left."""
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_the_federation_goes_on_to_its_end(played):
    assert played.code == 0, played.said
    assert len(played.lines) == ROUNDS


def test_a_full_disk_costs_the_site_that_round_and_nothing_else(played):
    [full] = [i for i, line in enumerate(played.lines) if any(r["site"] == "north" for r in line["refused"])]
    assert "ledger cannot be used" in played.lines[full]["refused"][0]["reason"]
    assert played.lines[full]["returned"] == ["south"]
    assert "north" in played.lines[full + 1]["returned"], "with room again it takes part again"


def test_a_network_that_is_cut_for_a_minute_loses_nothing(played):
    assert "north" in played.lines[played.seen["round"]]["returned"], "the same round, when the network is back"


def test_a_budget_that_is_used_up_ends_that_sites_part_and_not_the_federation(played):
    line = played.lines[-1]
    assert line["returned"] == ["north"]
    assert [(r["site"], "budget" in r["reason"]) for r in line["refused"]] == [("south", True)]
    assert sum("south" in line["returned"] for line in played.lines) in (
        3,
        4,
    )  # a charge may have been lost with the network
    assert "refused" in played.said and "south" in played.said.strip().splitlines()[-1]
