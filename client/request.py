"""A site's own key, and the request by which the coordinator comes to know its public half. The key never travels."""

from __future__ import annotations

import re
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from configs.kits import HASH, NAME, NODE_KEY, KitError, key_fingerprint, named, new_key, openssh, write_private


def request(name: str, folder: Path) -> tuple[Path, str]:
    """Make node.key (for its owner alone) and NAME.csr (PKCS#10, to be sent). Returns the request and the key's fingerprint.

    Raises KitError for a name that no site can have, and where there is a key already: a second one would lock the site out.
    """
    if not re.fullmatch(NAME, name):
        raise KitError(
            f"'{name}' is not the name of a site: take the one in the kit's README (small letters, digits, hyphens)"
        )
    if not folder.is_dir():
        raise KitError(f"{folder} is not a folder: give the kit's")
    key = new_key()
    write_private(folder / NODE_KEY, openssh(key))
    asked = x509.CertificateSigningRequestBuilder().subject_name(named(name)).sign(key, HASH)
    path = folder / f"{name}.csr"
    path.write_bytes(asked.public_bytes(Encoding.PEM))
    return path, key_fingerprint(key.public_key())
