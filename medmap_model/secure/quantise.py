"""Updates as whole numbers modulo 2^bits and back, at a scale at which the sum over all sites cannot wrap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BITS = (16, 32)


@dataclass(frozen=True)
class Quantiser:
    """Numbers of a group's update on a ring of 2^bits.

    clip: largest magnitude of a change, in the parameter's own units; what is beyond is cut. sites: most sites summed.
    A site with share s of the weights sends round(s * change * limit / clip): all shares are 1 together, so a sum lies
    within limit + sites / 2 and does not wrap. The mean is off by at most sites / 2 * step, whatever the weights.
    """

    clip: float
    bits: int
    sites: int

    def __post_init__(self) -> None:
        if self.bits not in BITS or not self.clip > 0 or not 1 <= self.sites < 2 ** (self.bits - 2):
            raise ValueError(f"{self}: take bits of {BITS}, a clip above 0 and fewer than 2^(bits-2) sites")

    @property
    def dtype(self) -> np.dtype:
        """uint16 or uint32; additions wrap as they should."""
        return np.dtype(f"uint{self.bits}")

    @property
    def limit(self) -> int:
        """The whole number that stands for `clip`."""
        return 2 ** (self.bits - 1) - 1 - self.sites

    @property
    def step(self) -> float:
        """What one whole number is worth in the mean, in the parameter's units."""
        return self.clip / self.limit

    def encode(self, change: np.ndarray, *, share: float) -> np.ndarray:
        """(n,) float32 -> (n,) ring. share: the site's weight over that of all owners, in (0, 1]. Raises ValueError."""
        if not 0 < share <= 1:
            raise ValueError(f"a site's share of the weights is {share}: take more than 0 and at most 1")
        if not np.isfinite(change).all():
            raise ValueError("the change is not finite")
        scaled = np.clip(change, -self.clip, self.clip, dtype=np.float64) * (share * self.limit / self.clip)
        return np.rint(scaled).astype(np.int64).astype(self.dtype)

    def decode(self, total: np.ndarray) -> np.ndarray:
        """(n,) ring, a sum over sites -> (n,) float64: the sum of share * change."""
        return total.view(np.dtype(f"int{self.bits}")).astype(np.float64) * self.step
