"""A kit's scripts, units and nginx configuration, without a server."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.server.hosts import Host, processes_of
from tests.server.provisioned import Coordinator, write_plan

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kits' scripts read /proc")


def test_a_kit_that_was_tampered_with_does_not_start(tmp_path):
    write_plan(tmp_path)
    kit = Coordinator(tmp_path).provisioned().kits / "south"
    (kit / "common.sh").write_text((kit / "common.sh").read_text() + "touch ran\n")
    refused = Host(kit, 0).ready().run("start.sh")
    assert refused.returncode == 2 and "common.sh was changed since the kit was made" in refused.stderr
    assert processes_of(kit) == [] and not (kit / "ran").exists(), "not a line of it has run"


STAND_IN = """\
#!/usr/bin/env bash
[ "${1:-}" = verify ] && exit 0
left=
trap 'echo TERM >>"$0.told"; left=20' TERM
echo "SuperNode ID"
while [ ! -f "$0.end" ] && [ "$left" != 0 ]; do sleep 0.05; [ -z "$left" ] || left=$((left - 1)); done
"""


@pytest.mark.parametrize("way", ["stop.sh", "a signal", "the gate ends"])
def test_gate_and_worker_end_together_and_each_is_told_once(tmp_path, way):
    """The scripts alone, with stand-ins for the two programs: told twice, Flower would not take its leave of the server."""
    write_plan(tmp_path)
    kit = Coordinator(tmp_path).provisioned().kits / "south"
    (kit / ".venv" / "bin").mkdir(parents=True)
    gate, worker = kit / ".venv" / "bin" / "medmap-client", kit / ".venv" / "bin" / "flower-superexec"
    for program in (gate, worker):
        program.write_text(STAND_IN)
        program.chmod(0o755)
    site = Host(kit, 0).ready()
    (kit / "flower" / "apps" / "lab.tiny.1.0.0.84f812c7").mkdir(parents=True)
    if way == "stop.sh":
        assert site.run("start.sh").returncode == 0 and site.run("stop.sh").stdout == "stopped\n"
    else:
        process = subprocess.Popen([kit / "start.sh", "--foreground"], env=site.env, stdout=subprocess.PIPE, text=True)
        assert process.stdout and process.stdout.readline() == "SuperNode ID\n"
        while not (kit / "worker.log").exists() or "SuperNode" not in (kit / "worker.log").read_text():
            time.sleep(0.05)
        if way == "a signal":
            process.terminate()
        else:
            Path(f"{gate}.end").touch()
        process.wait(timeout=20)
    told = [Path(f"{p}.told").read_text() if Path(f"{p}.told").exists() else "" for p in (gate, worker)]
    assert told == (["TERM\n"] * 2 if way != "the gate ends" else ["", "TERM\n"])
    assert processes_of(kit) == []
    assert not (kit / "flower" / "apps").exists(), (
        "Flower would run what lies there without comparing it with the bundle"
    )


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path):
    write_plan(tmp_path)
    kits, units = Coordinator(tmp_path).provisioned().kits, tmp_path / "units"
    units.mkdir()
    for kit in ("server", "north"):
        for unit in (kits / kit / "systemd").iterdir():
            host = Host(kits / kit, 0)
            done = subprocess.run([host.kit / "service.sh", unit.name], capture_output=True, text=True, check=True)
            assert "KIT_" not in done.stdout and (unit.suffix == ".timer" or str(host.kit) in done.stdout)
            nginx = Path("/usr/sbin/nginx")
            text = done.stdout if nginx.exists() else done.stdout.replace(str(nginx), "/bin/true")
            (units / unit.name).write_text(text)
    checked = subprocess.run(
        ["systemd-analyze", "verify", *units.iterdir()], capture_output=True, text=True, timeout=60, check=False
    )
    mine = [line for line in checked.stderr.splitlines() if "medmap" in line]
    assert checked.returncode == 0 and not mine, checked.stderr


def test_what_the_unit_of_the_worker_names_is_what_the_start_script_makes(tmp_path):
    """A path that is not there when systemd starts the worker stays open to it; so none has a minus but the key and others' paths."""
    write_plan(tmp_path)
    kit = Coordinator(tmp_path).provisioned().kits / "north"
    unit = (kit / "systemd" / "medmap-site-worker.service").read_text()
    named = {p for p in re.findall(r"(?<=[= ])-?KIT_FOLDER/\S+", unit) if not p.endswith("start.sh")}
    (made,) = re.findall(r"^mkdir -p -m 700 ([\w ]+\w)", (kit / "start.sh").read_text(), re.M)
    assert named == {"-KIT_FOLDER/node.key", *(f"KIT_FOLDER/{name}" for name in made.split())}
    assert "ReadOnlyPaths=KIT_FOLDER\n" in unit, (
        "by folder: a file that is replaced in another namespace loses its mount"
    )


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
