"""A federation of real processes on the loopback: a server kit at work, and stock SuperNodes with small hospitals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from server.flower import SuperLink
from tests.conftest import write_hospital
from tests.server.provisioned import Coordinator, write_plan
from tests.server.test_kits import free_port

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[2]
SITES = {"north": ["T1", "FLAIR"], "south": ["T2", "FLAIR"]}


class Deployed:
    """Provisioned in `folder`; every process is started by a method, and ended by `end`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.door = folder, free_port(), free_port()
        write_plan(folder, port=self.door, superlink_port=self.port)
        made = Coordinator(folder).provisioned()
        made.admitted()
        self.kit = made.kits / "server"
        conf = self.kit / "nginx.conf"
        conf.write_text(conf.read_text().replace(f"listen {self.door}", f"listen 127.0.0.1:{self.door}"))
        self.kits = made.kits
        self.link = SuperLink.of_kit(self.kit)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        # What a bundle is made of, and no more: Flower looks through the whole folder, a virtual environment too.
        self.checkout = folder / "medmapfl"
        for name in ("server", "client", "medmap_model", "configs"):
            shutil.copytree(ROOT / name, self.checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, self.checkout)

    def server(self, *options: str, **environment: str) -> None:
        """`medmap-server up`, in a process group of its own; returns when it says that it is up."""
        self._start("server", [BIN / "medmap-server", "up", self.kit, *options], self.folder, environment)
        self.wait("the server is up", "server")

    def serving(self) -> None:
        """`server`, unless it is up."""
        if self.processes["server"].poll() is not None:
            self.server()

    def site(self, name: str) -> None:
        """A stock SuperNode with the key of the site's kit, and its small hospital."""
        kit = self.kits / name
        manifest = self.folder / "data" / name / "manifest.csv"
        if not manifest.exists():
            write_hospital(manifest.parent, SITES[name], patients=6)
        command = [
            BIN / "flower-supernode", "--superlink", f"127.0.0.1:{self.port}", "--root-certificates", kit / "ca.crt",
            "--auth-supernode-private-key", kit / "node.key", "--port", str(free_port()),
            "--node-config", f'manifest="{manifest}" site="{name}"',
        ]  # fmt: skip
        self._start(name, command, kit, {"FLWR_HOME": str(kit / "flower")})

    def online(self, count: int, *, wait_s: float = 180) -> None:
        """Wait until so many SuperNodes are online."""
        end = time.monotonic() + wait_s
        while True:
            nodes = self.link.flwr("supernode", "list", "medmap", "--format", "json")["nodes"]
            if sum(n["status"] == "online" for n in nodes) >= count:
                return
            assert time.monotonic() < end, nodes
            time.sleep(2)  # each look is a process of its own

    def command(self, *arguments: object, wait_s: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
        """medmap-server, as a person calls it."""
        return subprocess.run(
            [BIN / "medmap-server", *map(str, arguments)], cwd=self.folder, env=self.environment(environment),
            capture_output=True, text=True, timeout=wait_s, check=False,
        )  # fmt: skip

    def superlink(self) -> int:
        """The process of the SuperLink."""
        return int(json.loads((self.kit / "state" / "up.json").read_text())["superlink"])

    def serverapp(self) -> int | None:
        """The process of the running ServerApp."""
        return next((p for p, words in self._children() if b"flwr-serverapp" in words), None)

    def wait(self, words: str, of: str, *, wait_s: float = 240) -> str:
        """Until the log of a process holds the words. The log."""
        end, log = time.monotonic() + wait_s, self.folder / f"{of}.log"
        while words not in (text := log.read_text()):
            assert time.monotonic() < end and self.processes[of].poll() is None, text
            time.sleep(0.1)
        return text

    def end(self) -> None:
        """End all that was started, by process group."""
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGCONT)
                os.killpg(process.pid, signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(25)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        for pid, _ in self._children():
            os.kill(pid, signal.SIGKILL)

    def _start(self, name: str, command: list, where: Path, environment: dict[str, str]) -> None:
        with (self.folder / f"{name}.log").open("w") as log:
            self.processes[name] = subprocess.Popen(
                list(map(str, command)), cwd=where, env=self.environment(environment), stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def environment(self, own: dict[str, str]) -> dict[str, str]:
        """Of every process of this federation."""
        quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1"}
        return os.environ | quiet | {"PATH": f"{BIN}:{os.environ['PATH']}", "MARK": str(self.folder)} | own

    def _children(self) -> list[tuple[int, bytes]]:
        """Every process that one of ours has started, by a mark in its environment: (id, command line)."""
        mark, found = f"MARK={self.folder}".encode(), []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    found.append((int(process.name), (process / "cmdline").read_bytes()))
            except OSError:
                continue
        return found
