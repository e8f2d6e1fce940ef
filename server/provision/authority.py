"""The federation's certificate authority: a folder with its key, what it issued, and what it revoked.

    ca.key (0600)  ca.crt  server.key (0600)  server.crt  revoked.crl
    sites/NAME.crt       the certificate of a site's key;  sites/NAME.key (0600) only where the coordinator makes the key
    issued/SERIAL.crt    every certificate ever issued

Whoever has this folder can admit anyone: it stays off the server, with a backup. X.509 is as in RFC 5280.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from configs.kits import (
    AUTHORITY,
    HASH,
    REVOKED,
    SERVER_CERTIFICATE,
    SERVER_KEY,
    SIGNING,
    KitError,
    common_name,
    named,
    new_key,
    openssh,
    read_certificate,
    write_private,
)

_SKEW = dt.timedelta(minutes=5)  # a certificate holds from a little ago: clocks differ


def utc_now() -> dt.datetime:
    """The present, to the second."""
    return dt.datetime.now(dt.UTC).replace(microsecond=0)


class Authority:
    """Issues and revokes. Every method that issues takes `days`, and `now` for a clock other than this machine's."""

    def __init__(self, folder: Path) -> None:
        """Open an authority that is there. Raises KitError."""
        if not (folder / "ca.key").is_file():
            raise KitError(f"{folder} holds no certificate authority (no ca.key): `medmap-server provision` makes one")
        self.folder = folder
        self.certificate = read_certificate(folder / AUTHORITY)
        self._key = _private_key(folder / "ca.key")

    @classmethod
    def create(cls, folder: Path, name: str, *, days: int, now: dt.datetime | None = None) -> Authority:
        """Make a new authority in a folder without one. Raises KitError."""
        for part in (folder, folder / "sites", folder / "issued"):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
        key, begin = new_key(), (now or utc_now()) - _SKEW
        write_private(folder / "ca.key", _pem(key))
        subject = named(f"{name} certificate authority")
        built = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + dt.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, HASH, ecdsa_deterministic=True)
        )
        (folder / AUTHORITY).write_bytes(built.public_bytes(Encoding.PEM))
        made = cls(folder)
        made._write_revoked([])
        return made

    def sign(self, data: bytes) -> bytes:
        """ECDSA of data, DER: `openssl dgst -sha384 -verify` reads it."""
        return self._key.sign(data, SIGNING)

    def server(self, address: str, *, days: int, now: dt.datetime | None = None) -> x509.Certificate:
        """The server's certificate for address, issued anew; its key is made the first time and kept."""
        path = self.folder / SERVER_KEY
        if not path.is_file():
            write_private(path, _pem(new_key()))
        names = [_general_name(n) for n in dict.fromkeys((address, "localhost", "127.0.0.1"))]
        certificate = self._issue(address, _private_key(path).public_key(), days, now, server_names=names)
        _replace(self.folder / SERVER_CERTIFICATE, certificate)
        return certificate

    def admit(
        self, name: str, key: ec.EllipticCurvePublicKey, *, days: int, now: dt.datetime | None = None
    ) -> x509.Certificate:
        """A site's certificate for its key. Raises KitError while the site has a valid one for another key."""
        present = self.site(name)
        if present and present.public_key() != key and self.valid(present, now=now):
            raise KitError(
                f"{name} has a certificate for another key until {present.not_valid_after_utc:%Y-%m-%d}: "
                f"if the hospital made a new key, `medmap-server revoke {name}` first"
            )
        certificate = self._issue(name, key, days, now)
        _replace(self.folder / "sites" / f"{name}.crt", certificate)
        return certificate

    def site(self, name: str) -> x509.Certificate | None:
        """The certificate issued last for a site, or None."""
        path = self.folder / "sites" / f"{name}.crt"
        return read_certificate(path) if path.is_file() else None

    def site_key(self, name: str) -> ec.EllipticCurvePrivateKey:
        """The key that the coordinator makes for a site, made the first time and kept for a kit written again."""
        path = self.folder / "sites" / f"{name}.key"
        if not path.is_file():
            write_private(path, openssh(new_key()))
        key = serialization.load_ssh_private_key(path.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key

    def revoke(self, name: str, *, now: dt.datetime | None = None) -> int:
        """Put every certificate of a site on the revocation list; a key kept for it goes. Returns how many are new there."""
        listed = self.revoked()
        theirs = [c for c in self.issued() if common_name(c.subject) == name and not _is_server(c)]
        if not theirs:
            raise KitError(f"there is no certificate of '{name}' in {self.folder}: nothing to revoke")
        known = {entry.serial_number for entry in listed}
        fresh = [c.serial_number for c in theirs if c.serial_number not in known]
        entries = [
            x509.RevokedCertificateBuilder().serial_number(s).revocation_date(now or utc_now()).build() for s in fresh
        ]
        self._write_revoked([*listed, *entries], now=now)
        (self.folder / "sites" / f"{name}.key").unlink(missing_ok=True)
        return len(fresh)

    def revoked(self) -> list[x509.RevokedCertificate]:
        """The entries of the revocation list."""
        return list(x509.load_pem_x509_crl((self.folder / REVOKED).read_bytes()))

    def issued(self) -> list[x509.Certificate]:
        """Every certificate that this authority issued."""
        return [read_certificate(p) for p in sorted((self.folder / "issued").glob("*.crt"))]

    def valid(self, certificate: x509.Certificate, *, now: dt.datetime | None = None) -> bool:
        """Neither expired nor revoked."""
        listed = {entry.serial_number for entry in self.revoked()}
        return certificate.serial_number not in listed and certificate.not_valid_after_utc > (now or utc_now())

    def _issue(
        self,
        name: str,
        key: ec.EllipticCurvePublicKey,
        days: int,
        now: dt.datetime | None,
        *,
        server_names: list[x509.GeneralName] | None = None,
    ) -> x509.Certificate:
        begin = (now or utc_now()) - _SKEW
        end = min(begin + dt.timedelta(days=days), self.certificate.not_valid_after_utc)
        if end <= begin:
            raise KitError(
                f"the authority in {self.folder} has expired: make a new one, and new kits, in other folders"
            )
        use = ExtendedKeyUsageOID.SERVER_AUTH if server_names else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            x509.CertificateBuilder()
            .subject_name(named(name))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if server_names:
            builder = builder.add_extension(x509.SubjectAlternativeName(server_names), critical=False)
        certificate = builder.sign(self._key, HASH, ecdsa_deterministic=True)
        _replace(self.folder / "issued" / f"{certificate.serial_number:x}.crt", certificate)
        return certificate

    def _write_revoked(self, entries: list[x509.RevokedCertificate], *, now: dt.datetime | None = None) -> None:
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now or utc_now())
            .next_update(max(self.certificate.not_valid_after_utc, (now or utc_now()) + dt.timedelta(days=1)))
        )
        for entry in entries:
            builder = builder.add_revoked_certificate(entry)
        crl = builder.sign(self._key, HASH, ecdsa_deterministic=True)
        _write(self.folder / REVOKED, crl.public_bytes(Encoding.PEM))


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        return x509.DNSName(address)


def _is_server(certificate: x509.Certificate) -> bool:
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    return ExtendedKeyUsageOID.SERVER_AUTH in usage


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError):
        raise KitError(
            f"{path} is not a private key that can be read: restore the authority's folder from its backup"
        ) from None
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _replace(path: Path, certificate: x509.Certificate) -> None:
    _write(path, certificate.public_bytes(Encoding.PEM))


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)
