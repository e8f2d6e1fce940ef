"""Provisioning: what is in a kit and what is not, who is admitted, and that a mistake is one sentence."""

from __future__ import annotations

import datetime as dt
import re
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from typer.testing import CliRunner

from client.request import request
from client.verify import verify
from configs.kits import KitError, key_fingerprint, read_certificate
from configs.setting import ConfigError
from server.cli import app
from server.flower import FlowerError
from server.provision.authority import Authority, utc_now
from server.provision.nodes import admissions, admit
from tests.server.provisioned import Coordinator, write_plan


@pytest.fixture
def coordinator(tmp_path) -> Coordinator:
    write_plan(tmp_path)
    return Coordinator(tmp_path).provisioned()


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_every_private_key_is_for_its_owner_alone_and_in_its_own_kit_alone(coordinator):
    keys = {}
    for path in coordinator.folder.rglob("*"):
        if path.is_file() and b"PRIVATE KEY" in path.read_bytes():
            keys[str(path.relative_to(coordinator.folder))] = stat.S_IMODE(path.stat().st_mode)
    assert set(keys) == {
        "authority/ca.key", "authority/server.key", "authority/sites/south.key", "kits/server/server.key", "kits/south/node.key"
    }  # fmt: skip
    assert set(keys.values()) == {0o600}
    assert stat.S_IMODE((coordinator.kits / "south.tar.gz").stat().st_mode) == 0o600
    with tarfile.open(coordinator.kits / "south.tar.gz") as archive:
        modes = {m.name: m.mode for m in archive.getmembers()}
    assert modes["brain-south/node.key"] == 0o600 and modes["brain-south/start.sh"] == 0o755


def test_a_site_that_makes_its_own_key_gets_a_kit_without_a_secret_and_sends_none(coordinator):
    assert not [n for n, data in files(coordinator.kits / "north").items() if b"PRIVATE" in data]
    kit = coordinator.admitted()
    own = serialization.load_ssh_private_key((kit / "node.key").read_bytes(), None).public_key()
    signed = read_certificate(coordinator.kits / "server" / "nodes" / "north.crt")
    assert signed.public_key() == own
    secret = (kit / "node.key").read_bytes()
    assert not [
        p for p in coordinator.folder.rglob("*") if p.is_file() and p.name != "node.key" and secret in p.read_bytes()
    ]


def test_the_same_plan_and_authority_give_the_same_kits_byte_for_byte(coordinator, tmp_path):
    again = Coordinator(tmp_path)
    again.kits = tmp_path / "again"
    again.provisioned()
    assert files(again.kits) == files(coordinator.kits)
    other = Coordinator(tmp_path)
    other.kits, other.authority = tmp_path / "other", tmp_path / "other-authority"
    other.provisioned()
    assert files(other.kits) != files(coordinator.kits)


def test_no_kit_is_overwritten_and_a_site_can_be_added_later(coordinator):
    before = files(coordinator.kits)
    assert "not overwritten" in coordinator.run("provision", coordinator.plan, fails=True)
    assert files(coordinator.kits) == before
    coordinator.plan.write_text(coordinator.plan.read_text() + "  - name: west\n    key: coordinator\n")
    coordinator.run("provision", coordinator.plan, "--only", "west")
    added = {"server/nodes/west.crt", "west.tar.gz"} | {f"west/{n}" for n in files(coordinator.kits / "west")}
    assert set(files(coordinator.kits)) == set(before) | added
    assert all(files(coordinator.kits)[name] == data for name, data in before.items())
    assert "no site 'east'" in coordinator.run("provision", coordinator.plan, "--only", "east", fails=True)


def test_a_kit_as_sealed_is_verified_and_openssl_agrees(coordinator):
    for name in ("server", "north", "south"):
        kit = coordinator.kits / name
        shown = verify(kit).fingerprint
        assert verify(kit, fingerprint=shown.lower().replace(":", " ")).warnings == []
        with pytest.raises(KitError, match="not the one you gave"):
            verify(kit, fingerprint=shown[:-2] + ("00" if shown[-2:] != "00" else "01"))
        if shutil.which("openssl") and shutil.which("sha256sum"):
            readme = (kit if name != "server" else coordinator.kits / "north") / "README.md"
            steps = readme.read_text().split("```")[1]
            done = subprocess.run(
                ["bash", "-c", steps], cwd=kit, capture_output=True, text=True, timeout=30, check=True
            )
            first, second = done.stdout.splitlines()
            assert first == "Verified OK" and second.endswith(shown) and not done.stderr


def test_a_changed_file_a_missing_file_and_a_forged_seal_are_noticed(coordinator):
    kit = coordinator.kits / "south"
    for name in sorted(files(kit)):
        if name in ("node.key", "node.crt"):
            continue  # not sealed: they prove each other
        whole = (kit / name).read_bytes()
        (kit / name).write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        with pytest.raises(KitError):
            verify(kit)
        (kit / name).unlink()
        with pytest.raises(KitError):
            verify(kit)
        (kit / name).write_bytes(whole)
    verify(kit)
    forger = Authority.create(coordinator.folder / "forger", "brain", days=10)
    (kit / "start.sh").write_text("#!/bin/sh\n")
    line = subprocess.run(["sha256sum", "start.sh"], cwd=kit, capture_output=True, text=True, check=True).stdout
    lines = [line if x.endswith("  start.sh\n") else x for x in (kit / "MANIFEST").read_text().splitlines(True)]
    (kit / "MANIFEST").write_text("".join(lines))
    (kit / "MANIFEST.sig").write_bytes(forger.sign((kit / "MANIFEST").read_bytes()))
    with pytest.raises(KitError, match="not what the authority signed"):
        verify(kit)


def test_keys_and_certificates_of_a_kit_must_fit_be_private_and_hold(coordinator):
    kit = coordinator.admitted()
    verify(kit)  # a site without its certificate yet is no problem
    shutil.copy(coordinator.kits / "south" / "node.crt", kit)
    with pytest.raises(KitError, match="is for another key"):
        verify(kit)
    shutil.copy(coordinator.authority / "sites" / "north.crt", kit / "node.crt")
    assert verify(kit).warnings == []
    ends = read_certificate(kit / "node.crt").not_valid_after_utc
    assert "expires in 9 days" in verify(kit, now=ends - dt.timedelta(days=9, hours=1)).warnings[0]
    with pytest.raises(KitError, match=r"node\.crt expired on"):
        verify(kit, now=ends)
    with pytest.raises(KitError, match="clock"):
        verify(kit, now=utc_now() - dt.timedelta(days=2))
    (kit / "node.key").chmod(0o640)
    with pytest.raises(KitError, match="read by others"):
        verify(kit)
    shown = (kit / "node.key").read_bytes()
    (kit / "node.key").write_bytes(b"")
    (kit / "node.key").chmod(0)  # as systemd shows it to the worker, which must start without it
    assert verify(kit).warnings == []
    (kit / "node.key").chmod(0o600)
    (kit / "node.key").write_bytes(shown)
    (kit / "site.yaml").write_text("manifest: m.csv\nprivcy: {}\n")
    with pytest.raises(ConfigError, match=r"site\.yaml, line 2: `privcy` is not a setting, did you mean `privacy`"):
        verify(kit)
    stranger = Authority.create(coordinator.folder / "stranger", "brain", days=10)
    key = serialization.load_ssh_private_key((kit / "node.key").read_bytes(), None).public_key()
    (kit / "node.crt").write_bytes(stranger.admit("north", key, days=5).public_bytes(serialization.Encoding.PEM))
    with pytest.raises(KitError, match="not signed by this federation"):
        verify(kit)


def test_a_second_key_of_a_site_is_signed_only_after_the_first_is_revoked(coordinator):
    kit = coordinator.admitted()
    (kit / "node.key").rename(kit / "old.key")
    path, fingerprint = request("north", kit)
    assert "another key until" in coordinator.run("sign", path, fails=True)
    assert "2 certificates" not in coordinator.run("revoke", "north")
    assert "do not sign" in coordinator.run("sign", path, "--fingerprint", "00:11", fails=True)
    assert fingerprint in coordinator.run("sign", path, "--fingerprint", fingerprint)
    states = {a.site: a.state for a in admissions(coordinator.kits / "server")}
    assert states == {"north": "admitted", "south": "admitted"}


def test_what_is_no_request_or_of_no_site_is_refused(coordinator, tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    path, _ = request("east", folder)
    assert "no site 'east'" in coordinator.run("sign", path, fails=True)
    assert "cannot be read" in coordinator.run("sign", tmp_path / "none.csr", fails=True)
    path.write_text("hello")
    assert "no certificate request" in coordinator.run("sign", path, fails=True)
    assert "no certificate authority" in CliRunner().invoke(app, ["revoke", "x", "-a", str(folder)]).output
    assert "no certificate of 'west'" in coordinator.run("revoke", "west", fails=True)
    assert "read no revocation list" in coordinator.run("revoke", "server", fails=True)
    assert "no certificate yet" in coordinator.run("renew", "north", fails=True)


def test_renewal_keeps_the_key_and_ends_later_and_what_ended_needs_a_new_key(coordinator):
    kit = coordinator.admitted()
    before = Authority(coordinator.authority).site("north")
    coordinator.run("renew", "north", "--days", "800")
    after = Authority(coordinator.authority).site("north")
    assert after.public_key() == before.public_key() and after.not_valid_after_utc > before.not_valid_after_utc
    assert (coordinator.kits / "server" / "nodes" / "north.crt").read_bytes() == after.public_bytes(
        serialization.Encoding.PEM
    )
    key = (coordinator.kits / "server" / "server.key").read_bytes()
    coordinator.run("renew", "server", "--days", "3")
    assert "expires in 2 days" in verify(coordinator.kits / "server").warnings[0]
    assert (coordinator.kits / "server" / "server.key").read_bytes() == key
    coordinator.run("revoke", "north")
    assert "needs a new one" in coordinator.run("renew", "north", fails=True)
    verify(kit)


class Register:
    """Flower's register of nodes as its command line shows it: a key that was taken out is never taken again."""

    def __init__(self) -> None:
        self.nodes: dict[str, str] = {}
        self.keys: set[bytes] = set()

    def __call__(self, *arguments: str) -> dict:
        if arguments[1] == "list":
            return {"nodes": [{"node-id": n, "status": s} for n, s in self.nodes.items()]}
        if arguments[1] == "unregister":
            self.nodes[arguments[2]] = "unregistered"
            return {}
        key = Path(arguments[2]).read_bytes()
        if key in self.keys:
            raise FlowerError("flwr supernode: [code: 23] Public key already in use.")
        self.keys.add(key)
        self.nodes[str(len(self.nodes))] = "registered"
        return {"node-id": str(len(self.nodes) - 1)}

    def live(self) -> int:
        return sum(s != "unregistered" for s in self.nodes.values())


def test_the_register_follows_certificates_expiry_and_revocation(coordinator):
    coordinator.admitted()
    server, register = coordinator.kits / "server", Register()
    told = admit(server, register)
    assert {a.site: a.state for a in told} == {"north": "admitted", "south": "admitted"} and register.live() == 2
    admit(server, register)
    assert len(register.nodes) == 2  # again: nothing new
    register("supernode", "register", str(server / "README.md"))  # a stranger, by the open Control API
    admit(server, register)
    assert register.live() == 2
    coordinator.run("revoke", "south")
    told = admit(server, register)
    assert {a.site: a.state for a in told} == {
        "north": "admitted",
        "south": "refused: revoked",
    } and register.live() == 1
    later = utc_now() + dt.timedelta(days=366)
    assert admit(server, register, now=later)[0].state == "refused: expired" and register.live() == 0
    assert "shut out before" in admit(server, register)[0].state
    (server / "state" / "nodes.json").unlink()
    register("supernode", "register", str(server / "start.sh"))
    with pytest.raises(KitError, match=r"nodes\.json is missing while the SuperLink knows 1"):
        admit(server, register)


def test_a_certificate_of_another_authority_admits_nobody_and_a_forged_list_is_refused(coordinator):
    server, stranger = coordinator.kits / "server", Authority.create(coordinator.folder / "stranger", "brain", days=10)
    key = stranger.site_key("north").public_key()
    forged = stranger.admit("north", key, days=5).public_bytes(serialization.Encoding.PEM)
    (server / "nodes" / "north.crt").write_bytes(forged)
    states = {key_fingerprint(a.key): a.state for a in admissions(server)}
    assert "not signed" in states[key_fingerprint(key)]
    shutil.copy(stranger.folder / "revoked.crl", server / "nodes")
    with pytest.raises(KitError, match="not signed by this federation"):
        admissions(server)


def test_a_wheel_beside_the_plan_travels_in_the_kits(tmp_path):
    plan = write_plan(tmp_path)
    plan.write_text(plan.read_text().replace("medmap-fl==0.1.0", "medmap_fl-0.1.0-py3-none-any.whl"))
    (tmp_path / "medmap_fl-0.1.0-py3-none-any.whl").write_bytes(b"wheel")
    kits = Coordinator(tmp_path).provisioned().kits
    assert (kits / "north" / "medmap_fl-0.1.0-py3-none-any.whl").read_bytes() == b"wheel"
    assert '"./medmap_fl-0.1.0-py3-none-any.whl"' in (kits / "north" / "install.sh").read_text()
    verify(kits / "north")


def test_every_placeholder_of_a_template_is_filled_and_every_script_parses(coordinator):
    scripts = list(coordinator.kits.rglob("*.sh"))
    assert len(scripts) > 15
    for path in [*scripts, *coordinator.kits.rglob("*.service"), *coordinator.kits.rglob("README.md")]:
        assert not re.search(r"(?<![\w.])@[a-z_]+@", path.read_text()), path
    subprocess.run(
        ["bash", "-c", 'for f in "$@"; do bash -n "$f" || exit 1; done', "-", *scripts], check=True, timeout=30
    )
