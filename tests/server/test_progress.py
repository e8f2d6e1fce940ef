"""Live progress: what is printed where there is no terminal, what is drawn where there is one, what TensorBoard reads."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from server.progress import Event, LiveBars, PlainLines, clock_time, make_progress
from simulation.board import TensorBoard


class Clock:
    """Seconds that pass only when told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def told(display: Any, clock: Clock, *, condition: str = "federated", first: int = 0, last: int = 6) -> None:
    """The events of a condition with 2 + 4 rounds of 10 seconds and two sites."""
    for done in range(first, last):
        stage, number, rounds = ("pretrain", done + 1, 2) if done < 2 else ("finetune", done - 1, 4)
        at: dict[str, Any] = {"condition": condition, "stage": stage, "round": number, "rounds": rounds, "total": 6}
        display(Event("round_start", done=done, **at))
        clock.now += 10
        for site in ("north", "south"):
            display(Event("reply", site=site, loss=9.0, done=done, **at))
        score = 0.5 + done / 10 if number > 1 else None
        display(Event("round_end", loss=1 / number, score=score, done=done + 1, **at))


def test_plain_lines_say_what_a_log_needs() -> None:
    out, clock = io.StringIO(), Clock()
    with PlainLines(out, clock) as display:
        told(display, clock)
        display(Event("stage_end", "federated", "finetune", 4, 4, score=0.9, done=6, total=6))
        display(Event("run_end", "federated", "finetune", 4, 4, done=6, total=6))
    assert out.getvalue().splitlines() == [
        "federated pretrain round 1/2: 2 sites, loss 1.000, 0:50 left",
        "federated pretrain round 2/2: 2 sites, loss 0.500, val 0.600, 0:40 left",
        "federated finetune round 1/4: 2 sites, loss 1.000, 0:30 left",
        "federated finetune round 2/4: 2 sites, loss 0.500, val 0.800, 0:20 left",
        "federated finetune round 3/4: 2 sites, loss 0.333, val 0.900, 0:10 left",
        "federated finetune round 4/4: 2 sites, loss 0.250, val 1.000, 0:00 left",
        "federated done: 6 rounds, 1:00, loss 0.250, val 0.900",
    ]


def test_time_left_counts_only_rounds_of_this_process() -> None:
    out, clock = io.StringIO(), Clock()
    told(PlainLines(out, clock), clock, first=4, last=5)
    assert out.getvalue() == "federated finetune round 3/4: 2 sites, loss 0.333, val 0.900, 0:10 left\n"


def test_messages_are_lines_and_counts_are_quarters() -> None:
    out = io.StringIO()
    display = PlainLines(out)
    for done in range(0, 1001, 10):
        display(Event("message", "run", text="simulating patients", done=done, total=1000))
    display(Event("message", "naive", site="north\x1b[2J", text="update refused:\nnan"))
    *counts, refused = out.getvalue().splitlines()
    assert counts == [f"simulating patients: {n}/1000" for n in (0, 250, 500, 750, 1000)]
    assert refused == "naive north?[2J: update refused:?nan"


def screen(width: int, *, last: int) -> tuple[str, str]:
    """What stands on a terminal of this width, live and after the end, with two conditions running."""
    clock = Clock()
    console = Console(file=io.StringIO(), width=width, height=20, force_terminal=True, color_system=None)
    display = LiveBars(console, clock)
    display(Event("message", "run", text="simulating patients", done=118, total=1180))
    for condition in ("federated", "local-a-very-long-hospital"):
        told(display, clock, condition=condition, last=last)
    with console.capture() as live:
        console.print(display._bars.get_renderable())
    with display, console.capture() as closed:
        display(Event("message", "run", text="simulating patients", done=1180, total=1180))
        for condition in ("federated", "local-a-very-long-hospital"):
            display(Event("run_end", condition, "finetune", 2, 4, done=last, total=6))
    return live.get(), closed.get()


def test_live_rows_fit_80_columns() -> None:
    live, closed = screen(80, last=4)
    rows = live.splitlines()
    assert len(rows) == 3
    assert max(map(len, rows)) <= 80
    assert rows[0].startswith("simulating patien…")
    assert "118/1180" in rows[0]
    for part in ("federated", "finetune", "2/4", "south", "loss 0.500 val 0.800", "0:"):
        assert part in rows[1]
    assert rows[2].startswith("local-a-very-long…")
    assert "simulating patients: 1180" in closed
    assert "federated done: 4 rounds, 1:20, loss 0.500, val 0.800" in closed


def test_a_wide_terminal_gives_the_bar_the_room() -> None:
    assert screen(140, last=3)[0].count("━") > 2 * screen(80, last=3)[0].count("━")


def test_no_terminal_means_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with make_progress() as display:
        display(Event("message", "run", text="hello"))
    assert isinstance(display, PlainLines)
    assert capsys.readouterr().out == "hello\n"
    assert isinstance(make_progress(plain=True), PlainLines)
    assert isinstance(make_progress(plain=False), LiveBars)


def test_tensorboard_reads_the_scalars_back(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with TensorBoard(tmp_path) as board:
        told(board, Clock())
        board(Event("stage_end", "federated", "finetune", 4, 4, score=0.75, done=6, total=6))
        board(Event("round_end", "local-../x", "finetune", 1, 4, loss=0.5, done=1, total=4))
    assert sorted(p.name for p in (tmp_path / "tensorboard").iterdir()) == ["federated", "local-___x"]
    events = EventAccumulator(str(tmp_path / "tensorboard" / "federated")).Reload()

    def scalars(tag: str) -> list[tuple[int, float]]:
        return [(s.step, round(s.value, 3)) for s in events.Scalars(tag)]

    assert scalars("pretrain/loss") == [(1, 1.0), (2, 0.5)]
    assert scalars("finetune/loss") == [(1, 1.0), (2, 0.5), (3, 0.333), (4, 0.25)]
    # A round's end carries the score of the model before it; the stage's end that of the last model.
    assert scalars("finetune/validation_score") == [(1, 0.8), (2, 0.9), (3, 1.0), (4, 0.75)]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (65, "1:05"), (3600, "1:00:00"), (-3, "0:00")])
def test_clock_time(seconds: float, text: str) -> None:
    assert clock_time(seconds) == text
