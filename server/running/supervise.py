"""The SuperLink of a server kit, started, admitted to, and watched for as long as it runs.

systemd's part (Type=notify, WatchdogSec=): READY=1 when the server serves, WATCHDOG=1 only as long as it answers, however
slowly. A server that hangs is told of no more, and systemd ends and starts it again.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from configs.kits import AUTHORITY, SERVER_CERTIFICATE, SERVER_KEY, KitError
from server import health
from server.flower import KIT_NAME
from server.provision.authority import utc_now
from server.provision.nodes import enforce
from server.running import store
from server.running.kit import UP, Up, superlink_port
from server.running.lock import FolderBusy, working_in

_START_S, _END_S = 120.0, 20.0
_BUSY_S = 5.0  # how long a start waits for the SuperLink of an `up` that was killed
_WATCH_S = 20.0  # between two looks, where systemd asks for none more often
Tell = Callable[[str], None]


class Ended(Exception):
    """SIGTERM or SIGINT: the server is to end."""


def up(kit: Path, *, nginx: bool = False, tell: Tell = print) -> int:
    """Start the SuperLink of `kit`, and nginx in front of it if asked; watch it until it ends. The exit code.

    0: ended by SIGTERM or SIGINT. 1: the SuperLink ended by itself. Raises KitError where it cannot be started, such as
    beside another server of this kit: two SuperLinks in one database would spoil it, whatever their ports.
    """
    kit = kit.absolute()
    os.umask(0o077)
    port = superlink_port(kit)
    try:
        with working_in(kit / "state", wait_s=_BUSY_S) as lock:
            return _up(kit, port, lock, nginx=nginx, tell=tell)
    except FolderBusy:
        raise KitError(
            f"another server of {kit} works on its database: see `medmap-server status {kit}`, end it with ./stop.sh there"
        ) from None


def _up(kit: Path, port: int, lock: int, *, nginx: bool, tell: Tell) -> int:
    """lock: on the kit's state, handed to the SuperLink, which may outlive this process by seconds."""
    if _taken(port):
        raise KitError(f"port {port} is taken by another program: end it (`ss -ltnp` names it)")
    health_port = _free_port()
    (kit / "flower").mkdir(exist_ok=True)
    _write_connection(kit, port)
    if (said := store.compact(kit / "state" / "state.db")) is not None:
        tell(said)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    started: list[subprocess.Popen[bytes]] = []
    try:
        superlink = _superlink(kit, port, health_port, lock)
        started.append(superlink)
        if nginx:
            (kit / "nginx-tmp").mkdir(exist_ok=True)
            command = ["nginx", "-p", str(kit), "-c", str(kit / "nginx.conf"), "-g", "daemon off;"]
            started.append(_start(command, kit, os.environ))
        mine = Up(os.getpid(), superlink.pid, port, health_port, utc_now().isoformat())
        (kit / UP).write_text(json.dumps(asdict(mine)) + "\n", encoding="utf-8")
        return _serve(kit, mine, started, tell=tell)
    except Ended:
        return 0
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # it is ending
        (kit / UP).unlink(missing_ok=True)
        for process in reversed(started):
            _stop(process)


def _serve(kit: Path, mine: Up, started: list[subprocess.Popen[bytes]], *, tell: Tell) -> int:
    superlink = started[0]
    end = time.monotonic() + _START_S
    while not (now := _look(kit, mine, deadline_s=5)).alive:
        if superlink.poll() is not None:
            tell(f"the SuperLink ended with exit code {superlink.returncode}: its last words are above")
            return 1
        if time.monotonic() > end:
            tell(f"the SuperLink does not serve after {_START_S:g} s ({now.state}: {now.detail})")
            return 1
        time.sleep(0.5)
    for line in enforce(kit):
        tell(line)
    tell(f"the server is up: SuperLink {superlink.pid} at 127.0.0.1:{mine.port}")
    notify("READY=1", f"STATUS=serving, SuperLink {superlink.pid}")
    return _watch(kit, mine, started, now, tell=tell)


def _watch(kit: Path, mine: Up, started: list[subprocess.Popen[bytes]], before: health.Health, *, tell: Tell) -> int:
    """Look until a process ends; tell of each change. While it hangs, the watchdog of systemd is given nothing."""
    every_s = min(_WATCH_S, float(os.environ.get("WATCHDOG_USEC") or 1e9) / 4e6)
    while True:
        now = _look(kit, mine, deadline_s=health.DEADLINE_S)
        if now.alive:
            notify("WATCHDOG=1", f"STATUS={now.state}, {now.detail}")
        if now.state != before.state:
            tell(f"the server: {now.state} ({now.detail})")
        before = now
        wake = time.monotonic() + every_s
        while time.monotonic() < wake:
            for process in started:
                if process.poll() is not None:
                    name = Path(str(process.args[0])).name  # type: ignore[index]
                    tell(f"{name} ended with exit code {process.returncode}: its last words are above")
                    return 1
            time.sleep(min(0.5, every_s))


def notify(*lines: str) -> None:
    """Tell systemd (sd_notify): one datagram to the socket that it named, if it did."""
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name:
        return
    address = "\0" + name[1:] if name.startswith("@") else name
    # Serve on where systemd is gone, or has not read what was sent before: a full socket would hold this process up.
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.setblocking(False)
        s.sendto("\n".join(lines).encode(), address)


def _look(kit: Path, mine: Up, *, deadline_s: float) -> health.Health:
    return health.check(mine.port, mine.health_port, kit / AUTHORITY, deadline_s=deadline_s)


def _superlink(kit: Path, port: int, health_port: int, lock: int) -> subprocess.Popen[bytes]:
    here = Path(sys.executable).parent
    command = [
        str(here / "flower-superlink"), "--host", "127.0.0.1", "--port", str(port), "--ssl-certfile", SERVER_CERTIFICATE,
        "--ssl-keyfile", SERVER_KEY, "--ssl-ca-certfile", AUTHORITY, "--enable-supernode-auth", "--database", "state/state.db",
        "--isolation", "subprocess", "--disable-runtime-dependency-installation",
        "--health-server-address", f"127.0.0.1:{health_port}",
    ]  # fmt: skip
    own = {
        "PATH": f"{here}:{os.environ['PATH']}",
        "FLWR_HOME": str(kit / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    # The watchdog is this process's affair: a SuperLink that wrote to it would speak for itself.
    kept = {k: v for k, v in os.environ.items() if k not in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")}
    return _start(command, kit, kept | own, keep=(lock,))


def _start(
    command: list[str], kit: Path, environment: Mapping[str, str], *, keep: Collection[int] = ()
) -> subprocess.Popen[bytes]:
    """A child that ends with this process, also where this one is killed: nobody would watch it any more.

    keep: descriptors that it gets.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def tie() -> None:
        if libc is not None:
            libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG

    return subprocess.Popen(
        command, cwd=kit, env=dict(environment), stdin=subprocess.DEVNULL, preexec_fn=tie, pass_fds=keep
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End it; by force where it does not answer, or is stopped."""
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _write_connection(kit: Path, port: int) -> None:
    text = (
        f'[superlink]\ndefault = "{KIT_NAME}"\n[superlink.{KIT_NAME}]\naddress = "127.0.0.1:{port}"\n'
        f"root-certificates = {json.dumps(str(kit / AUTHORITY))}\n"
    )
    (kit / "flower" / "config.toml").write_text(text, encoding="utf-8")


def _taken(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _end(number: int, frame: object) -> None:
    raise Ended
