"""The way to the server, against real TLS on the loopback: whom a site trusts, what each failure is called, whose clock is off."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from client.preflight.kit import superlink
from client.preflight.network import Unreachable, ask, clock, reachability
from server.provision.authority import Authority, utc_now
from tests.client.preflight_parts import https_server, subject, told, write_site
from tests.server.provisioned import Coordinator, write_plan


@pytest.fixture(scope="module")
def federation(tmp_path_factory) -> Coordinator:
    folder = tmp_path_factory.mktemp("federation")
    write_plan(folder)
    return Coordinator(folder).provisioned()


@pytest.fixture(scope="module")
def server(federation):
    kit = federation.kits / "server"
    with https_server(kit / "server.crt", kit / "server.key") as running:
        yield running


@pytest.fixture
def site(federation, server, hospitals, tmp_path, monkeypatch):
    """A site whose kit names the running server."""
    monkeypatch.setenv("SUPERLINK", f"localhost:{server.port}")
    server.status, server.late_s = 405, 0.0
    return lambda: subject(write_site(tmp_path, hospitals["east"]), kit=federation.kits / "north")


def test_the_fleet_api_answers_and_the_clocks_agree(site, server):
    server.asked.clear()
    checked = site()
    row = reachability(checked)
    assert row.result == "ok" and "the kit's authority" in row.found
    assert clock(checked).result != "failed" and "not compared" not in clock(checked).found
    assert len(server.asked) == 1 and server.asked[0].startswith("/v1/fleet/"), "one question for both rows"


@pytest.mark.parametrize(
    ("status", "result", "words"),
    [(502, "failed", "SuperLink is not"), (403, "failed", "answers 403"), (200, "failed", "answers 200")],
)
def test_an_answer_that_is_not_the_fleet_apis_is_no_pass(site, server, status, result, words):
    server.status = status
    row = reachability(site())
    assert row.result == result and words in row.found


@pytest.mark.parametrize(
    ("late_s", "result"), [(0, None), (10, "failed"), (3, "warning"), (-100, "warning"), (-400, "failed"), (None, None)]
)
def test_a_clock_that_the_server_would_refuse_is_a_failed_row(site, server, monkeypatch, late_s, result):
    """Server 10 s late: this clock is 10 s ahead. Flower allows 5 s ahead and 305 s behind."""
    server.late_s = late_s
    row = clock(site())
    if result is None:  # NTP alone decides, as this machine has it
        assert row.result in ("ok", "warning", "skipped") and "server refuses" not in row.remedy
    else:
        assert row.result == result and "server refuses" in row.remedy
        assert ("ahead of" if late_s > 0 else "behind") in row.found


def other_certificate(
    federation: Coordinator, folder: Path, *, of: Authority | None = None, **dates
) -> tuple[Path, Path]:
    """A server certificate as `server()` issues it, without touching the federation's."""
    shutil.copytree(federation.authority, folder)
    (of or Authority(folder)).server("localhost", **dates)
    return folder / "server.crt", folder / "server.key"


def test_a_server_of_another_authority_is_not_trusted(federation, tmp_path):
    (tmp_path / "other").mkdir()
    write_plan(tmp_path / "other")
    other = Coordinator(tmp_path / "other").provisioned().kits / "server"
    with https_server(other / "server.crt", other / "server.key") as running:
        with pytest.raises(Unreachable, match="does not hold") as refused:
            ask("localhost", running.port, federation.kits / "north" / "ca.crt")
        assert "Do not go on" in refused.value.remedy and not running.asked
        assert ask("localhost", running.port, other / "ca.crt").status == 405, "the server itself is well"


def test_an_expired_certificate_and_another_name_are_told_apart(federation, tmp_path):
    ca = federation.kits / "north" / "ca.crt"
    expired = other_certificate(federation, tmp_path / "old", days=30, now=utc_now() - dt.timedelta(days=60))
    with https_server(*expired) as running, pytest.raises(Unreachable, match="expired") as refused:
        ask("localhost", running.port, ca)
    assert "clock" in refused.value.remedy
    kit = federation.kits / "server"
    other = https_server(kit / "server.crt", kit / "server.key", host="127.0.0.2")
    with other as running, pytest.raises(Unreachable, match="does not hold") as refused:
        ask("127.0.0.2", running.port, ca)
    assert "address is not the certificate's" in refused.value.remedy


def test_what_is_no_tls_server_is_called_what_it_is(federation):
    ca = federation.kits / "north" / "ca.crt"
    with https_server(None, None) as plain, pytest.raises(Unreachable, match="not by TLS"):
        ask("localhost", plain.port, ca)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        with pytest.raises(Unreachable, match="refuses connections"):
            ask("127.0.0.1", port, ca)
        silent.listen()
        with pytest.raises(Unreachable, match="does not answer within"):
            ask("127.0.0.1", port, ca, timeout_s=0.3)
    with pytest.raises(Unreachable, match="The name of"):
        ask("fl.invalid", 443, ca, timeout_s=3)


def test_without_a_server_both_rows_say_so_and_nothing_breaks(site, hospitals, tmp_path, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("SUPERLINK", f"127.0.0.1:{closed.getsockname()[1]}")
        checked = site()
        assert reachability(checked).result == "failed" and "not compared" in clock(checked).found
    alone = subject(write_site(tmp_path, hospitals["east"]))
    assert told(reachability(alone)).startswith("skipped: site.yaml is not in a kit's folder")
    assert "not compared" in clock(alone).found


def test_the_environment_names_the_server_before_the_kit_does(federation, monkeypatch):
    monkeypatch.delenv("SUPERLINK", raising=False)
    assert superlink(federation.kits / "north") == ("localhost", 9443)
    monkeypatch.setenv("SUPERLINK", "[::1]:17")
    assert superlink(federation.kits / "north") == ("::1", 17)


@contextmanager
def proxy() -> Iterator[tuple[int, list[str]]]:
    """A proxy that knows CONNECT alone; its port, and what it was asked for."""
    asked: list[str] = []  # what, and by whom

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            target = self.rfile.readline().decode().split()[1]
            headers = dict(line.decode().split(": ", 1) for line in iter(self.rfile.readline, b"\r\n"))
            asked.append(f"{headers.get('Proxy-Authorization', '').strip()} {target}".strip())
            host, _, port = target.rpartition(":")
            with socket.create_connection((host, int(port)), timeout=5) as far:
                self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
                back = threading.Thread(target=self.pump, args=(far, self.connection))
                back.start()
                self.pump(self.connection, far)
                back.join()

        @staticmethod
        def pump(one: socket.socket, other: socket.socket) -> None:
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield running.server_address[1], asked
        running.shutdown()


def test_the_proxy_of_the_environment_is_used_as_flower_uses_it(federation, server, monkeypatch):
    ca = federation.kits / "north" / "ca.crt"
    with proxy() as (port, asked):
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("NO_PROXY", "")
        assert ask("localhost", server.port, ca).status == 405
        assert asked == [f"localhost:{server.port}"]
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:p%40ss@127.0.0.1:{port}")
        assert ask("localhost", server.port, ca).status == 405
        assert asked.pop() == f"Basic {b64encode(b'me:p@ss').decode()} localhost:{server.port}"
        monkeypatch.setenv("NO_PROXY", "localhost")
        assert ask("localhost", server.port, ca).status == 405
        assert len(asked) == 1
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("NO_PROXY", "")
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(Unreachable, match=r"the proxy .* refuses"):
            ask("localhost", server.port, ca)


@pytest.mark.slow
def test_a_real_superlink_is_recognised(federation, tmp_path):
    """Flower's answer to a GET of the Fleet API is what `reachability` takes for it."""
    kit = federation.kits / "server"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [
        Path(sys.executable).parent / "flower-superlink", "--host", "127.0.0.1", "--port", str(port), "--isolation", "process",
        "--ssl-certfile", kit / "server.crt", "--ssl-keyfile", kit / "server.key", "--ssl-ca-certfile", kit / "ca.crt",
    ]  # fmt: skip
    env = os.environ | {"FLWR_HOME": str(tmp_path), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    running = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while True:
            try:
                answer = ask("localhost", port, kit / "ca.crt")
                break
            except Unreachable:
                assert running.poll() is None and time.monotonic() < end
                time.sleep(0.2)
        assert answer.status == 405 and answer.ahead_s is not None and abs(answer.ahead_s) < 5
    finally:
        running.terminate()
        running.wait(30)
