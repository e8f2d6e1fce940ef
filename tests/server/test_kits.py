"""Kits at work on this machine: a real SuperLink over TLS from the server kit's script, real SuperNodes from site kits' scripts."""

from __future__ import annotations

import datetime as dt
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.provision.authority import Authority, utc_now
from tests.server.provisioned import Coordinator, write_plan

BIN = Path(sys.executable).parent
PROGRAMS = (b"flower-superlink", b"flower-supernode", b"flower-superexec", b"nginx")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kits' scripts read /proc")


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


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory, port) -> Iterator[Coordinator]:
    """A provisioned federation with north's own key signed, and its server running; everything is stopped at the end."""
    folder = tmp_path_factory.mktemp("federation")
    write_plan(folder, superlink_port=port)
    made = Coordinator(folder).provisioned()
    made.admitted()
    server = Host(made.kits / "server", port)
    try:
        begun = server.run("start.sh")
        assert begun.returncode == 0, begun.stdout + begun.stderr
        assert "north " in begun.stdout and begun.stdout.count("admitted") == 2
        yield made
    finally:
        for kit in folder.glob("**/stop.sh"):
            Host(kit.parent, port).run("stop.sh")
    assert processes_of(folder) == []


def nodes(coordinator: Coordinator) -> list[str]:
    """The status of each node that the SuperLink knows."""
    server = Host(coordinator.kits / "server", 0)
    done = subprocess.run(
        [server.kit / "flwr.sh", "supernode", "list", "medmap", "--format", "json"],
        env=server.env, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return re.findall(r'"status": "(\w+)"', done.stdout)


@pytest.mark.slow
def test_a_site_with_a_registered_key_joins_and_leaves_by_its_scripts(coordinator, port):
    site = Host(coordinator.kits / "north", port)
    assert "there is no site.yaml yet" in site.run("start.sh").stderr
    begun = site.ready().run("start.sh")
    assert begun.returncode == 0 and "joined as north" in begun.stdout, begun.stdout + begun.stderr
    assert "online" in nodes(coordinator)
    again = site.run("start.sh")
    assert again.returncode == 1 and "it runs already" in again.stderr
    assert site.run("stop.sh").stdout == "stopped\n" and processes_of(site.kit) == []
    assert site.run("stop.sh").stdout == "it does not run\n"
    log = (site.kit / "node.log").read_text()
    assert "PRIVATE" not in log and (site.kit / "node.key").read_text().splitlines()[1] not in log
    assert (site.kit / "node.log").stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_a_key_that_is_not_registered_is_refused(coordinator, port, tmp_path):
    kit = tmp_path / "stranger"
    shutil.copytree(coordinator.kits / "south", kit)
    for name in ("node.key", "node.crt"):
        (kit / name).unlink()
    site = Host(kit, port).ready()
    assert "there is no node.key yet: medmap-client request south" in site.run("start.sh").stderr
    subprocess.run([BIN / "medmap-client", "request", "south", "-o", kit], capture_output=True, timeout=60, check=True)
    refused = site.run("start.sh")
    assert refused.returncode == 1 and "[code: 2004] Failed to activate SuperNode" in refused.stderr
    assert processes_of(kit) == [] and not (kit / "kit.pid").exists()


@pytest.mark.slow
def test_a_server_of_another_authority_is_refused(coordinator, port, tmp_path):
    write_plan(tmp_path, superlink_port=port)
    other = Coordinator(tmp_path).provisioned()
    refused = Host(other.kits / "south", port).ready().run("start.sh")
    assert refused.returncode == 1 and "CERTIFICATE_VERIFY_FAILED" in refused.stderr
    assert processes_of(tmp_path) == []


@pytest.mark.slow
def test_an_expired_server_certificate_is_refused_by_sites_and_by_the_servers_own_start(coordinator, port, tmp_path):
    kit = tmp_path / "server"
    shutil.copytree(
        coordinator.kits / "server", kit, ignore=shutil.ignore_patterns("state", "flower", "kit.pid", "*.log")
    )
    authority = Authority(shutil.copytree(coordinator.authority, tmp_path / "authority"))
    authority.server("localhost", days=1, now=utc_now() - dt.timedelta(days=3))
    shutil.copy(tmp_path / "authority" / "server.crt", kit)
    expired = Host(kit, port)
    expired.env["SUPERLINK_PORT"] = str(other := free_port())
    assert "server.crt expired on" in expired.run("start.sh").stderr
    start = (kit / "start.sh").read_text()
    (kit / "start.sh").write_text(start.replace("medmap-client verify .\n", "").replace("./admit.sh\n", ""))
    try:
        assert expired.run("start.sh").returncode == 0
        site = Host(coordinator.kits / "south", other).ready()
        refused = site.run("start.sh")
        assert refused.returncode == 1 and "certificate has expired" in refused.stderr
    finally:
        expired.run("stop.sh")
    assert processes_of(tmp_path) == [] and processes_of(site.kit) == []


@pytest.mark.slow
def test_a_revoked_site_is_put_out_while_it_is_online_and_does_not_come_back(coordinator, port):
    site = Host(coordinator.kits / "south", port).ready()
    begun = site.run("start.sh")
    assert begun.returncode == 0, begun.stderr
    coordinator.run("revoke", "south")
    told = Host(coordinator.kits / "server", port).run("admit.sh").stdout
    assert re.search(r"south +refused: revoked", told) and re.search(r"north +admitted", told)
    back = site.run("stop.sh")
    assert back.returncode == 0
    refused = site.run("start.sh")
    assert refused.returncode == 1 and "[code: 2004]" in refused.stderr
    assert nodes(coordinator).count("unregistered") == 1


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_finds_nothing_wrong_with_the_units(coordinator, tmp_path):
    for kit in ("server", "north"):
        for unit in (coordinator.kits / kit / "systemd").iterdir():
            host = Host(coordinator.kits / kit, 0)
            done = subprocess.run([host.kit / "service.sh", unit.name], capture_output=True, text=True, check=True)
            assert "KIT_" not in done.stdout and (unit.suffix == ".timer" or str(host.kit) in done.stdout)
            nginx = Path("/usr/sbin/nginx")
            text = done.stdout if nginx.exists() else done.stdout.replace(str(nginx), "/bin/true")
            (tmp_path / unit.name).write_text(text)
    checked = subprocess.run(
        ["systemd-analyze", "verify", *tmp_path.iterdir()], capture_output=True, text=True, timeout=60, check=False
    )
    mine = [line for line in checked.stderr.splitlines() if "medmap" in line]
    assert checked.returncode == 0 and not mine, checked.stderr


def locations(text: str) -> dict[str, list[str]]:
    """The location blocks of an nginx configuration by what they match; checks braces and semicolons on the way."""
    plain = re.sub(r"#.*", "", text)
    found: dict[str, list[str]] = {}
    stack: list[str] = []
    for statement, end in re.findall(r"([^{};]*)([{};])", plain):
        words = " ".join(statement.split())
        assert (end == "}") == (not words), f"'{words}' before '{end}'"
        if end == "{":
            stack.append(words)
        elif end == "}":
            stack.pop()
        elif stack and stack[-1].startswith("location"):
            found.setdefault(stack[-1].removeprefix("location "), []).append(words)
    assert not stack and not re.sub(r"[^{};]*[{};]", "", plain).strip()
    return found


def test_the_nginx_configuration_passes_the_fleet_api_and_nothing_else(tmp_path):
    write_plan(tmp_path)
    text = (Coordinator(tmp_path).provisioned().kits / "server" / "nginx.conf").read_text()
    blocks = locations(text)
    assert set(blocks) == {"/v1/fleet/", "= /v1/fleet/register-node", "/"}
    assert blocks["/"] == ["return 403"] == blocks["= /v1/fleet/register-node"]
    assert "proxy_pass https://127.0.0.1:18443/v1/fleet/" in blocks["/v1/fleet/"]
    assert "proxy_ssl_verify on" in blocks["/v1/fleet/"] and text.count("proxy_pass https") == 1
    with pytest.raises(AssertionError):
        locations(text.replace("return 403;", "return 403", 1))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nginx"), reason="nginx is not installed")
def test_through_a_real_nginx_sites_join_and_the_control_api_is_shut(coordinator, port):
    server, door = Host(coordinator.kits / "server", port), free_port()
    conf = server.kit / "here.conf"
    conf.write_text((server.kit / "nginx.conf").read_text().replace("listen 9443", f"listen 127.0.0.1:{door}"))
    (server.kit / "nginx-tmp").mkdir()
    command = ["nginx", "-p", str(server.kit), "-c", str(conf)]
    subprocess.run(command, env=server.env, capture_output=True, timeout=30, check=True)
    try:
        trust = ssl.create_default_context(cafile=str(server.kit / "ca.crt"))
        for path in (
            "/v1/control/list-runs", "/openapi.json", "/docs", "/", "/v1/fleet/register-node", "/v1/fleet/../control/list-runs",
            "/v1/fleet/%2e%2e/control/list-runs", "//v1/control/list-runs", "/v1/fleet/..%2fcontrol/list-runs", "/v1/fleet//register-node",
        ):  # fmt: skip
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"https://localhost:{door}{path}", data=b"", context=trust, timeout=20)
            assert refused.value.code == 403, path
        # A piece of a model, as large as Flower sends: nginx passes it, and the SuperLink refuses it as nobody signed it.
        piece = urllib.request.Request(f"https://localhost:{door}/v1/fleet/push-object", data=bytes(5 << 20))
        with pytest.raises(urllib.error.HTTPError) as unsigned:
            urllib.request.urlopen(piece, context=trust, timeout=20)
        assert 400 <= unsigned.value.code < 500 and unsigned.value.code != 413 and b"nginx" not in unsigned.value.read()
        site = Host(coordinator.kits / "north", door).ready()
        begun = site.run("start.sh")
        assert begun.returncode == 0, begun.stdout + begun.stderr
        site.run("stop.sh")
    finally:
        subprocess.run([*command, "-s", "stop"], env=server.env, capture_output=True, timeout=30, check=True)
