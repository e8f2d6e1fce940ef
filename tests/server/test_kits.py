"""Kits at work on this machine: a real SuperLink over TLS from the server kit's script, real SuperNodes from site kits' scripts."""

from __future__ import annotations

import datetime as dt
import json
import re
import shutil
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

from configs.kits import key_fingerprint
from server.provision.authority import Authority, utc_now
from tests.server.hosts import BIN, Host, free_port, processes_of
from tests.server.provisioned import Coordinator, write_plan
from tests.server.tiny_app import APP

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kits' scripts read /proc")


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
    site.env["PASSWORD_OF_SOMETHING"] = "hush"
    begun = site.ready().run("start.sh")
    assert begun.returncode == 0 and "joined as north" in begun.stdout, begun.stdout + begun.stderr
    assert "online" in nodes(coordinator)
    assert "hush" in site.environment_of(b"medmap-client"), "or the next line shows nothing"
    worker = site.environment_of(b"flower-superexec")
    assert "hush" not in worker and "SUPERLINK" not in worker and "FLWR_HOME=" in worker
    again = site.run("start.sh")
    assert again.returncode == 1 and "it runs already" in again.stderr
    assert site.run("stop.sh").stdout == "stopped\n" and processes_of(site.kit) == []
    assert "online" not in nodes(coordinator), "it took its leave: it can come back at once"
    assert site.run("stop.sh").stdout == "it does not run\n"
    log = (site.kit / "node.log").read_text()
    assert "PRIVATE" not in log and (site.kit / "node.key").read_text().splitlines()[1] not in log
    assert "Starting Flower SuperExec" in (site.kit / "worker.log").read_text()
    for name in ("node.log", "worker.log", "worker.secret", "gate/audit.jsonl"):
        assert (site.kit / name).stat().st_mode & 0o077 == 0, name


@pytest.mark.slow
def test_an_app_runs_once_it_is_approved_and_what_may_not_leave_stays(coordinator, port, tmp_path):
    """One run of a small app: refused, approved without a restart, then a good answer, a forbidden one, and an exception."""
    (tmp_path / "app").mkdir()
    for name, text in APP.items():
        (tmp_path / "app" / name).write_text(text)
    site, server = Host(coordinator.kits / "north", port).ready(), Host(coordinator.kits / "server", port)
    assert site.run("start.sh").returncode == 0
    run = subprocess.Popen(
        [server.kit / "flwr.sh", "run", tmp_path / "app", "medmap", "--stream"],
        env=server.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        end = time.monotonic() + 180
        while "(bundle)" not in (log := (site.kit / "node.log").read_text()) and time.monotonic() < end:
            time.sleep(0.2)
        pending = list(site.kit.glob("gate/pending/*.fab"))
        assert pending and f"medmap-client approve -s {site.kit}/site.yaml {pending[0]}" in log, log
        subprocess.run(
            [BIN / "medmap-client", "approve", "--yes", pending[0]], cwd=site.kit, capture_output=True, check=True
        )
        said, _ = run.communicate(timeout=120)
    finally:
        run.kill()
        site.run("stop.sh")
    answers = re.findall(r"ANSWER (\w+) (.*)", said)
    assert answers[0][0] == "query" and "'code': 'bundle'" in answers[0][1], said
    last = dict(answers)
    assert "volumes" in last["query"] and "'code': 'egress'" in last["evaluate"], said
    assert "error 2 the site failed; its own log has the incident" in last["train"], said
    assert "4711" not in said and "4711" in (site.kit / "worker.log").read_text() + (site.kit / "node.log").read_text()
    audit = subprocess.run(
        [BIN / "medmap-client", "audit", site.kit / "gate" / "audit.jsonl"], capture_output=True, text=True, check=True
    ).stdout
    assert "refused: bundle" in audit and "refused: egress" in audit and "sent: error" in audit and "4711" not in audit


CLOCK = """\
#!{python}
import datetime as dt, time
import flwr.supernode.node_auth_http_interceptor as signing
now, real = signing.now, time.time
signing.now = lambda: now() + dt.timedelta(minutes={signs})
time.time = lambda: real() + 60 * {says}
from client.cli import main
main()
"""


@pytest.mark.slow
def test_a_site_whose_clock_is_ten_minutes_off_is_refused_and_told_why(coordinator, port, tmp_path):
    """The clock of the gate's process alone is wrong. says: at the check before the start; signs: of what Flower signs."""
    kit = tmp_path / "north"
    shutil.copytree(coordinator.kits / "north", kit, ignore=shutil.ignore_patterns("gate", "kit.pid", "*.log*"))
    (kit / ".venv" / "bin").mkdir(parents=True)
    program = kit / ".venv" / "bin" / "medmap-client"
    for says, signs, words in (
        (10, 10, "s ahead of the server's"), (0, 10, "SuperNode terminated gracefully"),
    ):  # fmt: skip
        program.write_text(CLOCK.format(python=sys.executable, says=says, signs=signs))
        program.chmod(0o755)
        refused = Host(kit, port).ready().run("start.sh")
        assert refused.returncode == 1 and words in refused.stderr and "joined" not in refused.stdout, refused.stderr
        assert words.split()[0] == "SuperNode" or "timedatectl" in refused.stderr
    assert "SuperNode ID" not in (kit / "node.log").read_text(), (
        "a clock that jumps after the check: the server refuses"
    )
    assert processes_of(kit) == []


@pytest.mark.slow
def test_a_captured_request_is_worth_nothing_when_its_minutes_are_over(coordinator, port):
    """A request of north's as it went over the wire, sent again by somebody who has not its key. At once Flower would take it: TLS
    is what keeps it from being seen; a task that came twice is the gate's matter (test_gate)."""
    key = serialization.load_ssh_private_key((coordinator.kits / "north" / "node.key").read_bytes(), None)
    trust = ssl.create_default_context(cafile=coordinator.kits / "north" / "ca.crt")
    codes, node = (
        [],
        json.loads((coordinator.kits / "server" / "state" / "nodes.json").read_text())[
            key_fingerprint(key.public_key())
        ],
    )
    asked = PullMessagesRequest(node=Node(node_id=int(node))).SerializeToString()
    for minutes in (0, -6):
        signed = (utc_now() + dt.timedelta(minutes=minutes)).isoformat()
        headers = {
            "flwr-public-key": b64encode(public_key_to_bytes(key.public_key())).decode(),
            "flwr-timestamp": signed,
            "flwr-signature": b64encode(sign_message(key, signed.encode())).decode(),
            "content-type": "application/protobuf",
        }
        url = f"https://localhost:{port}/v1/fleet/pull-messages"
        codes.append(httpx.post(url, headers=headers, content=asked, verify=trust, timeout=30).status_code)
    assert codes[0] != 401 and codes[1] == 401, codes


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
    # `medmap-server up` does not serve with it either: so the SuperLink alone.
    expired.env["PROGRAM"] = "flower-superlink"
    (kit / "start.sh").write_text(
        """#!/usr/bin/env bash
. "$(dirname "$(readlink -f "$0")")/common.sh"
mkdir -p state
background "Uvicorn running" superlink.log flower-superlink --port "$SUPERLINK_PORT" --ssl-certfile server.crt --ssl-keyfile server.key \\
  --ssl-ca-certfile ca.crt --enable-supernode-auth --database state/state.db
"""
    )
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
