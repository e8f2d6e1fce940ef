"""The conditions of an experiment side by side, in processes that end with the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import queue as queues
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from client.manifest import ManifestError
from client.problems import DataError
from client.site import open_records
from configs import from_json, to_json
from configs.schema import Config
from medmap_model.encoders import ModelError
from medmap_model.text import TextEncoderError
from server.checkpoint import CheckpointError
from server.members import FederationError
from server.progress import Event, Progress
from simulation.conditions import Hospital, Job, cache_dir, jobs, run_job


class Stopped(RuntimeError):
    """The run was asked to stop; what is on disk can be resumed."""


class ConditionError(RuntimeError):
    """A mistake met by a worker process: its one sentence, and nothing that cannot cross between processes."""


# What a user, not the program, has to mend: each says in its text what is wrong, where, and what to do.
MISTAKES = (
    ConditionError,
    FederationError,
    CheckpointError,
    ManifestError,
    DataError,
    ModelError,
    TextEncoderError,
    OSError,
)


_events: Any = None
_stop: Any = None


def _start_worker(events: Any, stop: Any) -> None:
    """In a worker: the main process alone hears Ctrl-C; a worker stops between two sites."""
    global _events, _stop
    _events, _stop = events, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Where the main process is killed its lock on the run's folder is free: nothing of it may go on writing there."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _relay(event: Event) -> None:
    if _stop.is_set():
        raise Stopped
    _events.put(event)


def _work(batch: list[Job], hospitals: Sequence[Hospital], run_dir: Path) -> list[dict[str, Any]]:
    try:
        return [run_job(job, hospitals, run_dir, _relay) for job in batch]
    except MISTAKES as error:
        raise ConditionError(str(error)) from None


def _prepare(hospital: Hospital, config_json: str, cache: Path) -> float:
    """Open a hospital's records, so that volumes and report embeddings are in the caches. Returns the seconds."""
    begun = time.monotonic()
    try:
        open_records(from_json(config_json), hospital.entry.manifests, cache)
    except MISTAKES as error:
        raise ConditionError(f"{hospital.entry.name}: {error}") from None
    return time.monotonic() - begun


def run_all(
    config: Config, hospitals: Sequence[Hospital], run_dir: Path, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Every job, in `engine.workers` processes; model name -> what `run_job` returns. Ctrl-C raises Stopped."""
    batches = jobs(config, hospitals)
    if config.engine.workers == 1 or len(batches) == 1 or config.engine.kind == "ray":
        done = [run_job(job, hospitals, run_dir, progress) for batch in batches for job in batch]
        return {d["model"]: d for d in done}
    context = multiprocessing.get_context("spawn")
    events, stop = context.Queue(), context.Event()
    results: dict[str, dict[str, Any]] = {}
    with ProcessPoolExecutor(min(config.engine.workers, len(batches)), context, _start_worker, (events, stop)) as pool:
        running: set[Future[list[dict[str, Any]]]] = set()
        try:
            progress(Event("message", "run", text=f"preparing the volumes of {len(hospitals)} hospitals"))
            text, cache = to_json(config), cache_dir(config, run_dir)
            for prepared in [pool.submit(_prepare, h, text, cache) for h in hospitals]:
                prepared.result()
            running = {pool.submit(_work, b, hospitals, run_dir) for b in batches}
            while running:
                for event in _drain(events):
                    progress(event)
                done_now, running = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in done_now:
                    results |= {d["model"]: d for d in future.result()}
            for event in _drain(events):
                progress(event)
        except BaseException:
            stop.set()
            for future in running:
                future.cancel()
            raise
    return results


def _drain(events: Any) -> Iterator[Event]:
    while True:
        try:
            yield events.get_nowait()
        except queues.Empty:
            return
