"""A federation of real processes whose sites are the kits' own: gate and worker, TLS, and a network that can be cut and slowed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from server.flower import SuperLink
from tests.conftest import write_hospital
from tests.faults.network import Network
from tests.server.deployed import BIN, ROOT, Deployed
from tests.server.provisioned import Coordinator
from tests.server.test_kits import free_port

SABOTAGE = Path(__file__).parent / "sabotage"
PROGRAMS = ("flower-", "flwr-", "medmap-", "nginx")
_PLAN = """\
name: brain
address: localhost
port: {port}
superlink_port: {superlink_port}
package: medmap-fl==0.1.0
sites:
"""
_SITE = """\
name: {name}
manifest: {manifest}
cache_dir: {cache}
egress:
  minimum_cohort: 1
{more}
"""


def processes(folder: Path, *programs: str) -> dict[int, str]:
    """Process id -> command line of what works in or below a folder and whose command names one of the programs."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            where = (entry / "cwd").resolve()
        except OSError:
            continue
        if where.is_relative_to(folder) and any(p in command for p in programs or PROGRAMS):
            found[int(entry.name)] = command
    return found


def until(condition: Callable[[], Any], what: str, *, timeout_s: float = 240, every_s: float = 0.1) -> Any:
    """What the condition gives, as soon as that is true. Fails with `what` when it never is."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(every_s)
    raise AssertionError(f"never happened in {timeout_s:.0f} s: {what}")


class Hospitals(Deployed):
    """sites: name -> modalities. Each site has a `Network` of its own to the SuperLink. `kit_site` starts one by its kit's
    scripts, `rogue` one that runs Flower's stock SuperNode and answers wrongly on demand. `end` ends everything."""

    def __init__(self, folder: Path, sites: Mapping[str, list[str]]) -> None:
        self.folder, self.port = folder, free_port()
        plan = _PLAN.format(port=free_port(), superlink_port=self.port)
        plan += "".join(f"  - name: {name}\n    key: coordinator\n" for name in sites)
        (folder / "federation.yaml").write_text(plan)
        made = Coordinator(folder).provisioned()
        self.kits, self.kit = made.kits, made.kits / "server"
        self.link = SuperLink.of_kit(self.kit)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.networks = {name: Network(self.port) for name in sites}
        self.manifests = {name: write_hospital(folder / "data" / name, m, patients=8) for name, m in sites.items()}
        self.checkout = self._checkout()
        self.bundle = self._build()

    def policy(self, name: str, more: str = "", *, cache: Path | None = None) -> Path:
        """Write a site's site.yaml; more: further lines of it."""
        path = self.kits / name / "site.yaml"
        path.write_text(
            _SITE.format(name=name, manifest=self.manifests[name], cache=cache or self.kits / name / "cache", more=more)
        )
        return path

    def kit_site(self, name: str) -> subprocess.CompletedProcess[str]:
        """Start a site by its kit's start.sh; returns when it has joined, or was refused."""
        kit = self.kits / name
        if not (kit / "site.yaml").exists():
            self.policy(name)
        if not (kit / "gate" / "approved.json").exists():
            self.approve(name)
        own = {"SUPERLINK": f"localhost:{self.networks[name].port}", "RUNTIME_PORT": str(free_port()), "WAIT_S": "170"}
        return subprocess.run(
            [kit / "start.sh"],
            env=self.environment(own),
            cwd="/",
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def approve(self, name: str) -> None:
        """The site approves the bundle of this checkout."""
        subprocess.run(
            [BIN / "medmap-client", "approve", self.bundle, "--site", self.kits / name / "site.yaml", "--yes"],
            capture_output=True, timeout=60, check=True,
        )  # fmt: skip

    def rogue(self, name: str) -> None:
        """A site that obeys no gate: Flower's own SuperNode, whose updates `spoil` can change."""
        own = {
            "FLWR_HOME": str(self.kits / name / "flower"),
            "SABOTAGE": str(self.folder / f"{name}.how"),
            "PYTHONPATH": str(SABOTAGE),
        }
        command = [
            BIN / "flower-supernode", "--superlink", f"localhost:{self.networks[name].port}", "--root-certificates",
            self.kits / name / "ca.crt", "--auth-supernode-private-key", self.kits / name / "node.key", "--port", str(free_port()),
            "--node-config", f'site-file="{self.policy(name)}"',
        ]  # fmt: skip
        self._start(name, command, self.kits / name, own)

    def spoil(self, name: str, how: str) -> None:
        """From now on the rogue's updates are changed so (sabotage/sitecustomize.py); '': no longer."""
        (self.folder / f"{name}.how").write_text(how)

    def kill(self, name: str, *programs: str) -> None:
        """kill -9 of a site's processes that are one of these programs, and must be there."""
        found = processes(self.kits / name, *programs)
        assert found, f"{name} runs no {programs}"
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        until(lambda: not processes(self.kits / name, "start.sh", *programs), f"the rest of {name} ends as well")

    def stop(self, name: str) -> None:
        """The site leaves by its kit's stop.sh."""
        subprocess.run(
            [self.kits / name / "stop.sh"], env=self.environment({}), capture_output=True, timeout=60, check=False
        )

    def log(self, name: str, file: str = "node.log") -> str:
        """A site's log."""
        path = self.kits / name / file
        return path.read_text(errors="replace") if path.exists() else ""

    def begin(self, out: Path, *settings: str) -> subprocess.Popen[str]:
        """`medmap-server run`, going on; its words go to OUT.log."""
        with out.with_suffix(".log").open("w") as log:
            return subprocess.Popen(
                [BIN / "medmap-server", "run", *settings, "-o", out, "--kit", self.kit, "--app", self.checkout],
                cwd=self.folder, env=self.environment({}), stdout=log, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip

    def end(self) -> None:
        """End all that was started, and see that nothing is left."""
        for kit in self.kits.iterdir():
            if (kit / "kit.pid").exists():
                self.stop(kit.name)
        for network in self.networks.values():
            network.close()
        super().end()

    def _checkout(self) -> Path:
        folder = self.folder / "medmapfl"  # Flower accepts no name with a dot or an underscore
        for name in ("server", "client", "medmap_model", "configs"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, folder / name)
        return folder

    def _build(self) -> Path:
        subprocess.run(
            [BIN / "flwr", "build", "--app", self.checkout],
            cwd=self.folder, env=self.environment({}), capture_output=True, timeout=120, check=True,
        )  # fmt: skip
        return next(p for where in (self.folder, self.checkout) for p in where.glob("*.fab"))


class Watched:
    """A run's folder, looked at as it grows. command: `medmap-server run` of it."""

    def __init__(self, folder: Path, command: subprocess.Popen[str]) -> None:
        self.folder, self._command = folder, command

    def live(self) -> dict[str, Any]:
        """status.json, {} before it is there."""
        path = self.folder / "status.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def lines(self) -> list[dict[str, Any]]:
        """metrics.jsonl: a round is there once the next one has validated its model."""
        path = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def site(self, name: str) -> dict[str, Any]:
        """A site's entry in status.json."""
        return dict(self.live().get("sites", {}).get(name, {}))

    def round(self, number: int, *, timeout_s: float = 300) -> None:
        """Wait until training of this round (counted over both stages, from 1) has begun."""

        def begun() -> bool:
            now = self.live()
            assert self._command.poll() is None, self.folder.with_suffix(".log").read_text()
            return now.get("phase") == "training" and now.get("done") == number - 1

        until(begun, f"round {number} of {self.folder}", timeout_s=timeout_s)
