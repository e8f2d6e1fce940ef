"""Live progress: events of running conditions in; a terminal display or plain lines out.

Conditions (federated, pooled, naive, each local model) run side by side; their events arrive interleaved.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TextIO

if TYPE_CHECKING:
    from rich.console import Console

RUN = "run"  # the condition of a message that concerns the whole run


@dataclass(frozen=True)
class Event:
    """Something that happened in a run.

    kind: run_start, stage_start, round_start, reply (of one site), round_end, stage_end, run_end (of one condition)
        or message
    score: the latest validation score. Sites validate a round's model when they receive it, in the next round: a
        `round_end` carries the score of the model before, a `stage_end` that of the stage's last model
    text: of a message; of a `round_end` whose update is missing
    done, total: rounds of the whole condition, over both stages; of a message: steps of what it tells of
    """

    kind: str
    condition: str
    stage: str = ""
    round: int = 0
    rounds: int = 0
    site: str = ""
    loss: float | None = None
    score: float | None = None
    text: str = ""
    done: int = 0
    total: int = 0


Progress = Callable[[Event], None]
Clock = Callable[[], float]


def make_progress(*, plain: bool | None = None) -> Display:
    """A display to be opened with `with`: live bars on a terminal, plain lines where there is none or plain=True."""
    if plain:
        return PlainLines()
    from rich.console import Console

    console = Console()
    return PlainLines() if plain is None and not console.is_terminal else LiveBars(console)


@dataclass
class Track:
    """What is known of one running condition. first: rounds done before this process began, in no time of its own."""

    started: float
    ended: float  # when the latest round ended
    first: int
    stage: str = ""
    round: int = 0
    rounds: int = 0
    done: int = 0
    total: int = 0
    loss: float | None = None
    score: float | None = None
    replied: list[str] = field(default_factory=list)

    def take(self, event: Event, now: float) -> None:
        """Update from an event of this condition."""
        if event.stage and event.stage != self.stage:
            self.stage, self.loss, self.score = event.stage, None, None  # the other stage's loss is another loss
        if event.done > self.done:
            self.done, self.ended = event.done, now
        self.round, self.rounds, self.total = event.round, event.rounds, event.total or self.total
        if event.kind == "round_start":
            self.replied.clear()
        elif event.kind == "reply":
            self.replied.append(clean(event.site))
            return  # its loss is one site's own
        self.loss = self.loss if event.loss is None else event.loss
        self.score = self.score if event.score is None else event.score

    def left_s(self, now: float) -> float | None:
        """Seconds left, from the mean time of the rounds so far; None before the first has ended."""
        rounds = self.done - self.first
        if rounds <= 0:
            return None
        per_round = (self.ended - self.started) / rounds
        return max(per_round * (self.total - self.done) - (now - self.ended), 0.0)

    def figures(self) -> list[str]:
        """Loss and validation score, where known."""
        named = (("loss", self.loss), ("val", self.score))
        return [f"{name} {value:.3f}" for name, value in named if value is not None]


class Display:
    """What both displays share: a `Track` per running condition, and what to do with each kind of event."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock, self._running = clock, dict[str, Track]()

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        name = clean(event.condition)
        if event.kind == "message":
            return self._message(event)
        now = self._clock()
        track = self._running.setdefault(name, Track(now, now, event.done))
        track.take(event, now)
        if event.kind == "run_end":
            del self._running[name]
            took = clock_time(now - track.started)
            self._end(name, ", ".join([f"{name} done: {track.done} rounds", took, *track.figures()]))
        else:
            self._show(name, track, event)

    def _message(self, event: Event) -> None:
        where = f"{event.condition if event.condition != RUN else ''} {event.site}".strip()
        text = clean(f"{where}: {event.text}" if where else event.text)
        if event.total:
            self._count(text, event.done, event.total)
        else:
            self._say(text)

    def _show(self, name: str, track: Track, event: Event) -> None:
        """A condition has moved."""
        raise NotImplementedError

    def _end(self, name: str, line: str) -> None:
        """A condition has ended."""
        self._say(line)

    def _count(self, text: str, done: int, total: int) -> None:
        """Something outside training is counted."""
        raise NotImplementedError

    def _say(self, line: str) -> None:
        """One line, for good."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return None


class PlainLines(Display):
    """One line per round, message and finished condition; for logs and pipes."""

    def __init__(self, stream: TextIO | None = None, clock: Clock = time.monotonic) -> None:
        super().__init__(clock)
        self._stream, self._quarters = stream, dict[str, int]()

    def _show(self, name: str, track: Track, event: Event) -> None:
        if event.kind != "round_end":
            return
        parts = track.figures()
        if track.replied:
            parts.insert(0, f"{len(track.replied)} site{'s' * (len(track.replied) != 1)}")
        if event.text:
            parts.append(clean(event.text))
        left = track.left_s(self._clock())
        if left is not None:
            parts.append(f"{clock_time(left)} left")
        head = f"{name} {track.stage} round {track.round}/{track.rounds}"
        self._say(f"{head}: {', '.join(parts)}" if parts else head)

    def _count(self, text: str, done: int, total: int) -> None:
        quarter = 4 * done // total
        if quarter > self._quarters.get(text, -1):  # a line per quarter, however many steps
            self._say(f"{text}: {done}/{total}")
            self._quarters[text] = quarter

    def _say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


class LiveBars(Display):
    """One live row per running condition and per counted message; what has ended becomes a line above them."""

    def __init__(self, console: Console | None = None, clock: Clock = time.monotonic) -> None:
        from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
        from rich.progress import Progress as Bars
        from rich.table import Column
        from rich.text import Text

        super().__init__(clock)
        running = self._running

        class Left(ProgressColumn):
            """Time left; worked out when drawn, so that it counts down between events."""

            def render(self, task: Task) -> Text:
                track = running.get(task.fields["name"])
                left = track.left_s(clock()) if track else None
                return Text("" if left is None else clock_time(left), justify="right")

        def text(name: str, width: int) -> TextColumn:
            column = Column(width=width, no_wrap=True, overflow="ellipsis")
            return TextColumn(f"{{task.fields[{name}]}}", markup=False, table_column=column)

        self._bars = Bars(
            text("name", 18),
            text("stage", 8),
            BarColumn(bar_width=None),
            text("round", 7),
            text("site", 7),
            text("figures", 21),
            Left(table_column=Column(width=7, no_wrap=True)),
            console=console,
            expand=True,
            transient=True,
        )
        self._rows: dict[str, Any] = {}

    def _show(self, name: str, track: Track, event: Event) -> None:
        site = track.replied[-1] if track.replied else ""
        fields = {"stage": track.stage, "round": f"{track.round}/{track.rounds}", "site": site}
        self._row(name, track.done, track.total, **fields, figures=" ".join(track.figures()))

    def _end(self, name: str, line: str) -> None:
        self._drop(name)
        self._say(line)

    def _count(self, text: str, done: int, total: int) -> None:
        if done < total:
            self._row(text, done, total, stage="", round="", site="", figures=f"{done}/{total}")
        else:
            self._end(text, f"{text}: {total}")

    def _row(self, name: str, done: int, total: int, **fields: Any) -> None:
        if name not in self._rows:
            self._rows[name] = self._bars.add_task("", total=None, name=name, **fields)
        self._bars.update(self._rows[name], completed=done, total=total or None, **fields)

    def _drop(self, name: str) -> None:
        if name in self._rows:
            self._bars.remove_task(self._rows.pop(name))

    def _say(self, line: str) -> None:
        self._bars.console.print(line, markup=False, highlight=False)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()


def clock_time(seconds: float) -> str:
    """`1:05`, or `1:01:05` from an hour on."""
    minutes, s = divmod(max(round(seconds), 0), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{s:02d}" if minutes >= 60 else f"{minutes}:{s:02d}"


def clean(text: str) -> str:
    """Text from a site, for a terminal: no control character reaches it."""
    return "".join(c if c.isprintable() else "?" for c in text)
