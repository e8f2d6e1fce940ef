"""Rows of docs/reliability.md against real processes: one run, a fault in each round, and what the federation does about it.

The story is played once; each test looks at one round of it. Other rows: tests/server (kits, running, resume), test_privately.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import SMALL
from tests.faults.federation import Hospitals, Watched, processes, until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]
ROUNDS = 7


@dataclass
class Played:
    """What was seen: the run's lines, what `medmap-server run` printed, its exit code, site logs, and notes by the way."""

    lines: list[dict] = field(default_factory=list)
    said: str = ""
    code: int | None = None
    logs: dict[str, str] = field(default_factory=dict)
    seen: dict[str, object] = field(default_factory=dict)


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> Played:
    folder = tmp_path_factory.mktemp("faults")
    here = Hospitals(folder, {"north": ["T1", "FLAIR"], "south": ["T2", "FLAIR"], "rogue": ["T1", "T2"]})
    played = Played()
    try:
        here.server()
        for name in ("north", "south"):
            begun = here.kit_site(name)
            assert begun.returncode == 0, begun.stdout + begun.stderr
        here.rogue("rogue")
        here.online(3)
        _play(here, folder / "run", played)
    finally:
        here.end()
    until(lambda: not processes(folder), "nothing is left", timeout_s=60)
    return played


def _play(here: Hospitals, out: Path, played: Played) -> None:
    own = [o for o in SMALL if "rounds" not in o]
    here.spoil("rogue", "nan")
    run = here.begin(
        out, *own, "stage.pretrain.rounds=0", f"stage.finetune.rounds={ROUNDS}", "strategy.round_timeout_s=150",
        "strategy.straggler_factor=3", "strategy.retries=50", "strategy.join_timeout_s=90",
    )  # fmt: skip
    now = Watched(out, run)
    now.round(2)
    here.spoil("rogue", "shape")
    now.round(3)
    here.spoil("rogue", "wait")
    now.round(4)
    here.spoil("rogue", "")
    until(lambda: processes(here.kits / "north", "flwr-clientapp"), "north trains")
    here.kill("north", "medmap-client node")
    assert here.kit_site("north").returncode == 0
    now.round(5)
    here.networks["south"].rate = 30_000
    until(lambda: "Sending: train" in here.log("south").rpartition("finetune-4]")[2], "south sends in round 5")
    here.kill("south", "medmap-client node")
    here.networks["south"].rate = None
    now.round(6)
    here.spoil("rogue", "nan")
    until(lambda: now.live().get("sites", {}).get("rogue", {}).get("state") == "refused", "rogue refused in round 6")
    played.seen["below"] = until(
        lambda: "void round" in out.with_suffix(".log").read_text(), "that the quorum is missing is said"
    )
    assert here.kit_site("south").returncode == 0
    here.spoil("rogue", "")
    run.wait(420)
    played.code, played.said = run.returncode, out.with_suffix(".log").read_text()
    played.lines = now.lines()
    played.logs = {n: here.log(n) + here.log(n, "node.log.1") + here.log(n, "worker.log") for n in ("north", "south")}


def test_the_federation_goes_on_to_its_end_and_says_who_was_missing(played):
    assert played.code == 0, played.said
    assert len(played.lines) == ROUNDS and played.lines[-1]["returned"] == ["north", "rogue", "south"]
    assert "north" in played.said.strip().splitlines()[-1], "success on a subset is never silent"


def test_an_update_that_is_not_finite_is_refused(played):
    line = played.lines[0]
    assert line["returned"] == ["north", "south"] and "is not finite" in line["refused"][0]["reason"]


def test_an_update_of_a_wrong_shape_is_refused(played):
    line = played.lines[1]
    assert line["returned"] == ["north", "south"] and "has shape" in line["refused"][0]["reason"]


def test_a_site_past_its_own_deadline_is_not_waited_for(played):
    line = played.lines[2]
    assert line["returned"] == ["north", "south"] and "rogue" in line["missing"]


def test_a_site_killed_in_training_is_missed_for_the_round_and_comes_back(played):
    assert "north" not in played.lines[3]["returned"] and "south" in played.lines[3]["returned"]
    assert any("north" in line["returned"] for line in played.lines[4:])


def test_a_site_killed_while_it_sends_is_missed_for_the_round_and_comes_back(played):
    assert "south" not in played.lines[4]["returned"] and "north" in played.lines[4]["returned"]
    assert any("south" in line["returned"] for line in played.lines[5:])


def test_below_quorum_the_round_is_void_and_tried_again(played):
    assert played.seen["below"] and len(played.lines[5]["returned"]) >= 2
