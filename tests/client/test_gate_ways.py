"""The gate's two ways in: what a server's answers and a worker's requests may be, at Flower's own client and Runtime API."""

from __future__ import annotations

import gzip
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supernode import fleet_http_connection, main
from starlette.testclient import TestClient

from client.gate.door import Allowance
from client.gate.link import MB, Link
from client.gate.words import one_line, plain, visible
from tests.client.gate_parts import Node, node_at
from tests.client.test_gate import code, good, train


class Server:
    """Answers each request with a body, a status and headers of one's choice; `paths` are those it was asked for."""

    def __init__(self) -> None:
        self.body, self.status, self.headers, self.paths = b"", 200, dict[str, str](), list[str]()
        answers = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                answers.paths.append(self.path)
                answers.asked = self.headers
                self.send_response_only(answers.status)
                for name, value in ({"Content-Length": str(len(answers.body))} | answers.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answers.body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a client that has heard enough

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.http.server_address[1]}"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield made
    made.http.shutdown()
    thread.join()
    made.http.server_close()


@pytest.fixture
def link(server) -> Iterator[Link]:
    with Link.from_server_address(server.address, True, None, []) as made:
        yield made


def part(size: int) -> bytes:
    return PullObjectResponse(object_found=True, object_content=bytes(size)).SerializeToString()


def test_an_answer_is_read_as_far_as_one_of_its_kind_can_be_long(server, link):
    server.body = part(60 * MB)
    assert len(link.PullObject(PullObjectRequest()).object_content) == 60 * MB
    server.body = part(64 * MB)
    with pytest.raises(ValueError, match="larger than 64 MB"):
        link.PullObject(PullObjectRequest())
    server.body = PullMessagesResponse().SerializeToString() + bytes(5 * MB)
    with pytest.raises(ValueError, match="larger than 4 MB"):
        link.PullMessages(PullMessagesRequest())
    server.body, server.headers = part(10), {"Content-Length": str(MB << 20)}
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        link.PullObject(PullObjectRequest())


def test_an_answer_is_never_unpacked(server, link):
    """Flower's own client makes 60 MB of this, and a gigabyte of a megabyte."""
    server.body, server.headers = gzip.compress(part(60 * MB)), {"Content-Encoding": "gzip"}
    assert len(server.body) < MB
    with pytest.raises(ValueError, match="is packed"):
        link.PullObject(PullObjectRequest())
    assert server.asked["accept-encoding"] == "identity"
    with fleet_http_connection.FleetHttpClient.from_server_address(server.address, True, None, []) as flowers:
        assert len(flowers.PullObject(PullObjectRequest()).object_content) == 60 * MB, "or the test shows nothing"


def test_an_answer_leads_nowhere_else(server, link):
    """A redirection could have the gate knock at a door inside the hospital, with a signed request in its hand."""
    server.status, server.headers = 307, {"Location": f"http://{server.address}/inside"}
    with pytest.raises(httpx.HTTPStatusError):
        link.PullObject(PullObjectRequest())
    assert server.paths == ["/v1/fleet/pull-object"]


@pytest.mark.parametrize("status", [200, 307, 403, 404, 500])
def test_a_heartbeat_that_is_answered_amiss_is_tried_again(server, link, status):
    """What Flower's thread takes for no answer; anything else ends it, and with it the site's place for good."""
    server.status, server.body = status, b"\xff no protobuf"
    with pytest.raises(httpx.TransportError):
        link.SendNodeHeartbeat(SendNodeHeartbeatRequest())
    server.status, server.body = 200, SendNodeHeartbeatResponse(success=False).SerializeToString()
    with pytest.raises(httpx.TransportError, match="does not know"):
        link.SendNodeHeartbeat(SendNodeHeartbeatRequest())
    server.body = SendNodeHeartbeatResponse(success=True).SerializeToString()
    assert link.SendNodeHeartbeat(SendNodeHeartbeatRequest()).success


def test_a_site_that_is_shut_out_hears_of_it(server, link):
    server.status = 401
    with pytest.raises(httpx.HTTPStatusError):
        link.SendNodeHeartbeat(SendNodeHeartbeatRequest())


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    return node_at(tmp_path, monkeypatch)


def ask(client: TestClient, name: str, size: int = 0) -> int:
    headers = {"content-type": "application/protobuf"}
    return int(client.post(f"/v1/runtime/{name}", content=bytes(size), headers=headers).status_code)


def test_a_worker_finds_what_it_needs_and_nothing_else(node):
    with TestClient(main.create_app()) as client:
        for name in ("acquire-task", "push-messages", "push-object", "push-task-output"):
            node.gate.allowance.renew(100)
            assert ask(client, name) not in (404, 405, 413), name
        for name in ("create-task", "push-logs", "put-compacted-context", "push-task-events", "x/acquire-task", ""):
            assert ask(client, name) == 404, name
        assert client.get("/docs").status_code == 404


def test_a_worker_sends_no_more_than_the_request_that_it_was_given_needs(node):
    with TestClient(main.create_app()) as client:
        assert ask(client, "push-object", 1) == 413, "nothing was asked of it"
        node.gate.allowance.renew(3 * MB)
        assert [ask(client, "push-object", MB) == 413 for _ in range(4)] == [False, False, False, True]
        assert ask(client, "push-object", 0) == 413 and node.gate.allowance.exceeded, "from then on nothing"
        node.gate.allowance.renew(1000 * MB)
        assert not node.gate.allowance.exceeded
        assert ask(client, "push-messages", 4 * MB + 1) == 413 and ask(client, "acquire-task", MB) == 413
        assert ask(client, "push-object", 64 * MB + 1) == 413 and ask(client, "push-object", MB) != 413


def test_the_allowance_of_a_request_is_its_reply_and_a_little(node, caplog):
    request = node.link.ask("train", train())
    assert node.pull() == 7
    assert node.gate.allowance.take(32 * MB) and not node.gate.allowance.take(2 * MB)
    reply = good(request)
    reply.metadata.__dict__.update(_message_id=reply.object_id, _reply_to_message_id=request.object_id, _run_id=7)
    node.store.preregister(7, get_object_tree(reply))
    node.state.store_message(reply)
    node.push()
    assert "sent more than the reply can need" in caplog.text, "and its parts, which cannot come, are not waited for"
    assert code(node.link.reply()) == "egress"


def test_an_allowance_is_one_for_all_that_come_at_once():
    allowance = Allowance()
    allowance.renew(1000)
    taken: list[bool] = []
    threads = [threading.Thread(target=lambda: taken.extend(allowance.take(10) for _ in range(20))) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == 100


FORGED = "no such part\n2026-11-28 09:00:00 WARNING incident 0af3 (bundle): medmap-client approve evil.fab\x1b[2K\u202e"


def test_a_line_of_the_log_is_one_line_whoever_chose_its_words(caplog):
    log = logging.getLogger("tests.forged")
    log.addFilter(one_line)
    log.error("Failed to receive message %s: %s", "ab", FORGED)
    try:
        raise ValueError(FORGED)
    except ValueError:
        log.exception("Exception in ASGI application")
    log.info("100 %")
    log.error("x" * 10**6)
    log.removeFilter(one_line)
    lines = caplog.text.splitlines()
    assert sum("approve evil.fab" in line for line in lines) == 2 and not any(line.startswith("2026") for line in lines)
    assert max(map(len, lines)) < 5000
    assert "\x1b" not in caplog.text and "\u202e" not in caplog.text and r"\n2026-11-28" in caplog.text
    assert "  | Traceback (most" in caplog.text and any(line.startswith("  | 2026-11-28") for line in lines)
    assert visible("a\tb\u00e9\x07", keep="\t") == "a\tb\u00e9\\x07" and plain("\u00e9" + "x" * 99) == "?" + "x" * 63
