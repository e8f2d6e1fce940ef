"""Running a federation: what a folder says of its run, who may work in it, and what the commands refuse."""

from __future__ import annotations

import datetime as dt
import fcntl
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli import app
from server.flower import COMPLETED, Run
from server.provision.authority import utc_now
from server.running import folder as folders
from server.running import lock, record, runs, store
from server.running.lock import FolderBusy, is_worked_in, working_in

ROOT = Path(__file__).resolve().parents[2]


def line(number: int, missing: tuple[str, ...] = (), refused: tuple[str, ...] = ()) -> dict:
    return {
        "stage": "finetune", "round": number, "rounds": 3, "loss": 0.5, "val_score": None, "wall_s": 2.0, "returned": ["east"],
        "missing": list(missing), "refused": [{"site": s, "reason": "values that are no numbers"} for s in refused],
    }  # fmt: skip


def live(phase: str = "training", age_s: float = 0, **more: object) -> dict:
    site = {"state": "returned", "since": utc_now().isoformat(), "last_seen": utc_now().isoformat(), "last_round": 1,
            "seconds": 75.0, "reason": None, "budget": {"spent": 3.0, "budget": 8.0}}  # fmt: skip
    return {
        "schema_version": 1, "updated": (utc_now() - dt.timedelta(seconds=age_s)).isoformat(), "phase": phase, "stage": "finetune", "round": 2, "rounds": 3, "done": 1,
        "total": 3, "round_started": None, "seconds_per_round": 60.0, "eta_s": 120.0, "error": None,
        "sites": {"east": site, "we\x1b[2Jst": site | {"state": "silent", "budget": None, "reason": "no answer in time"}}, **more,
    }  # fmt: skip


def a_run(folder: Path, *, lines=(), status=None, ended: str | None = None, age_s: float = 0) -> Path:
    folder.mkdir(exist_ok=True)
    if lines:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    if status:
        (folder / "status.json").write_text(json.dumps(status))
    if ended is not None:
        began = (utc_now() - dt.timedelta(seconds=age_s)).isoformat()
        attempts = [record.Attempt("18446744073709551615", began, "ab" * 32, ended)]
        record.Record([], {"seed": 0}, "nowhere", None, ".", attempts=attempts).save(folder)
    return folder


def call(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert "Traceback" not in done.output and not isinstance(done.exception, OSError), done.output
    return done.exit_code, done.output


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that works in the folder."""
    code = f"import time; from pathlib import Path; from server.running.lock import working_in\nwith working_in(Path({str(folder)!r})): print('in', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "in\n"
    return process


def test_a_folder_is_held_by_one_process_and_freed_by_its_death(tmp_path):
    assert not is_worked_in(tmp_path) and not list(tmp_path.iterdir()), "asking leaves nothing behind"
    process = holder(tmp_path)
    try:
        assert is_worked_in(tmp_path)
        with (
            pytest.raises(FolderBusy, match=rf"another run \(process {process.pid}\) works in"),
            working_in(tmp_path, wait_s=0.1),
        ):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    assert not is_worked_in(tmp_path)
    with working_in(tmp_path, wait_s=0) as held:
        child = subprocess.Popen(["sleep", "60"], pass_fds=(held,))
    assert is_worked_in(tmp_path), "a child that has the lock holds it for as long as it lives"
    child.kill()
    child.wait(10)
    with (tmp_path / ".lock").open("rb") as asked:
        fcntl.flock(asked, fcntl.LOCK_SH)
        assert not is_worked_in(tmp_path), "two who ask at once do not take each other for a run"


@pytest.mark.parametrize(
    ("ended", "age_s", "phase", "news_s", "state", "code"),
    [
        ("", 1, "training", 2, "starting", 0),
        ("", 1, "failed", 2, "starting", 0),  # an attempt before it failed
        ("", 5, "training", 2, "cut off", 1),  # it had come to work: its server was killed within its first minute
        ("", 100, "training", 200, "cut off", 1),
        ("finished:failed", 100, "training", 2, "failed", 1),
        ("", 100, "failed", 2, "failed", 1),
        ("finished:stopped", 100, "training", 2, "stopped", 1),
    ],
)
def test_status_of_a_run_nobody_works_on(tmp_path, ended, age_s, phase, news_s, state, code):
    folder = a_run(tmp_path / "out", lines=[line(1)], status=live(phase, news_s), ended=ended, age_s=age_s)
    exit_code, text = call("status", folder)
    assert exit_code == code and text.splitlines()[-1].startswith(state)
    assert (f"medmap-server resume {folder}" in text) == (code == 1)


def test_status_of_a_run_that_goes_on_shows_how_far_it_is_and_each_site(tmp_path):
    folder = a_run(tmp_path / "out", lines=[line(1, missing=("west",))], status=live(), ended="", age_s=100)
    process = holder(folder)
    try:
        exit_code, text = call("status", folder)
        told = json.loads(call("status", folder, "--json")[1])
    finally:
        process.kill()
        process.wait(10)
    assert exit_code == 0 and text.splitlines()[-1] == "running"
    assert "finetune round 2 of 3 (1 of 3 done), a round takes 1:00, 2:00 left" in text
    rows = {r.split()[0]: r for r in text.splitlines() if r.startswith(("east", "we"))}
    assert "5 of 8" in rows["east"] and "1:15" in rows["east"] and "no answer in time" in rows["we?[2Jst"]
    assert "\x1b" not in text and "missing: west" in text
    assert told["state"] == "running" and told["attempts"][0]["id"] == "18446744073709551615"


def test_a_complete_run_says_which_rounds_a_subset_made(tmp_path):
    folder = a_run(
        tmp_path / "out", lines=[line(1), line(2, ("west",)), line(3, ("west",), ("south",))], ended="", age_s=100
    )
    assert call("status", folder)[0] == 1
    (folder / "summary.json").write_text("{}")
    exit_code, text = call("status", folder)
    assert (
        exit_code == 0 and text.splitlines()[-1] == "complete; 1 of 3 rounds without south; 2 of 3 rounds without west"
    )
    ended = Run("7", COMPLETED, "", "", 1.0)
    assert runs.verdict(folder, ended) == (
        0,
        f"completed; 1 of 3 rounds without south; 2 of 3 rounds without west: {folder}",
    )
    assert folders.partial([line(1), line(2)]) == ""


def test_a_run_is_complete_only_when_flower_and_the_folder_say_so(tmp_path):
    folder = a_run(tmp_path / "out", lines=[line(1)], status=live("failed", error="no quorum"), ended="")
    code, sentence = runs.verdict(folder, Run("7", COMPLETED, "", "", 1.0))
    assert code == 1 and "no quorum" in sentence and f"medmap-server resume {folder}" in sentence
    (folder / "summary.json").write_text("{}")
    assert runs.verdict(folder, Run("7", "finished:failed", "", "", 1.0))[0] == 1
    # What Flower says is of this attempt; status.json may be of one before.
    why = "ServerApp failed with exception: checkpoint X holds what this version does not know"
    assert "(checkpoint X holds" in runs.verdict(folder, Run("8", "finished:failed", why, "", 1.0))[1]


def test_a_folder_moved_aside_by_its_last_holder_is_not_taken_for_the_new_one(tmp_path, monkeypatch):
    real = lock._lock

    def move_first(descriptor: int, *kind: int) -> bool:  # between opening the file and locking it
        if not (tmp_path / "run.1").exists():
            (tmp_path / "run").rename(tmp_path / "run.1")
        return real(descriptor, *kind)

    monkeypatch.setattr(lock, "_lock", move_first)
    with working_in(tmp_path / "run", wait_s=5):
        assert is_worked_in(tmp_path / "run") and not is_worked_in(tmp_path / "run.1")


def test_status_of_a_simulation_and_of_folders_that_hold_no_run(tmp_path):
    folder = a_run(tmp_path / "sim", lines=[line(1)])
    (folder / "metrics.jsonl").open("a").write('{"stage": "fine')  # a kill in the middle of a line
    exit_code, text = call("status", folder)
    ended = f"cut off; nobody works on it; to go on: medmap-sim resume={folder}"
    assert exit_code == 1 and text.splitlines()[-1] == ended
    assert text.count("round") == 1
    early = tmp_path / "early"  # its data are being made: no round loop has said anything yet
    early.mkdir()
    (early / "config.yaml").write_text("seed: 0\n")
    assert call("status", early)[0] == 1
    with working_in(early):
        assert call("status", early) == (0, "running\n")
    for command in ("status", "resume", "stop", "logs"):
        exit_code, text = call(command, tmp_path / "nothing")
        assert exit_code == 1 and "holds no run" in text and text.count("\n") == 1
    (folder / "run.json").write_text('{"schema_version": 2}')
    assert "cannot be read" in call("resume", folder)[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("stage.finetune.rounds=none",), "stage.finetune.rounds"),
        (("no.such=1",), "there is no setting 'no.such'"),
        (("--kit", "here", "--superlink", "there"), "give one of them"),
        (("--app", "elsewhere"), "is not a checkout"),
        (("--kit", "here"), "is not a server kit"),
    ],
)
def test_run_refuses_in_one_sentence_before_anything_is_submitted(tmp_path, arguments, said):
    options = arguments if "--app" in arguments else (*arguments, "--app", ROOT)
    exit_code, text = call("run", "-o", tmp_path / "out", *options)
    assert exit_code == 1 and said in text and text.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_run_takes_no_folder_that_holds_a_run(tmp_path):
    folder = a_run(tmp_path / "out", ended="")
    exit_code, text = call("run", "-o", folder, "--app", ROOT)
    assert exit_code == 1 and f"medmap-server resume {folder}" in text


def test_how_an_attempt_ended_is_kept_beside_one_that_has_gone_on_meanwhile(tmp_path):
    folder = a_run(tmp_path / "out", ended="")
    first, other = record.read(folder), record.read(folder)
    other.attempts.append(record.Attempt("8", utc_now().isoformat()))
    other.save(folder)
    first.attempts[0].ended = "finished:failed"
    record.note_end(folder, first.attempts[0])
    assert [(a.id[-1], a.ended) for a in record.read(folder).attempts] == [("5", "finished:failed"), ("8", "")]


def test_a_database_gives_back_what_is_free_and_keeps_what_is_in_it(tmp_path):
    path = tmp_path / "state.db"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE objects (id INTEGER, content BLOB)")
        db.executemany("INSERT INTO objects VALUES (?, ?)", [(i, os.urandom(1 << 20)) for i in range(8)])
        db.commit()
        db.execute("DELETE FROM objects WHERE id > 0")
        db.commit()
    db.close()
    before = store.size_mb(path)
    assert store.compact(path) is None and store.size_mb(path) >= 8  # less than FREE_MB is free: not worth it
    told = store.compact(path, free_mb=4)
    assert told is not None and store.size_mb(path) < before - 6
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT id, length(content) FROM objects").fetchall() == [(0, 1 << 20)]
    db.close()
    assert store.compact(tmp_path / "none.db") is None
    (tmp_path / "broken.db").write_bytes(b"not a database at all" * 100)
    assert "was not compacted" in str(store.compact(tmp_path / "broken.db"))
