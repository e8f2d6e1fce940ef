"""Is this kit as the coordinator's authority made it, and are its keys and certificates good? Every start asks that first."""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from configs.kits import (
    AUTHORITY,
    MANIFEST,
    NODE_CERTIFICATE,
    NODE_KEY,
    SERVER_CERTIFICATE,
    SERVER_KEY,
    SIGNATURE,
    SIGNING,
    KitError,
    certificate_fingerprint,
    read_certificate,
)

WARN_DAYS = 30
_PAIRS = ((SERVER_KEY, SERVER_CERTIFICATE), (NODE_KEY, NODE_CERTIFICATE))


@dataclass
class Verified:
    """What a kit that is in order says: its authority's fingerprint, and warnings (a certificate that ends soon)."""

    fingerprint: str
    warnings: list[str] = field(default_factory=list)


def verify(kit: Path, *, fingerprint: str | None = None, now: dt.datetime | None = None) -> Verified:
    """Check seal, files, keys and certificates, and site.yaml where there is one. Raises KitError or ConfigError.

    fingerprint: of the authority, as the coordinator told it by another way. Without it the seal shows that the kit was not
    changed since its maker sealed it, but not who that was.
    """
    authority = read_certificate(kit / AUTHORITY)
    shown = certificate_fingerprint(authority)
    if fingerprint is not None and _hex(fingerprint) != _hex(shown):
        raise KitError(
            f"{kit} is of an authority with the fingerprint {shown}, not the one you gave: ask the coordinator"
        )
    _check_files(kit, authority)
    found, now = Verified(shown), now or dt.datetime.now(dt.UTC)
    _check_dates(authority, kit / AUTHORITY, found, now)
    for key, certificate in _PAIRS:
        _check_pair(kit / key, kit / certificate, authority, found, now)
    if (kit / "site.yaml").is_file():
        from client.policy import read_site

        read_site(kit / "site.yaml")
    return found


def _check_files(kit: Path, authority: x509.Certificate) -> None:
    try:
        manifest, signature = (kit / MANIFEST).read_bytes(), (kit / SIGNATURE).read_bytes()
    except OSError:
        raise KitError(
            f"{kit} is no kit (no {MANIFEST}, or no {SIGNATURE}): give the folder that you unpacked"
        ) from None
    key = authority.public_key()
    try:
        assert isinstance(key, ec.EllipticCurvePublicKey)
        key.verify(signature, manifest, SIGNING)
    except (InvalidSignature, AssertionError):
        raise KitError(
            f"{kit / MANIFEST} is not what the authority signed: do not use this kit, ask for it again"
        ) from None
    for line in manifest.decode().splitlines():
        digest, _, name = line.partition("  ")
        path = kit / name
        if not path.is_file():
            raise KitError(f"{path} is missing: unpack the kit again")
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise KitError(
                f"{path} was changed since the kit was made: unpack the kit again, and keep changes elsewhere"
            )


def _check_dates(certificate: x509.Certificate, path: Path, found: Verified, now: dt.datetime) -> None:
    left = certificate.not_valid_after_utc - now
    if left <= dt.timedelta(0):
        raise KitError(f"{path} expired on {certificate.not_valid_after_utc:%Y-%m-%d}: ask the coordinator to renew it")
    if certificate.not_valid_before_utc > now:
        raise KitError(f"{path} is not valid yet: is this machine's clock right?")
    if left < dt.timedelta(days=WARN_DAYS):
        found.warnings.append(f"{path} expires in {left.days} days: ask the coordinator to renew it")


def _check_pair(key: Path, certificate: Path, authority: x509.Certificate, found: Verified, now: dt.datetime) -> None:
    """A private key that its owner alone can read, and a certificate of the authority for just that key."""
    if key.is_file() and key.stat().st_mode & 0o077:
        raise KitError(f"{key} can be read by others on this machine: chmod 600 {key}")
    if not certificate.is_file():
        return
    signed = read_certificate(certificate)
    try:
        signed.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        raise KitError(f"{certificate} is not signed by this federation's authority: ask the coordinator") from None
    if not key.is_file():
        raise KitError(f"{certificate} is there without {key.name}: restore the key from where it was made")
    hidden = not key.stat().st_mode & 0o777  # as systemd shows it to the worker; the gate's start compares the two
    if not hidden and _public(key) != signed.public_key():
        raise KitError(f"{certificate} is for another key than {key.name}: which of them is the present one?")
    _check_dates(signed, certificate, found, now)


def _public(path: Path) -> object:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise KitError(f"{path} cannot be read ({error.strerror}): whose file is it?") from None
    read = serialization.load_ssh_private_key if b"OPENSSH" in data else serialization.load_pem_private_key
    try:
        return read(data, None).public_key()
    except (ValueError, TypeError):
        raise KitError(f"{path} is not a private key that can be read (PEM or OpenSSH, no passphrase)") from None


def _hex(text: str) -> str:
    return re.sub(r"[^0-9a-f]", "", text.lower().removeprefix("sha256"))
