"""What an update of 200 MB costs over TLS: seconds of a round trip, memory of each process, and the SuperLink's database.

    python -m benchmarks.transfer [--megabytes 200] [--sites 2] [--rounds 3]

A server kit at work on the loopback (`medmap-server up`: TLS, node authentication, SQLite), stock SuperNodes, and an app that
computes nothing: the server sends the arrays to every site, which sends them back. Writes benchmarks/results/transfer.csv. Memory
is the peak resident set so far; the database is measured with its write-ahead log, after each round.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from server.flower import COMPLETED, KIT_NAME, SuperLink
from server.provision.make import provision
from server.running.kit import UP

RESULTS = Path(__file__).parent / "results" / "transfer.csv"
BIN = Path(sys.executable).parent
APP = {
    "pyproject.toml": """
[project]
name = "transfer"
version = "1.0.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "bench"
fab-include = ["*.py"]
[tool.flwr.app.components]
serverapp = "transfer_server:app"
clientapp = "transfer_site:app"
[tool.flwr.app.config]
out = ""
megabytes = 1
sites = 1
rounds = 1
""",
    "transfer_server.py": """
import json, resource, time
from pathlib import Path
import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()
@app.main()
def main(grid, context):
    c = context.run_config
    while len(nodes := list(grid.get_node_ids())) < c["sites"]:
        time.sleep(1)
    rng = np.random.default_rng(0)
    for number in range(c["rounds"]):
        # Another model every round, as in training: what was sent before is of no use.
        arrays = {f"g{i}": rng.random(c["megabytes"] * 250_000 // 10, dtype=np.float32) for i in range(10)}
        begun = time.monotonic()
        record = ArrayRecord({k: Array.from_numpy_ndarray(v) for k, v in arrays.items()})
        sent = [Message(RecordDict({"arrays": record}), dst_node_id=n, message_type="train", group_id=str(number)) for n in nodes]
        replies = list(grid.send_and_receive(sent, timeout=1200))
        seconds = time.monotonic() - begun
        for reply in replies:
            back = reply.content["arrays"]
            assert all((back[k].numpy() == v).all() for k, v in arrays.items())
        line = {"round": number + 1, "returned": len(replies), "seconds": round(seconds, 1),
                "clientapp_mb": max(r.content["used"]["mb"] for r in replies),
                "serverapp_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
        with Path(c["out"]).open("a") as f:
            f.write(json.dumps(line) + "\\n")
        time.sleep(2)  # the database is measured before the next round
""",
    "transfer_site.py": """
import resource
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()
@app.train()
def train(msg, context):
    used = MetricRecord({"mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024})
    return Message(RecordDict({"arrays": msg.content["arrays"], "used": used}), reply_to=msg)
""",
}
FEDERATION = """
name: bench
address: localhost
superlink_port: {port}
package: medmap-fl==0.1.0
sites:
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def peak_mb(process: int) -> int:
    """Peak resident set of a process, in 2^20 bytes."""
    text = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    return int(text.split("VmHWM:")[1].split()[0]) // 1024


def database_mb(kit: Path) -> list[int]:
    """The database and its write-ahead log, in 10^6 bytes."""
    files = (kit / "state" / "state.db", kit / "state" / "state.db-wal")
    return [round(f.stat().st_size / 1e6) if f.exists() else 0 for f in files]


def start(command: list[object], where: Path, log: str) -> subprocess.Popen[bytes]:
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}
    with (where / log).open("w") as out:
        return subprocess.Popen(
            list(map(str, command)), cwd=where, env=os.environ | quiet | {"FLWR_HOME": str(where / "flower")},
            stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def measure(folder: Path, megabytes: int, sites: int, rounds: int) -> list[dict[str, float]]:
    """A row for each round."""
    port, names = free_port(), [f"site{i}" for i in range(sites)]
    text = FEDERATION.format(port=port) + "".join(f"  - name: {n}\n    key: coordinator\n" for n in names)
    (folder / "federation.yaml").write_text(text, encoding="utf-8")
    provision(folder / "federation.yaml", folder / "kits", folder / "authority")
    app, out, kit = folder / "transfer", folder / "rounds.jsonl", folder / "kits" / "server"
    app.mkdir()
    for name, content in APP.items():
        (app / name).write_text(content, encoding="utf-8")
    started = [start([BIN / "medmap-server", "up", kit], kit, "up.log")]
    try:
        while "the server is up" not in (kit / "up.log").read_text(encoding="utf-8"):
            if started[0].poll() is not None:
                raise RuntimeError((kit / "up.log").read_text(encoding="utf-8"))
            time.sleep(0.5)
        for name in names:
            own = folder / "kits" / name
            command = ["--superlink", f"127.0.0.1:{port}", "--root-certificates", "ca.crt"]
            command += ["--auth-supernode-private-key", "node.key", "--port", str(free_port())]
            started.append(start([BIN / "flower-supernode", *command], own, "node.log"))
        link = SuperLink(KIT_NAME, kit / "flower")
        values: dict[str, str | int] = {"out": str(out), "megabytes": megabytes, "sites": sites, "rounds": rounds}
        run, rows = link.submit(app, values), list[dict[str, float]]()
        superlink = json.loads((kit / UP).read_text(encoding="utf-8"))["superlink"]
        while len(rows) < rounds:
            lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
            for line in lines[len(rows) :]:
                database, log = database_mb(kit)
                row = {"megabytes": megabytes, "sites": sites, **json.loads(line)}
                row |= {"superlink_mb": peak_mb(superlink), "supernode_mb": max(peak_mb(p.pid) for p in started[1:])}
                rows.append(row | {"database_mb": database, "log_mb": log})
                print(rows[-1], flush=True)
            if not lines and link.run(run).over:
                raise RuntimeError(f"the run ended: {link.run(run)}")
            time.sleep(0.5)
        assert link.wait(run).status == COMPLETED
        return rows
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGTERM)
        for process in started:
            process.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), args.megabytes, args.sites, args.rounds)
    with RESULTS.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(RESULTS)


if __name__ == "__main__":
    main()
