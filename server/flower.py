"""Flower's command line, driven: submit a run to a SuperLink, and wait for its true end.

`flwr run --stream` returns 0 even when a run fails, so the status is read from `flwr list`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_SECONDS = 120  # a command of Flower's takes no longer


class FlowerError(RuntimeError):
    """Flower refused or failed; the message is its own last line."""


def submit(app: Path, superlink: str | None, values: Mapping[str, str], *, federation: str = "") -> int:
    """Hand the app at `app` to a SuperLink (None: Flower's default one). Returns the run's id. Raises FlowerError.

    values: the run config. federation: Flower's --federation-config. Run from an empty folder: a local SuperLink started by
    this command would otherwise import from the present one.
    """
    with tempfile.TemporaryDirectory() as empty:
        config = Path(empty) / "run.toml"
        config.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in values.items()), encoding="utf-8")
        command = ["run", str(app.absolute()), *([superlink] if superlink else []), "--run-config", str(config)]
        if federation:
            command += ["--federation-config", federation]
        told = flwr(*command, "--format", "json", folder=empty)
    return int(told["run-id"])


def wait(run: int, superlink: str | None = None, *, every_s: float = 3, tell: Callable[[str], None] = print) -> str:
    """Flower's status of the run when it has ended, such as `finished:completed`. Raises FlowerError."""
    last = ""
    while True:
        told = flwr("list", *([superlink] if superlink else []), "--run-id", str(run), "--format", "json")
        status = str(told["runs"][0]["status"])
        if status != last:
            tell(f"run {run}: {status}")
            last = status
        if status.startswith("finished"):
            return status
        time.sleep(every_s)


def flwr(*arguments: str, folder: str | None = None) -> dict[str, Any]:
    """One command of Flower's, and the JSON that it prints. Raises FlowerError with its last words."""
    command = [str(Path(sys.executable).parent / "flwr"), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False)
    try:
        told = json.loads(done.stdout)
    except ValueError:
        told = {"success": False}
    if done.returncode or not told.get("success", True):
        lines = str(told.get("error-message") or done.stderr or done.stdout).strip().splitlines()
        raise FlowerError(f"flwr {arguments[0]}: {lines[-1] if lines else 'failed without a word'}")
    return dict(told)
