"""A machine with a kit on it: its scripts, and the processes that work there."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

BIN = Path(sys.executable).parent
PROGRAMS = (
    b"flower-superlink", b"medmap-server", b"medmap-client", b"flower-superexec", b"flwr-clientapp", b"start.sh", b"nginx",
)  # fmt: skip


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Host:
    """A machine with a kit on it: runs its scripts with ports of its own."""

    def __init__(self, kit: Path, superlink_port: int) -> None:
        self.kit = kit
        self.env = os.environ | {
            "PATH": f"{BIN}:{os.environ['PATH']}", "SUPERLINK": f"localhost:{superlink_port}", "RUNTIME_PORT": str(free_port()), "WAIT_S": "60"
        }  # fmt: skip

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.kit / script], env=self.env, cwd="/", capture_output=True, text=True, timeout=120, check=False
        )

    def ready(self) -> Host:
        """As its engineer leaves it: with a site.yaml."""
        shutil.copy(self.kit / "site.example.yaml", self.kit / "site.yaml")
        return self

    def environment_of(self, program: bytes) -> str:
        """The environment of the first process of this kit that runs the program."""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if program in (process / "cmdline").read_bytes() and (process / "cwd").resolve() == self.kit.resolve():
                    return (process / "environ").read_text()
            except OSError:
                continue
        raise AssertionError(f"no {program.decode()} works in {self.kit}")


def processes_of(folder: Path, *, wait_s: float = 10) -> list[str]:
    """Flower's and nginx's processes that work in or below a folder and are still there after wait_s."""
    end = time.monotonic() + wait_s
    while (found := _processes(folder)) and time.monotonic() < end:
        time.sleep(0.2)
    return found


def _processes(folder: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, where = (process / "cmdline").read_bytes(), (process / "cwd").resolve()
        except OSError:
            continue
        if where.is_relative_to(folder) and any(p in command for p in PROGRAMS):
            found.append(command.replace(b"\0", b" ").decode())
    return found
