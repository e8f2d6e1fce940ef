"""The audit log: what is in it, that a change shows, and that a kill does no harm."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.cli import app
from client.gate.audit import Audit, AuditError, Event, read

EVENT = Event("out", "sent", "fl.example.org:443", "17", "train", "pretrain-1", 1200, "aa", "bb", "cc")


def written(path: Path, lines: int = 3) -> Path:
    log = Audit(path)
    for i in range(lines):
        log.write(Event("in", "accepted", run=str(i), request=f"r{i}"))
    log.close()
    return path


def test_lines_say_who_when_what_how_large_and_are_chained(tmp_path):
    log = Audit(path := tmp_path / "gate" / "audit.jsonl")
    log.write(EVENT)
    log.write(EVENT)
    first, second = read(path)
    assert second["previous"] == first["hash"] != second["hash"] and first["previous"] == "0" * 64
    assert first["time"].endswith("+00:00") and (first["bytes"], first["object"], first["bundle"]) == (1200, "aa", "cc")
    assert path.stat().st_mode & 0o077 == 0


def test_what_others_chose_is_short_and_plain_in_it(tmp_path):
    log = Audit(path := tmp_path / "audit.jsonl")
    log.write(Event("in", "accepted", kind="train", group="Anna\n" + "x" * 200))
    (line,) = read(path)
    assert line["group"] == "Anna?" + "x" * 59 and path.read_bytes().count(b"\n") == 1


def test_it_goes_on_where_it_was_and_remembers_what_was_answered(tmp_path):
    log = Audit(path := tmp_path / "audit.jsonl")
    log.write(Event("in", "accepted", request="bb"))
    assert not log.answered("bb")
    log.write(EVENT)
    assert log.answered("bb")
    with pytest.raises(AuditError, match="in use by another process"):
        Audit(path)
    log.close()
    again = Audit(path)
    assert again.answered("bb") and not again.answered("cc")
    again.write(EVENT)
    assert len(list(read(path))) == 3


def test_a_line_that_cannot_be_written_is_none_and_breaks_no_chain(tmp_path):
    log = Audit(path := tmp_path / "audit.jsonl")
    log.write(Event("in", "accepted", request="r0"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, limits[1]))  # as a disk that is full half way
    try:
        with pytest.raises(AuditError, match="nothing leaves without its line"):
            log.write(Event("out", "sent", request="r1"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not log.answered("r1")
    log.write(Event("out", "sent", request="r2"))
    assert [line["request"] for line in read(path)] == ["r0", "r2"], "neither its half nor its whole comes later"
    log.close()
    assert Audit(path).answered("r2"), "a gate starts on it"


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        (lambda lines: [lines[0].replace(b'"run":"0"', b'"run":"9"'), *lines[1:]], 1),
        (lambda lines: [lines[0], lines[2]], 2),
        (lambda lines: [lines[1], lines[0], lines[2]], 1),
        (lambda lines: [*lines, lines[2]], 4),
        (lambda lines: [*lines[:2], b"no JSON\n"], 3),
        (lambda lines: [*lines[:2], b"[]\n"], 3),
        (lambda lines: [lines[0].replace(b",", b", ", 1), *lines[1:]], 1),
    ],
)
def test_a_change_shows_and_the_line_is_named(tmp_path, harm, line):
    path = written(tmp_path / "audit.jsonl")
    path.write_bytes(b"".join(harm(path.read_bytes().splitlines(keepends=True))))
    for use in (Audit, lambda p: list(read(p))):
        with pytest.raises(AuditError, match=f"line {line} does not fit the chain"):
            use(path)
    shown = CliRunner().invoke(app, ["audit", str(path)])
    assert shown.exit_code == 1 and f"line {line} does not fit" in shown.output


@pytest.mark.parametrize("rest", [b'{"bytes":0,"bun', b"x"])
def test_a_line_cut_short_is_mended_and_said(tmp_path, rest):
    path = written(tmp_path / "audit.jsonl")
    path.write_bytes(path.read_bytes() + rest)
    with pytest.raises(AuditError, match="line 4 was cut short"):
        list(read(path))
    log = Audit(path)
    log.write(EVENT)
    lines = list(read(path))
    assert [r["direction"] for r in lines] == ["in", "in", "in", "log", "out"]
    assert lines[3]["outcome"] == f"mended: {len(rest)} bytes of a line that was cut short"


def test_a_process_killed_while_it_writes_leaves_a_log_that_goes_on(tmp_path):
    path = tmp_path / "audit.jsonl"
    code = (
        "import sys; from pathlib import Path; from client.gate.audit import *\n"
        "log = Audit(Path(sys.argv[1]))\nprint('ready', flush=True)\nwhile True: log.write(Event('in', 'accepted'))"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True)
    assert writer.stdout and writer.stdout.readline() == "ready\n"
    while path.stat().st_size < 5000:
        pass
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    Audit(path).close()
    assert len(list(read(path))) > 10


def test_the_command_shows_it(tmp_path):
    path = written(tmp_path / "audit.jsonl")
    shown = CliRunner().invoke(app, ["audit", str(path)])
    assert shown.exit_code == 0 and "3 lines, the chain is whole" in shown.output and "accepted" in shown.output
    lines = CliRunner().invoke(app, ["audit", str(path), "--json"]).output.splitlines()
    assert [json.loads(x)["run"] for x in lines] == ["0", "1", "2"]
    none = CliRunner().invoke(app, ["audit", str(tmp_path / "none")])
    assert none.exit_code == 1 and "cannot be read" in none.output
