"""A federation in a process of its own that is killed (-9) at every point where it writes or waits, and gone on with each time.

    python -m tests.server.resume_driver FOLDER

Prints a JSON line per point: where it was killed, what the folder held then, and what resuming ended with. The first line is
the undisturbed run. What the round loop calls is wrapped here; the product knows nothing of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from medmap_model.checkpoint import latest
from server import checkpoint, history
from server.rounds import Federation
from simulation.engines import InProcessGrid
from tests.server.test_rounds import Hospitals, federation

# The second round of stage 2 is worse than the first: it stops early and goes back to the best checkpoint.
OVERRIDES = ("stage.pretrain.rounds=1", "stage.finetune.rounds=4", "stage.finetune.patience=1")


class Points:
    """Counts wrapped calls; before number `kill` the process ends without a word. What came after the call before it has
    changed nothing outside the process, so that a point before each call is a point at every place."""

    def __init__(self, kill: int | None) -> None:
        self.kill, self.seen = kill, list[tuple[str, int, str]]()
        self.running: Federation | None = None

    def reached(self, where: str) -> None:
        state = self.running.state if self.running else None
        self.seen.append((where, state.completed if state else 0, state.stage if state else ""))
        if self.kill is not None and len(self.seen) > self.kill:
            os.kill(os.getpid(), signal.SIGKILL)

    def wrap(self, owner: Any, name: str) -> None:
        plain = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.reached(args[1].metadata.message_type if name == "_answer" else name)
            return plain(*args, **kwargs)

        setattr(owner, name, wrapped)


def spoil(site: int, stage: str, number: int, vectors: dict) -> None:
    """A round that is left out, done twice or in another order gives other bits."""
    for k in vectors:
        vectors[k] *= 1 + 0.1 * (number + 1) * (site + 1) + (stage == "finetune")


def run(folder: Path, points: Points | None = None) -> dict[str, Any]:
    """From the folder's checkpoint, if it has one, to the end."""
    hospitals = Hospitals(spoil, val_loss=float)
    f = federation(folder, hospitals, *OVERRIDES, grid=InProcessGrid(hospitals.app, 2, {}))
    if points is not None:
        points.running = f
    began = f.state.completed
    vectors = f.run()
    digest = hashlib.sha256(b"".join(vectors[g].tobytes() for g in sorted(vectors))).hexdigest()
    lines = [json.loads(line) for line in (folder / history.FILE).read_text().splitlines()]
    timed = ("wall_s", "seconds")
    live = json.loads((folder / "status.json").read_text())
    return {
        "weights": digest,
        "lines": [{k: v for k, v in line.items() if k not in timed} for line in lines],
        "checkpoints": sorted(p.name for p in (folder / "checkpoints").iterdir()),
        "began": began,
        "phase": live["phase"],
    }


def killed(folder: Path, kill: int | None) -> Points:
    """In a child: a run that is killed at a point. Its status.json and checkpoints are what it left."""
    points = Points(kill)
    for owner, name in (
        (InProcessGrid, "_answer"), (history, "append"), (checkpoint, "to_tensors"), (checkpoint.os, "replace"),
        (checkpoint.shutil, "rmtree"),
    ):  # fmt: skip
        points.wrap(owner, name)
    run(folder, points)
    return points


def main() -> None:
    root = Path(sys.argv[1])
    whole = run(root / "whole")
    print(json.dumps(whole))
    read, write = os.pipe()
    if not os.fork():
        points = killed(root / "counted", None)
        with os.fdopen(write, "w") as out:
            json.dump(points.seen, out)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        seen = json.load(told)
    os.wait()
    for number, (where, completed, stage) in enumerate(seen):
        folder = root / f"killed-{number}"
        if not os.fork():
            killed(folder, number)
            os._exit(0)
        _, status = os.wait()
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (where, status)
        kept = latest(folder / "checkpoints")
        phase = json.loads((folder / "status.json").read_text())["phase"] if (folder / "status.json").exists() else None
        told = {
            "where": where,
            "completed": completed,
            "stage": stage,
            "kept": kept.name if kept else None,
            "then": phase,
        }
        print(json.dumps(told | run(folder)))


if __name__ == "__main__":
    main()
