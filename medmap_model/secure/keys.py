"""Keys of one round: X25519 pairs, keys that two sites agree on, and messages sealed from site to site.

Keys travel as raw bytes, 32 each. Everything derived is bound to a purpose and a round (HKDF-SHA256, RFC 5869), so that no
key serves twice. Raises ValueError throughout for bytes that are no key or were changed on the way.
"""

from __future__ import annotations

import json
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_NONCE = 12


def new_secret() -> bytes:
    """An X25519 private key from the operating system's randomness."""
    return X25519PrivateKey.generate().private_bytes_raw()


def public_of(secret: bytes) -> bytes:
    """The public key of a private one."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def agree(secret: bytes, public: bytes, *purpose: str | int) -> bytes:
    """The 32-byte key that two sites share for a purpose (RFC 7748): agree(a, B) == agree(b, A)."""
    shared = X25519PrivateKey.from_private_bytes(secret).exchange(X25519PublicKey.from_public_bytes(public))
    return derive(shared, *purpose)


def derive(secret: bytes, *purpose: str | int) -> bytes:
    """A 32-byte key from a secret, another for every purpose."""
    info = json.dumps(["medmap secure", *purpose]).encode()
    return HKDF(SHA256(), length=32, salt=None, info=info).derive(secret)


def seal(key: bytes, text: bytes) -> bytes:
    """Encrypted and authenticated (ChaCha20-Poly1305, RFC 8439), a random nonce in front."""
    nonce = secrets.token_bytes(_NONCE)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, text, None)


def unseal(key: bytes, sealed: bytes) -> bytes:
    """The inverse of `seal`."""
    try:
        return ChaCha20Poly1305(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], None)
    except InvalidTag:
        raise ValueError("a sealed message was changed on the way, or is for another site or round") from None
