"""Flower's command line, driven: submit a run to a SuperLink, ask how it is, stop it, read its log.

`flwr run --stream` returns 0 even when a run fails, so the status is read from `flwr list`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMPLETED = "finished:completed"
KIT_NAME = "medmap"  # of the SuperLink in the config.toml of a server kit
_SECONDS = 120  # a command of Flower's takes no longer


class FlowerError(RuntimeError):
    """Flower refused or failed; the message is its own last line."""


@dataclass(frozen=True)
class Run:
    """A run as Flower knows it. status: pending, starting, running, finished:completed, finished:failed, finished:stopped."""

    id: str
    status: str
    details: str
    bundle: str
    elapsed_s: float

    @property
    def over(self) -> bool:
        """Whether Flower does nothing more for it."""
        return self.status.startswith("finished")


@dataclass(frozen=True)
class SuperLink:
    """A SuperLink as Flower's command line knows it.

    name: in Flower's config.toml; None: its default one. home: the folder of that config.toml; None: Flower's own.
    """

    name: str | None = None
    home: Path | None = None

    @classmethod
    def of_kit(cls, kit: Path) -> SuperLink:
        """The one that a server kit starts."""
        return cls(KIT_NAME, kit.absolute() / "flower")

    def submit(self, app: Path, values: Mapping[str, str | int], *, federation: str = "") -> str:
        """Hand it the app at `app`. Returns the run's id. Raises FlowerError.

        values: the run config. federation: Flower's --federation-config. Run from an empty folder: a local SuperLink started
        by this command would otherwise import from the present one.
        """
        with tempfile.TemporaryDirectory() as empty:
            config = Path(empty) / "run.toml"
            config.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in values.items()), encoding="utf-8")
            command = ["run", str(app.absolute()), *self._named(), "--run-config", str(config)]
            if federation:
                command += ["--federation-config", federation]
            told = self.flwr(*command, "--format", "json", folder=empty)
        return str(told["run-id"])

    def runs(self) -> list[Run]:
        """Every run that it remembers, the newest first. As it is asked, Flower drops what is left of ended ones."""
        return [_run(row) for row in self.flwr("list", *self._named(), "--format", "json")["runs"]]

    def run(self, run: str) -> Run:
        """One run. Raises FlowerError, also where there is no such run."""
        told = self.flwr("list", *self._named(), "--run-id", run, "--format", "json")
        return _run(told["runs"][0])

    def wait(self, run: str, *, every_s: float = 3, tell: Callable[[str], None] = print) -> Run:
        """The run when it has ended. Raises FlowerError."""
        last = ""
        while True:
            now = self.run(run)
            if now.status != last:
                tell(f"run {run}: {now.status}")
                last = now.status
            if now.over:
                return now
            time.sleep(every_s)

    def stop(self, run: str) -> None:
        """End a run. Raises FlowerError, also where it had ended."""
        self.flwr("stop", run, *self._named(), "--format", "json")

    def log(self, run: str, *, follow: bool) -> int:
        """Print the ServerApp's log of a run; Flower's exit code."""
        command = [_program(), "log", run, *self._named(), "--stream" if follow else "--show"]
        return subprocess.run(command, env=self._environment(), check=False).returncode

    def flwr(self, *arguments: str, folder: str | None = None) -> dict[str, Any]:
        """One command of Flower's, and the JSON that it prints. Raises FlowerError with its last words."""
        try:
            done = subprocess.run(
                [_program(), *arguments],
                cwd=folder, env=self._environment(), capture_output=True, text=True, timeout=_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise FlowerError(f"flwr {arguments[0]}: no answer in {_SECONDS} s") from None
        try:
            told = json.loads(done.stdout)
        except ValueError:
            told = {"success": False}
        if done.returncode or not told.get("success", True):
            lines = str(told.get("error-message") or done.stderr or done.stdout).strip().splitlines()
            raise FlowerError(f"flwr {arguments[0]}: {lines[-1] if lines else 'failed without a word'}")
        return dict(told)

    def _named(self) -> list[str]:
        return [self.name] if self.name else []

    def _environment(self) -> dict[str, str]:
        quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        return quiet | os.environ | ({"FLWR_HOME": str(self.home)} if self.home else {})


def simulated(sites_file: Path | None) -> tuple[dict[str, str], str]:
    """What a run over simulated sites needs besides: (run config, --federation-config); nothing where there is no file.

    Raises FlowerError for a file that `medmap-sim phantom` did not write.
    """
    if sites_file is None:
        return {}, ""
    try:
        sites = len(json.loads(sites_file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise FlowerError(
            f"{sites_file} is not a sites file ({type(error).__name__}); `medmap-sim phantom` writes one"
        ) from None
    return {"sites-file": str(sites_file.absolute())}, f"num-supernodes={sites} client-resources-num-cpus=1"


def _program() -> str:
    return str(Path(sys.executable).parent / "flwr")


def _run(row: Mapping[str, Any]) -> Run:
    details, elapsed_s = str(row["status-details"] or ""), float(row["elapsed"])
    return Run(str(row["run-id"]), str(row["status"]), details, str(row["fab-hash"]), elapsed_s)
