"""Masks: (n,) uniform numbers of the ring from a 32-byte secret, a site's own and one per pair of sites.

Site i adds its own mask, plus the pair's towards every later owner of the group and minus it towards every earlier one: in
the sum over all owners the pairs cancel.
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from medmap_model.secure.keys import agree, derive


def own_mask(seed: bytes, size: int, dtype: np.dtype, *, round_id: str, group: str) -> np.ndarray:
    """The mask that a site adds for itself."""
    return _keystream(derive(seed, "own mask", round_id, group), size, dtype)


def pair_mask(
    secret: bytes, public: bytes, size: int, dtype: np.dtype, *, me: int, other: int, round_id: str, group: str
) -> np.ndarray:
    """What site `me` adds for its pair with `other`: the negative of what the other adds.

    secret, public: a mask key of either and the public one of the other; which is whose does not matter.
    """
    stream = _keystream(agree(secret, public, "pair mask", round_id, group), size, dtype)
    return stream if me < other else np.negative(stream)


def _keystream(key: bytes, size: int, dtype: np.dtype) -> np.ndarray:
    """ChaCha20 under a key that is used once, hence the nonce of zeros."""
    cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    return np.frombuffer(cipher.update(bytes(size * dtype.itemsize)), dtype)
