#!/usr/bin/env python3
"""The whole story on this machine, by the commands that people type: `make e2e` (about three minutes on two cores).

A coordinator provisions a federation; two hospitals check their kits, make a key or have one, check their data, approve the
code, and join through nginx over TLS; a private run of two rounds per stage; validation by noisy histograms; what was spent,
sent and received. Server and hospitals are processes of their own. The data are simulated (the phantom), so no score means
anything. All is written below a temporary folder (--keep DIR: below DIR, and kept), all processes are ended.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PHANTOM = [
    "sites=iid", "sites.count=2", "sites.organs=[brain]", "sites.patients=24", "sites.validation_patients=6",
    "sites.test_patients=12", "sites.common_patients=2", "sites.external_patients=2", "data.phantom.size=16",
]  # fmt: skip
SETTINGS = [
    "privacy=patient_dp", "text=hash", "stage.pretrain.objective=bank", "stage.pretrain.rounds=2", "stage.finetune.rounds=2",
    "privacy.steps=2", "privacy.noise_multiplier=2", "data.volumes.size=16", "model.embed_dim=32", "model.encoder.width=4",
    "engine.device=cpu",
]  # fmt: skip
PLAN = """\
name: story
address: localhost
port: {door}
superlink_port: {superlink}
package: medmap-fl==0.1.0
sites:
  - name: north
  - name: south
    key: coordinator
"""


class Failed(Exception):
    """A step did not do what it should."""


class Story:
    """Runs commands below a folder and tells what it does. Kits' scripts find this Python's programs on the path."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.begun = folder, time.monotonic()
        self.environment = os.environ | {
            "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
            "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
        }  # fmt: skip

    def chapter(self, title: str) -> None:
        """A heading, with the time so far."""
        print(f"\n[{time.monotonic() - self.begun:4.0f} s] {title}", flush=True)

    def do(self, *words: object, timeout_s: float = 600, **variables: object) -> str:
        """Run a command to its end, with more variables of the environment; what it printed. Raises Failed when it fails."""
        command = [str(w) for w in words]
        print(f"  $ {' '.join(command)}".replace(str(self.folder), "."), flush=True)
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment | {k: str(v) for k, v in variables.items()}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout_s, check=False,
        )  # fmt: skip
        for line in done.stdout.splitlines()[-14:]:
            print(f"    {line}".replace(str(self.folder), "."), flush=True)
        if done.returncode:
            raise Failed(f"`{' '.join(command)}` ended with {done.returncode}")
        return done.stdout


def free_port() -> int:
    """A port of the loopback that nobody has."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def provision(story: Story) -> tuple[Path, list[Path]]:
    """Kits for the server and two hospitals; each hospital checks its own. The server's kit, the hospitals'."""
    plan = story.folder / "federation.yaml"
    plan.write_text(PLAN.format(door=free_port(), superlink=free_port()), encoding="utf-8")
    said = story.do("medmap-server", "provision", plan, "-o", "kits")
    fingerprint = said.strip().splitlines()[-1]
    for name in ("north", "south"):
        story.do("medmap-client", "verify", f"kits/{name}", "--fingerprint", fingerprint)
    said = story.do("medmap-client", "request", "north", "-o", "kits/north")
    story.do("medmap-server", "sign", "kits/north/north.csr", "--fingerprint", said.strip().splitlines()[-1])
    shutil.copy(story.folder / "authority" / "sites" / "north.crt", story.folder / "kits" / "north" / "node.crt")
    kits = story.folder / "kits"
    return kits / "server", [kits / "north", kits / "south"]


def describe(story: Story, kits: list[Path]) -> None:
    """Give each hospital its data and its demands, and have both checked."""
    story.do("medmap-sim", "phantom", *PHANTOM, f"data.folder={story.folder / 'data'}")
    manifests = sorted((story.folder / "data").glob("*/iid-*/manifest.csv"))
    for kit, manifest in zip(kits, manifests, strict=True):
        text = (kit / "site.example.yaml").read_text(encoding="utf-8")
        text = re.sub(r"manifest: \S+", f"manifest: {manifest}", text)
        (kit / "site.yaml").write_text(re.sub(r"delta: \S+", "delta: 0.001", text), encoding="utf-8")


def approve(story: Story, kits: list[Path]) -> Path:
    """Build the app bundle from this checkout and have both hospitals approve it. The checkout that was built."""
    checkout = story.folder / "medmapfl"  # Flower accepts no folder name with a dot or an underscore
    for name in ("server", "client", "medmap_model", "configs"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout / name)
    story.do("flwr", "build", "--app", checkout)
    bundle = next(p for folder in (story.folder, checkout) for p in folder.glob("*.fab"))
    for kit in kits:
        story.do("medmap-client", "approve", bundle, "--site", kit / "site.yaml", "--yes")
    return checkout


def tell(story: Story, kits: list[Path]) -> None:
    """What remains: a report, models, figures with intervals, and at each hospital what was spent and what was sent."""
    run = story.folder / "run"
    for name in ("summary.json", "report.html", "metrics.jsonl"):
        if not (run / name).is_file():
            raise Failed(f"{run / name} was not written")
    rounds = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    if [line["returned"] for line in rounds] != [["north", "south"]] * 4:
        raise Failed("not every round had an update of both hospitals")
    found = json.loads((story.folder / "validation" / "validation.json").read_text(encoding="utf-8"))
    if set(found["organs"]["brain"]["tumour"]["run"]["sites"]) != {"north", "south"}:
        raise Failed("not both hospitals have validated the model")
    for kit in kits:
        story.do("medmap-client", "budget", kit / "ledger" / "ledger.db")
        story.do("medmap-client", "audit", kit / "gate" / "audit.jsonl")


def run(story: Story) -> None:
    """All chapters. Raises Failed."""
    story.chapter("The coordinator provisions; the hospitals check their kits and make keys")
    server, kits = provision(story)
    story.chapter("The server starts: a SuperLink on the loopback, nginx in front of it")
    story.do(server / "start.sh", "--nginx")
    try:
        story.chapter("The hospitals describe their data, approve the code, check, and join")
        describe(story, kits)
        checkout = approve(story, kits)
        for kit in kits:
            story.do("medmap-client", "check", kit / "site.yaml")
            story.do(kit / "start.sh", RUNTIME_PORT=free_port())  # two sites on one machine
        story.chapter("Two private rounds of each stage")
        story.do("medmap-server", "run", *SETTINGS, "-o", "run", "--kit", server, "--app", checkout)
        story.do("medmap-server", "status", "run")
        story.chapter("The hospitals validate the model")
        loose = ["--set", "privacy.validation_epsilon=4", "--set", "privacy.validation_bins=4"]  # so few patients
        story.do("medmap-server", "validate", "run", "-o", "validation", *loose, "--kit", server, "--app", checkout)
        story.chapter("What remains")
        tell(story, kits)
    finally:
        story.chapter("All leave")
        for kit in [*kits, server]:
            story.do(kit / "stop.sh")


def main() -> int:
    """Exit code: 0 the story went as it should, 1 it did not, 3 something is missing on this machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="a new folder for all that is written; kept")
    keep = parser.parse_args().keep
    if shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        print("e2e: nginx is missing (Debian, Ubuntu: apt-get install nginx-light)", file=sys.stderr)
        return 3
    os.environ["PATH"] += ":/usr/sbin"
    with tempfile.TemporaryDirectory(prefix="medmap-e2e-") as temporary:
        folder = keep.absolute() if keep else Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        story = Story(folder)
        try:
            run(story)
        except Failed as error:
            print(f"\ne2e: {error}", file=sys.stderr)
            return 1
        story.chapter(f"Done{f'; see {folder}' if keep else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
