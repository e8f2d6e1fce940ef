"""A run through Flower, from its start to its true end: submitted, followed, stopped, and gone on with after a failure."""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from server.flower import COMPLETED, FlowerError, Run, SuperLink, simulated
from server.progress import clean, clock_time
from server.provision.authority import utc_now
from server.running import folder as folders
from server.running.lock import is_worked_in, worker
from server.running.record import Attempt, Record, RunError, note_end
from server.running.show import round_line

_LOOK_S, _ASK_S = 1.0, 15.0  # between two looks at the folder, and two questions to Flower while somebody works there
_PATIENCE_S = 900.0  # how long a SuperLink may give no answer before following it is given up
_FAILED = "ServerApp failed with exception: "  # what Flower puts before the sentence
Tell = Callable[[str], None]


def start(folder: Path, known: Record, *, beside: bool = False) -> Attempt:
    """Submit the run, and note it in run.json. Raises RunError while another goes on there, FlowerError.

    beside: let it run beside others. Sites then work for both at once, and need the memory of both.
    """
    link = known.link
    if not beside:
        _refuse_second(link.runs())
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(known.config, sort_keys=False, allow_unicode=True)
    (folder / "config.yaml").write_text(text, encoding="utf-8")  # what the report and medmap-sim read
    values: dict[str, str | int] = {
        "config": json.dumps(known.config, sort_keys=True),
        "output-dir": str(folder.absolute()),
        "expected-sites": known.sites,
    }
    more, federation = simulated(Path(known.sites_file) if known.sites_file else None)
    attempt = Attempt(link.submit(Path(known.app), values | more, federation=federation), utc_now().isoformat())
    known.attempts.append(attempt)
    known.save(folder)  # before anything else can fail: the run goes on
    attempt.bundle = link.run(attempt.id).bundle
    known.save(folder)
    return attempt


def follow(folder: Path, known: Record, *, tell: Tell) -> Run:
    """Print what happens until the newest attempt has ended. Raises FlowerError when the SuperLink is gone for long."""
    link, attempt, told = known.link, known.attempts[-1], _Told(folder, tell)
    asked, silent = 0.0, 0.0
    while True:
        told.news()
        now = time.monotonic()
        if now - asked > (_ASK_S if is_worked_in(folder) else 3.0):
            try:
                run, silent = link.run(attempt.id), 0.0
            except FlowerError as error:
                if not silent:
                    tell(f"the SuperLink gives no answer ({error}): waiting for it up to {clock_time(_PATIENCE_S)}")
                silent = silent or now
                if now - silent > _PATIENCE_S:
                    raise
            else:
                if run.over:
                    told.news()
                    attempt.ended = run.status
                    note_end(folder, attempt)
                    return run
            asked = time.monotonic()
        time.sleep(_LOOK_S)


def verdict(folder: Path, run: Run) -> tuple[int, str]:
    """(exit code, one sentence) for a run that has ended: 0 only when Flower and the folder both say that it is complete."""
    lines = folders.read_rounds(folder)
    if run.status == COMPLETED and (folder / folders.SUMMARY).is_file():
        return 0, clean(f"completed{folders.partial(lines)}: {folder}")
    live = folders.read_live(folder) or {}
    # status.json may be of an attempt before, where this one has not come as far as writing it.
    why = clean(run.details.removeprefix(_FAILED) or str(live.get("error") or "no reason given"))
    return 1, (
        f"run {run.id} ended with {run.status} after {live.get('done', 0)} rounds ({why}): see `medmap-server logs {folder}`; "
        f"to go on: medmap-server resume {folder}"
    )


def ready_to_resume(folder: Path, known: Record, *, tell: Tell) -> None:
    """See to it that nothing of the last attempt goes on. Raises RunError when it does, or when there is nothing left to do.

    Flower takes a run whose server was killed for running until its heartbeats have been missing for long enough; that
    nobody works in the folder shows at once that it is over.
    """
    if (folder / folders.SUMMARY).is_file():
        raise RunError(f"{folder} is complete: there is nothing to go on with")
    last = known.attempts[-1]
    run = next((r for r in known.link.runs() if r.id == last.id), None)
    if run is None or run.over:
        _wait_until_left(folder, last.id)
        last.ended = run.status if run else "forgotten"
        return
    if is_worked_in(folder) or folders.is_starting(last, folders.read_live(folder)):
        raise RunError(
            f"run {run.id} in {folder} is going on ({run.status}): watch it with `medmap-server status {folder}`, end it with "
            f"`medmap-server stop {folder}`"
        )
    tell(f"run {run.id} is {run.status} to Flower, but nobody works in {folder}: it is ended")
    known.link.stop(run.id)
    last.ended = "finished:stopped"


def stop(folder: Path, known: Record, *, patience_s: float = folders.STARTING_S) -> str:
    """End the run and wait until nobody works in its folder. What can be said then.

    Raises RunError, also where somebody still works there after patience_s; FlowerError.
    """
    last = known.attempts[-1]
    if not known.link.run(last.id).over:
        known.link.stop(last.id)
        last.ended = "finished:stopped"
        note_end(folder, last)
    elif not is_worked_in(folder):
        raise RunError(f"run {last.id} in {folder} is not going on: nothing to stop")
    _wait_until_left(folder, last.id, patience_s=patience_s)
    done = (folders.read_live(folder) or {}).get("done", 0)
    return (
        f"run {last.id} is stopped after {done} rounds; its checkpoints are kept; "
        f"to go on: medmap-server resume {folder}"
    )


def _wait_until_left(folder: Path, run: str, *, patience_s: float = folders.STARTING_S) -> None:
    """Until nobody works in the folder any more. Raises RunError when somebody still does after patience_s."""
    end = time.monotonic() + patience_s
    while is_worked_in(folder):
        if time.monotonic() > end:
            raise RunError(
                f"run {run} is over to Flower, but after {patience_s:g} s process {worker(folder)} still works in {folder}: "
                "wait, or end it on this machine (kill -9)"
            )
        time.sleep(_LOOK_S)


def _refuse_second(runs: list[Run]) -> None:
    for run in runs:
        if not run.over:
            raise RunError(
                f"run {run.id} goes on at this SuperLink ({run.status}, {clock_time(run.elapsed_s)}): wait for its end, stop "
                "it, or give --beside to run both at once"
            )


class _Told:
    """What of a folder's news has been told already."""

    def __init__(self, folder: Path, tell: Tell) -> None:
        self._folder, self._tell = folder, tell
        self._rounds = len(folders.read_rounds(folder))
        self._phase: tuple[object, ...] = ()
        self._void: str | None = None
        self._sites: dict[str, str] = {}
        self._begun = utc_now()

    def news(self) -> None:
        """Tell what is new: rounds, the phase, and sites that do not take part."""
        lines = folders.read_rounds(self._folder)
        for line in lines[self._rounds :]:
            self._tell(round_line(line))
        self._rounds = len(lines)
        live = folders.read_live(self._folder)
        if live is None or dt.datetime.fromisoformat(live["updated"]) < self._begun:  # of an attempt before
            return
        phase = (live["phase"], live["stage"], live["round"])
        if phase != self._phase and live["phase"] not in ("finished", "failed"):
            where = f" {live['stage']} round {live['round']}/{live['rounds']}" if live["stage"] else ""
            left = f", {clock_time(live['eta_s'])} left" if live["eta_s"] is not None else ""
            self._tell(f"{live['phase']}{where}{left}")
        self._phase = phase
        if (void := live.get("void")) and void != self._void:
            self._tell(clean(void))
        self._void = void
        for name, site in sorted(live["sites"].items()):
            if site["state"] != self._sites.get(name) and site["state"] in ("refused", "silent", "absent"):
                self._tell(clean(f"{name}: {site['state']}" + (f" ({site['reason']})" if site["reason"] else "")))
            self._sites[name] = site["state"]


def wait_for(link: SuperLink, *, tell: Tell, patience_s: float = _PATIENCE_S) -> None:
    """Until the SuperLink answers. Raises FlowerError when it does not in time."""
    end = time.monotonic() + patience_s
    while True:
        try:
            link.runs()
            return
        except FlowerError as error:
            if time.monotonic() > end:
                raise
            tell(f"{error}: asking again")
            time.sleep(10 * _LOOK_S)
