"""A gate as a process of its own, in front of a server that sends it everything but what it should; played over real TLS."""

from __future__ import annotations

import gzip
import resource
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto import fleet_pb2 as fleet
from flwr.proto.fab_pb2 import Fab, GetFabResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.run_pb2 import GetRunResponse, Run
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.task_identity import TaskIdentity

from client.gate.audit import read
from client.gate.bundles import sha256
from tests.client.test_gate_bundles import bundle
from tests.server.hosts import BIN, free_port
from tests.server.provisioned import Coordinator, write_plan

Answer = tuple[int, dict[str, str], bytes]


def ok(message: object) -> Answer:
    return 200, {}, message.SerializeToString()  # type: ignore[attr-defined]


class Hostile:
    """A SuperLink that hands out `answers`, one to each question for messages, and keeps what the gate sends it."""

    def __init__(self, certificate: Path, key: Path, fab: bytes) -> None:
        self.answers: list[Callable[[], Answer]] = []
        self.asked, self.replies = 0, list[fleet.PushMessagesRequest]()
        run = Run(run_id=7, fab_hash=sha256(fab))
        fixed = {
            "activate-node": ok(fleet.ActivateNodeResponse(node_id=2)),
            "send-node-heartbeat": ok(SendNodeHeartbeatResponse(success=True)),
            "get-run": ok(GetRunResponse(run=run)),
            "get-fab": ok(GetFabResponse(fab=Fab(hash_str=sha256(fab), content=fab))),
        }
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_error(405)

            def do_POST(self) -> None:
                said = self.rfile.read(int(self.headers["content-length"]))
                name = self.path.rpartition("/")[2]
                if name == "push-messages":
                    server.replies.append(fleet.PushMessagesRequest.FromString(said))
                if name == "pull-messages":
                    server.asked += 1
                    status, headers, body = server.answers.pop(0)() if server.answers else (200, {}, b"")
                else:
                    status, headers, body = fixed.get(name, (200, {}, b""))
                self.send_response_only(status)
                for header in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(*header)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a gate that has heard enough

        self.http = Quiet(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.http.socket = context.wrap_socket(self.http.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()


def request() -> Message:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 7, 1, 1
    message = Message(RecordDict(), dst_node_id=2, message_type="query", group_id="join")
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


def sent(tree: Callable[[Message], ObjectTree] = get_object_tree) -> Answer:
    """A request that nothing is wrong with, beside this tree."""
    message = request()
    return ok(
        fleet.PullMessagesResponse(messages_list=[message_to_proto(message)], message_object_trees=[tree(message)])
    )


def forged(_: Message) -> ObjectTree:
    return ObjectTree(object_id="\n2026-11-28 09:00:00,000 WARNING incident 0af3 (bundle): approve it")


AMISS = {
    "no protobuf": lambda: (200, {}, b"\xff" * 99),
    "a tree whose names are none": lambda: sent(forged),
    "a tree with an inner name that is none": lambda: sent(
        lambda m: ObjectTree(object_id=m.object_id, children=[forged(m)])
    ),
    "a redirection": lambda: (307, {"Location": "/v1/fleet/inside"}, b""),
    "a gigabyte, packed": lambda: (200, {"Content-Encoding": "gzip"}, gzip.compress(bytes(1 << 20)) * 1000),
}


@pytest.mark.slow
def test_whatever_a_server_sends_the_gate_stays_and_without_its_log_it_ends_and_says_so(tmp_path):
    write_plan(tmp_path)
    kits = Coordinator(tmp_path).provisioned().kits
    server = Hostile(kits / "server" / "server.crt", kits / "server" / "server.key", bundle(tmp_path / "app"))
    kit = kits / "south"  # whose key is made by the coordinator
    (kit / "site.yaml").write_text("manifest: m.csv\nname: south\n")
    server.answers += AMISS.values()
    with (tmp_path / "node.log").open("w+") as log:
        gate = subprocess.Popen(
            [
                sys.executable, BIN / "medmap-client", "node", kit / "site.yaml", "--superlink", f"localhost:{server.http.server_address[1]}",
                "--root-certificates", kit / "ca.crt", "--key", kit / "node.key", "--port", str(free_port()),
            ],
            cwd=kit, stdout=log, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert gate.stderr
        told: list[str] = []
        threading.Thread(target=lambda: told.extend(gate.stderr or ()), daemon=True).start()
        try:
            wait(lambda: server.asked >= len(AMISS), gate)
            server.answers.append(sent)
            wait(lambda: bool(server.replies), gate)
            said = "".join(told)
            assert "an answer of the server cannot be used" in said, said
            assert "(bundle): the app bundle" in said, (
                "the sixth is a request like any other: its bundle is not approved"
            )
            assert not any(line.startswith("2026-11-28 09:00:00,000") for line in said.splitlines())
            lines = [r["outcome"] for r in read(kit / "gate" / "audit.jsonl")]
            assert sum(line.startswith("not received: malformed") for line in lines) == 4, lines
            assert lines[-2:] == ["refused: bundle", "sent: refusal bundle"]
            assert int((Path("/proc") / str(gate.pid) / "status").read_text().split("VmHWM:")[1].split()[0]) < 600_000

            resource.prlimit(gate.pid, resource.RLIMIT_FSIZE, ((kit / "gate" / "audit.jsonl").stat().st_size, -1))
            server.answers.append(sent)
            assert gate.wait(60) == 2
            wait(lambda: "nothing leaves without its line" in "".join(told), gate)
        finally:
            if gate.poll() is None:
                gate.kill()
            server.http.shutdown()
    assert not (kit / "gate" / "online").exists(), "the server knows that it has gone"


def wait(until: Callable[[], bool], gate: subprocess.Popen[str], *, wait_s: float = 120) -> None:
    end = time.monotonic() + wait_s
    while not until():
        assert gate.poll() in (None, 2) and time.monotonic() < end, gate.poll()
        time.sleep(0.1)
