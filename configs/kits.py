"""What provisioning and a hospital agree on: the names of a kit's files, how keys are kept, and how a public key is told.

Keys are NIST P-384, which Flower's SuperNode authentication accepts (it reads OpenSSH files of a NIST curve and no other).
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NAME = r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?"  # of a federation or a site
MANIFEST = "MANIFEST"
SIGNATURE = "MANIFEST.sig"
AUTHORITY = "ca.crt"
SERVER_KEY, SERVER_CERTIFICATE = "server.key", "server.crt"
NODE_KEY, NODE_CERTIFICATE = "node.key", "node.crt"
NODES, REVOKED = "nodes", "revoked.crl"
HASH = hashes.SHA384()
SIGNING = ec.ECDSA(HASH, deterministic_signing=True)  # RFC 6979: the same kit twice is the same bytes


class KitError(ValueError):
    """A key, certificate or kit that cannot be used; the message is one sentence: what, where, what to do."""


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh P-384 key."""
    return ec.generate_private_key(ec.SECP384R1())


def openssh(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The private key as Flower's SuperNode reads it, unencrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


def write_private(path: Path, data: bytes) -> None:
    """Write a new file that its owner alone can read, from its first byte on. Raises KitError where one is."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise KitError(f"{path} is there already and is not overwritten: move it away first") from None
    except OSError as error:
        raise KitError(f"{path} cannot be written ({error.strerror}): choose another folder") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def common_name(subject: x509.Name) -> str:
    """The name that a certificate or a request is for."""
    names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def named(name: str) -> x509.Name:
    """The inverse of `common_name`."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def fingerprint(data: bytes) -> str:
    """SHA-256 as OpenSSL writes it, 32 pairs of hexadecimal digits with colons."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(data)
    return digest.finalize().hex(":").upper()


def certificate_fingerprint(certificate: x509.Certificate) -> str:
    """As `openssl x509 -noout -fingerprint -sha256` prints it."""
    return fingerprint(certificate.public_bytes(serialization.Encoding.DER))


def key_fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """Of the public key, whatever file it is in."""
    return fingerprint(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))


def read_certificate(path: Path) -> x509.Certificate:
    """Raises KitError."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise KitError(f"{path} cannot be read ({error.strerror})") from None
    except ValueError:
        raise KitError(f"{path} is not a certificate (PEM): take the one that the coordinator sent") from None
