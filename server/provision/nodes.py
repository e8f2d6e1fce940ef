"""Admission of sites: a request signed into a certificate, and the SuperLink's register kept equal to valid certificates.

Flower knows a node by its public key alone and asks for no certificate. So expiry and revocation take effect here: `admit`
registers the keys whose certificates hold and unregisters every other node. It runs on the server, hourly, by a timer.
"""

from __future__ import annotations

import datetime as dt
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from configs.kits import AUTHORITY, NODES, REVOKED, KitError, common_name, key_fingerprint, read_certificate
from server.flower import KIT_NAME, FlowerError, SuperLink
from server.provision.authority import utc_now

_LAPSED = "refused: this key was shut out before and Flower takes none back, so the site makes a new one (medmap-client request)"


def read_request(path: Path) -> tuple[str, ec.EllipticCurvePublicKey]:
    """(name, public key) of a site's request, whose own signature shows that the site has the private key. Raises KitError."""
    try:
        asked = x509.load_pem_x509_csr(path.read_bytes())
    except OSError as error:
        raise KitError(f"{path} cannot be read ({error.strerror}): give the .csr that the site sent") from None
    except ValueError:
        raise KitError(f"{path} is no certificate request (PEM): ask for the .csr of `medmap-client request`") from None
    key = asked.public_key()
    if not asked.is_signature_valid:
        raise KitError(f"{path} is not signed by the key it is for: ask the site to send it again")
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise KitError(
            f"{path} is not for a P-384 key, which SuperNodes need: `medmap-client request` makes the right one"
        )
    return common_name(asked.subject), key


@dataclass(frozen=True)
class Admission:
    """Where one site stands: `admitted`, or why not."""

    site: str
    state: str
    until: dt.datetime
    key: ec.EllipticCurvePublicKey


def admissions(kit: Path, *, now: dt.datetime | None = None) -> list[Admission]:
    """Of every certificate in the server kit's nodes/: whether it admits its key. Raises KitError without authority or list."""
    authority = read_certificate(kit / AUTHORITY)
    try:
        crl = x509.load_pem_x509_crl((kit / NODES / REVOKED).read_bytes())
    except (OSError, ValueError):
        raise KitError(
            f"{kit / NODES / REVOKED} is no revocation list: copy nodes/ from the coordinator again"
        ) from None
    if not crl.is_signature_valid(authority.public_key()):  # type: ignore[arg-type]
        raise KitError(f"{kit / NODES / REVOKED} is not signed by this federation's authority: copy nodes/ again")
    found = []
    for path in sorted((kit / NODES).glob("*.crt")):
        certificate = read_certificate(path)
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        state = _state(certificate, authority, crl, now or utc_now())
        found.append(Admission(common_name(certificate.subject), state, certificate.not_valid_after_utc, key))
    return found


def _state(
    certificate: x509.Certificate, authority: x509.Certificate, crl: x509.CertificateRevocationList, now: dt.datetime
) -> str:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return "refused: not signed by this federation's authority"
    if crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
        return "refused: revoked"
    if certificate.not_valid_after_utc <= now:
        return "refused: expired"
    return "admitted"


def admit(kit: Path, flwr: Callable[..., dict], *, now: dt.datetime | None = None) -> list[Admission]:
    """Make the SuperLink's register say what the certificates say. `flwr(*arguments)` runs Flower's command line.

    Which node belongs to which key is kept in state/nodes.json, beside the SuperLink's database: Flower's list tells no keys. A
    key that was shut out once is not taken back by Flower 1.41; it is reported as refused. Raises KitError and FlowerError.
    """
    told = admissions(kit, now=now)
    wanted = {key_fingerprint(a.key): a for a in told if a.state == "admitted"}
    file = kit / "state" / "nodes.json"
    nodes = flwr("supernode", "list", KIT_NAME, "--format", "json")["nodes"]
    live = {str(n["node-id"]) for n in nodes if n["status"] not in ("unregistered", "deleted")}
    if live and not file.is_file():
        raise KitError(
            f"{file} is missing while the SuperLink knows {len(live)} nodes: restore it from the backup, or stop the SuperLink, "
            "move state/ away and start it again"
        )
    known: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    keep = {key: node for key, node in known.items() if key in wanted and node in live}
    for node in live - set(keep.values()):
        flwr("supernode", "unregister", node, KIT_NAME, "--format", "json")
    lapsed = set()
    for key in wanted.keys() - keep.keys():
        try:
            keep[key] = _register(wanted[key], flwr)
        except FlowerError as error:
            if "already in use" not in str(error):
                raise
            lapsed.add(key)
        _remember(file, keep)
    _remember(file, keep)
    return [replace(a, state=_LAPSED) if key_fingerprint(a.key) in lapsed else a for a in told]


def enforce(kit: Path) -> list[str]:
    """`admit` by the SuperLink of the kit; a line for each site. Raises KitError."""
    try:
        told = admit(kit, SuperLink.of_kit(kit).flwr)
    except FlowerError as error:
        raise KitError(f"{error}: is the SuperLink of {kit} running?") from None
    lines = [f"{a.site:<32} {a.state}, certificate until {a.until:%Y-%m-%d}" for a in told]
    return lines or [f"{kit / NODES} holds no certificate yet: nobody is admitted"]


def _remember(file: Path, nodes: dict[str, str]) -> None:
    file.parent.mkdir(exist_ok=True)
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(nodes, indent=1) + "\n", encoding="utf-8")
    part.replace(file)


def _register(site: Admission, flwr: Callable[..., dict]) -> str:
    with tempfile.NamedTemporaryFile(suffix=".pub") as file:
        file.write(site.key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
        file.flush()
        told = flwr("supernode", "register", file.name, KIT_NAME, "--name", site.site, "--format", "json")
    return str(told["node-id"])
