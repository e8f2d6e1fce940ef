"""The server of a kit at work on this machine: serving, hanging, going on, ended; what systemd is told of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from configs.kits import SERVER_CERTIFICATE, SERVER_KEY
from server.health import check
from server.running import kit
from tests.server.deployed import Deployed
from tests.server.provisioned import Coordinator, write_plan
from tests.server.test_kits import free_port


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Deployed]:
    made = Deployed(tmp_path_factory.mktemp("server"))
    try:
        yield made
    finally:
        made.end()


class Systemd:
    """The socket that systemd would listen at: of Linux's abstract kind, which is no file."""

    def __init__(self) -> None:
        self.address = f"@medmap-test-{os.getpid()}"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + self.address[1:])

    def heard(self, word: str, *, within_s: float) -> bool:
        """Whether a message with that word comes in time."""
        end = time.monotonic() + within_s
        while (left := end - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                if word in self.socket.recv(4096).decode().splitlines():
                    return True
            except TimeoutError:
                return False
        return False

    def drain(self) -> None:
        """Forget what has come."""
        self.heard("nothing", within_s=0.5)


@pytest.mark.slow
def test_a_hung_server_is_told_from_one_that_serves_and_systemd_hears_only_of_the_latter(server):
    assert kit.health(server.kit).state == "down"
    systemd = Systemd()
    nginx = ("--nginx",) if shutil.which("nginx") else ()
    server.server(*nginx, NOTIFY_SOCKET=systemd.address, WATCHDOG_USEC="2000000")
    assert systemd.heard("READY=1", within_s=5)
    assert systemd.heard("WATCHDOG=1", within_s=20)
    assert kit.health(server.kit).state == "serving"
    up = json.loads((server.kit / kit.UP).read_text())
    late = check(up["port"], up["health_port"], server.kit / "ca.crt", slow_s=0)
    assert late.state == "slow" and late.alive

    if nginx:
        trust = ssl.create_default_context(cafile=str(server.kit / "ca.crt"))
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"https://localhost:{server.door}/v1/control/list-runs", context=trust, timeout=20)

    os.kill(server.superlink(), signal.SIGSTOP)
    hung = kit.health(server.kit, deadline_s=1)
    assert hung.state == "hung" and "gRPC health and HTTP" in hung.detail and not hung.alive
    systemd.drain()
    assert not systemd.heard("WATCHDOG=1", within_s=4)
    os.kill(server.superlink(), signal.SIGCONT)
    assert systemd.heard("WATCHDOG=1", within_s=40)
    assert kit.health(server.kit).state == "serving"

    told = server.command("status", server.kit, "--json")
    assert told.returncode == 0 and json.loads(told.stdout)["server"]["state"] == "serving"
    held = {os.path.realpath(f) for f in Path(f"/proc/{server.superlink()}/fd").iterdir()}
    assert str(server.kit / "state" / ".lock") in held, (
        "the SuperLink of an `up` that was killed still has the database"
    )
    # At another port it would open the same database.
    second = server.command("up", server.kit, SUPERLINK_PORT=str(free_port()))
    assert second.returncode == 1 and "works on its database" in second.stderr and second.stderr.count("\n") == 1

    os.kill(server.superlink(), signal.SIGKILL)
    assert server.processes["server"].wait(30) == 1
    assert "flower-superlink ended with exit code -9" in (server.folder / "server.log").read_text()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", server.door), timeout=1).close()
    gone = server.command("status", server.kit)
    assert gone.returncode == 4 and gone.stdout.startswith("server    down") and "start.sh" in gone.stdout


class Answers:
    """A listener that accepts, and then does what it is told."""

    def __init__(self, does) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self._serve, args=(does,), daemon=True).start()

    def _serve(self, does) -> None:
        self.kept = []
        while True:
            self.kept.append(self.socket.accept()[0])
            threading.Thread(target=does, args=(self.kept[-1],), daemon=True).start()


def trickling(kit: Path) -> Callable[[socket.socket], None]:
    """With the kit's certificate: an answer that comes a byte at a time."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(kit / SERVER_CERTIFICATE, kit / SERVER_KEY)

    def answer(plain: socket.socket) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as to:
            for byte in b"HTTP/1.1 200 OK\r\n":
                to.sendall(bytes([byte]))
                time.sleep(0.2)

    return answer


def test_what_listens_and_says_nothing_hangs_and_what_talks_otherwise_is_no_superlink(tmp_path):
    write_plan(tmp_path)
    authority = Coordinator(tmp_path).provisioned().kits / "server" / "ca.crt"
    silent, rude = Answers(lambda s: None), Answers(lambda s: s.sendall(b"SSH-2.0\r\n"))
    assert check(silent.port, silent.port, authority, deadline_s=1).state == "hung"
    # Bytes that never make an answer, each of them in time: the one deadline is of the whole look.
    slow = Answers(trickling(authority.parent))
    told = check(slow.port, free_port(), authority, deadline_s=1)
    assert (told.state, told.detail) == ("hung", "HTTP: no answer in 1 s")
    # The gRPC side is there no more while the HTTP side hangs: still a server that is stuck, not one that is gone.
    assert check(silent.port, free_port(), authority, deadline_s=1).state == "hung"
    told = check(rude.port, rude.port, authority, deadline_s=1)
    assert not told.alive and told.state == "hung"
    assert check(free_port(), free_port(), authority, deadline_s=1).state == "down"
