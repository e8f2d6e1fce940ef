"""A site's own key: private from its first byte, never made twice, and its request gives the public half alone."""

from __future__ import annotations

import os
import stat

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.primitives.asymmetric import uses_nist_ec_curve
from typer.testing import CliRunner

from client.cli import app
from client.request import request
from configs.kits import KitError, key_fingerprint, write_private


def test_the_key_is_one_that_flower_takes_and_the_request_is_signed_by_it(tmp_path):
    path, fingerprint = request("north", tmp_path)
    key = serialization.load_ssh_private_key((tmp_path / "node.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey) and uses_nist_ec_curve(key.public_key())
    asked = x509.load_pem_x509_csr(path.read_bytes())
    assert asked.is_signature_valid and asked.public_key() == key.public_key()
    assert asked.subject.rfc4514_string() == "CN=north"
    assert fingerprint == key_fingerprint(key.public_key()) and len(fingerprint.split(":")) == 32
    assert b"PRIVATE" not in path.read_bytes()


def test_the_key_is_private_whatever_the_umask_and_never_made_over(tmp_path):
    before = os.umask(0)
    try:
        request("north", tmp_path)
    finally:
        os.umask(before)
    key = tmp_path / "node.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    first = key.read_bytes()
    with pytest.raises(KitError, match="not overwritten"):
        request("north", tmp_path)
    assert key.read_bytes() == first
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "target")
    with pytest.raises(KitError, match="is there already"):
        write_private(link, b"secret")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("name", ["", "North", "a/b", "-x", "x-", "a b", "x" * 33])
def test_a_name_that_no_site_can_have_makes_no_key(tmp_path, name):
    with pytest.raises(KitError, match="is not the name of a site"):
        request(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_prints_the_fingerprint_and_never_the_key(tmp_path):
    done = CliRunner().invoke(app, ["request", "north", "-o", str(tmp_path)])
    assert done.exit_code == 0
    secret = (tmp_path / "node.key").read_text().splitlines()[1]
    assert secret not in done.output and "north.csr" in done.output
    again = CliRunner().invoke(app, ["request", "north", "-o", str(tmp_path)])
    assert again.exit_code == 2 and again.output.count("\n") == 1 and "not overwritten" in again.output
    nowhere = CliRunner().invoke(app, ["request", "north", "-o", str(tmp_path / "none")])
    assert nowhere.exit_code == 2 and "is not a folder" in nowhere.output
