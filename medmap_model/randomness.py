"""Secret randomness for noise and sampling: seeded by the operating system, never by the training seed, never logged.

`SecretRandom` draws from a ChaCha20 keystream (default on a CPU) or, faster and by choice, from NumPy's Philox generator, keyed
by 128 secret bits. (torch's CPU generator looks at 32 bits of a seed, which an attacker can try one by one.)
"""

from __future__ import annotations

import math
import secrets

import numpy as np
import torch
from torch import Tensor

_SUMMANDS = 4  # normals averaged per draw: hides the last bits that a float reveals (Holohan and Braghin 2021)
_BLOCK = 1 << 16  # values at a time: what they need stays in a core's cache


class SecretRandom:
    """One generator per process and round. It has no state to save and cannot be seeded: a test checks both."""

    def __init__(self, *, chacha: bool = True) -> None:
        self._stream = _Keystream() if chacha else None
        self._generator = np.random.Generator(np.random.Philox(key=secrets.randbits(128)))

    def normal(self, shape: torch.Size | tuple[int, ...], *, std: float) -> Tensor:
        """Gaussian noise, float64 on the CPU. Each value is the sum of four normals, halved (arXiv 2107.10138).

        Add it in float64: rounded to float32 first, the grid that a sum can lie on would tell the exact sum.
        """
        n = math.prod(shape)
        out = torch.zeros(n, dtype=torch.float64)
        for start in range(0, n, _BLOCK):
            part = out[start : start + _BLOCK]
            for _ in range(_SUMMANDS):
                part += self._standard(len(part))
        return out.mul_(std / math.sqrt(_SUMMANDS)).view(shape)

    def sample(self, n: int, *, rate: float) -> Tensor:
        """(n,) bool: each is in with probability `rate`, independently (Poisson sampling). Raises ValueError."""
        if not 0 < rate <= 1:
            raise ValueError(f"the sampling rate is {rate}: take more than 0 and at most 1")
        return torch.from_numpy(self._uniform(n) < rate)

    def discrete_laplace(self, shape: tuple[int, ...], *, scale: float) -> np.ndarray:
        """Integers with P(k) proportional to exp(-|k| / scale): the difference of two geometric draws."""
        n = math.prod(shape)
        draw = [np.floor(np.log1p(-self._uniform(n)) * -scale) for _ in range(2)]
        return (draw[0] - draw[1]).astype(np.int64).reshape(shape)

    def _uniform(self, n: int) -> np.ndarray:
        """(n,) float64 in [0, 1), 53 bits each."""
        if self._stream is None:
            return self._generator.random(n)
        words = np.frombuffer(self._stream.read(8 * n), np.uint64) >> np.uint64(11)
        return words * 2.0**-53

    def _standard(self, n: int) -> Tensor:
        """(n,) standard normals: Box and Muller (1958) on the keystream, or NumPy's."""
        if self._stream is None:
            return torch.from_numpy(self._generator.standard_normal(n))
        half = (n + 1) // 2
        first, second = (torch.from_numpy(self._uniform(half)) for _ in range(2))
        radius, angle = first.neg_().log1p_().mul_(-2).sqrt_(), second.mul_(2 * math.pi)
        return torch.cat([radius * angle.cos(), radius * angle.sin()])[:n]


class _Keystream:
    """Bytes of ChaCha20 under a random key (cryptography package)."""

    def __init__(self) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

        # The first four of the sixteen bytes are a counter: from 0 it lasts for 256 GiB, from anywhere it may run out.
        algorithm = algorithms.ChaCha20(secrets.token_bytes(32), bytes(4) + secrets.token_bytes(12))
        self._cipher = Cipher(algorithm, mode=None).encryptor()

    def read(self, n: int) -> bytes:
        return self._cipher.update(bytes(n))
