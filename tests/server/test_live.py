"""status.json: what a run says of itself at each event, whole at any moment."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from server.live import FILE, PHASES, STATES, Live
from server.members import FederationError
from server.progress import Event
from tests.server.roaming import Story, quick_looks
from tests.server.test_rounds import Hospitals, federation

__all__ = ["quick_looks"]

SITE = {"state", "since", "last_seen", "last_round", "seconds", "reason", "budget"}
START = datetime(2026, 11, 28, 4, tzinfo=UTC)


def status(folder) -> dict:
    return json.loads((folder / FILE).read_text())


def rounds(kind: str, done: int, number: int = 1) -> Event:
    return Event(kind, "federated", "finetune", round=number, rounds=4, done=done, total=6)


def test_the_file_has_the_agreed_shape_and_times(tmp_path):
    seconds = 0.0
    live = Live(tmp_path, clock=lambda: seconds, now=lambda: START + timedelta(seconds=seconds))
    live.enter("joining")
    assert status(tmp_path) == {
        "schema_version": 1,
        "updated": "2026-11-28T04:00:00+00:00",
        "phase": "joining",
        **dict.fromkeys(("stage", "round_started", "seconds_per_round", "eta_s", "error", "void")),
        **dict.fromkeys(("round", "rounds", "done", "total"), 0),
        "sites": {},
    }
    live.site("east", "joined")
    live.take(rounds("stage_start", done=2))  # resumed: two rounds are another process's
    for number in (1, 2):
        live.asked(["east"])
        live.take(rounds("round_start", done=1 + number, number=number))
        seconds += 30
        live.site("east", "returned", seconds=29.996, receipt={"seq": 1, "spent": 1.0, "budget": 8.0})
        live.take(rounds("round_end", done=2 + number, number=number))
    seconds += 5
    live.site("east", "silent", "no update in time")
    told = status(tmp_path)
    assert {k: told[k] for k in ("stage", "round", "rounds", "done", "total")} == {
        "stage": "finetune", "round": 2, "rounds": 4, "done": 4, "total": 6,
    }  # fmt: skip
    assert told["round_started"] == "2026-11-28T04:00:30+00:00"
    assert (told["seconds_per_round"], told["eta_s"]) == (30.0, 55.0)
    assert told["sites"] == {
        "east": {
            "state": "silent",
            "since": "2026-11-28T04:01:05+00:00",
            "last_seen": "2026-11-28T04:01:00+00:00",
            "last_round": 4,
            "seconds": 30.0,
            "reason": "no update in time",
            "budget": {"spent": 1.0, "budget": 8.0},
        }
    }
    assert not list(tmp_path.glob(".*")), "no half-written file stays"


def test_where_writing_is_held_a_round_still_starts_and_ends_in_the_file(tmp_path):
    seconds = 0.0
    live = Live(tmp_path, hold_s=0.25, clock=lambda: seconds)
    live.take(rounds("round_start", done=0))
    live.site("east", "returned")
    assert status(tmp_path)["sites"] == {}, "the last write was just now"
    seconds = 0.3
    live.site("west", "returned")
    assert set(status(tmp_path)["sites"]) == {"east", "west"}
    live.asked(["east"])
    live.take(rounds("round_start", done=1))
    assert status(tmp_path)["sites"]["east"]["state"] == "asked"


def test_a_run_goes_through_the_phases_and_states(tmp_path):
    story = Story(tmp_path, "stage.pretrain.rounds=3", "stage.finetune.rounds=1", online={0, 1, 2})
    seen: list[dict] = []

    def look(event: Event) -> None:
        now = status(tmp_path)
        assert now["phase"] in PHASES
        assert all(set(s) == SITE and s["state"] in STATES for s in now["sites"].values())
        seen.append(now)

    story.federation.progress = look
    states = dict[str, dict[str, str]]()
    story.at |= {
        ("pretrain", 0): lambda: states.update(first=now_of(tmp_path)),
        ("pretrain", 1): lambda: story.grid.online.discard(2),
        ("pretrain", 2): lambda: states.update(third=now_of(tmp_path)),
    }
    story.run()
    assert states["first"] == dict.fromkeys(("h0", "h1", "h2"), "asked")
    assert states["third"] == {"h0": "asked", "h1": "asked", "h2": "absent"}
    silent = next(s for s in seen if s["sites"].get("h2", {}).get("state") == "silent")
    assert silent["sites"]["h2"]["reason"] == "went offline"
    assert [p for p in PHASES if any(s["phase"] == p for s in seen)] == ["joining", "training", "validating"]
    end = status(tmp_path)
    assert (end["phase"], end["done"], end["total"], end["eta_s"], end["error"]) == ("finished", 4, 4, None, None)
    assert end["sites"]["h0"]["last_round"] == 4
    assert end["sites"]["h2"]["last_round"] == 1


def now_of(folder) -> dict[str, str]:
    return {name: site["state"] for name, site in status(folder)["sites"].items()}


def test_a_run_that_fails_says_why(tmp_path):
    def spoil(i, stage, number, vectors):
        if stage == "finetune":
            vectors["encoder/T1"][0] = np.nan

    f = federation(tmp_path, Hospitals(spoil), "strategy.retries=0")
    with pytest.raises(FederationError) as failed:
        f.run()
    told = status(tmp_path)
    assert (told["phase"], told["error"], told["eta_s"]) == ("failed", str(failed.value), None)
    assert told["sites"]["h0"]["state"] == "refused"
    assert "not finite" in told["sites"]["h0"]["reason"]


def test_a_crash_is_told_as_well(tmp_path, monkeypatch):
    def full(*args, **more):
        raise OSError("No space left on device")

    monkeypatch.setattr("server.checkpoint.save", full)
    with pytest.raises(OSError, match="No space"):
        federation(tmp_path, Hospitals()).run()
    assert status(tmp_path)["error"] == "ended by OSError No space left on device"
    with pytest.raises(FederationError):
        federation(tmp_path / "other", Hospitals(), text_hash="another").run()
    told = status(tmp_path / "other")
    assert (told["phase"], told["stage"]) == ("failed", None)
    refused = told["sites"]["h0"]
    assert refused["state"] == "refused"
    assert refused["reason"].startswith("its text hash is")
