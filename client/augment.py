"""Random changes of a training batch, (B, M, D, H, W) in and out, that keep what its reports say about sides true.

Axes are RAS: D runs from left to right, H from back to front, W from feet to head.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from configs.schema import AugmentConfig
from medmap_model.text.sides import swap_sides

# Sides that no swap of words can mirror: liver segments, and side words of other languages.
_FIXED = re.compile(
    r"\b(?:seg(?:ment)?s?\.?\s*(?:[ivx]+|\d)|s[1-8]|link(?:s|e[nrsm]?)|recht(?:s|e[nrsm]?)|gauches?|droite?s?"
    r"|izquierd[ao]s?|derech[ao]s?|sinistr[aioe]|destr[aioe])\b",
    re.IGNORECASE,
)


def mirror_report(text: str) -> str | None:
    """The report of the mirrored patient: left and right swapped, the case of letters kept.

    None where that cannot be done by swapping words: such a record is not mirrored. Not understood at all are lone
    letters (R, L) and organs that have a side by themselves; if reports rely on them, set flip_left_right to false.
    """
    if _FIXED.search(text):
        return None
    return swap_sides(text)


def augment(
    volumes: Tensor, present: Tensor, mirrorable: Tensor, config: AugmentConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Flip and shift each record, scale and offset each volume: (B, M, D, H, W), and which are mirrored, (B,) bool.

    present: (B, M) bool; the other slots stay zero. mirrorable: (B,) bool, records whose report can follow a
    left-right flip. A shift repeats the outermost voxels. `generator` is a CPU generator: every device draws alike.
    """
    records, slots = present.shape
    allowed = torch.tensor([config.flip_left_right, config.flip, config.flip])
    flips = (torch.rand(records, 3, generator=generator) < 0.5) & allowed
    flips[:, 0] &= mirrorable.cpu()
    reach = config.shift_voxels
    shifts = torch.randint(-reach, reach + 1, (records, 3), generator=generator)
    noise = torch.randn(2, records, slots, generator=generator)
    if flips.any() or shifts.any():
        volumes = _moved(volumes, flips, shifts)
    if config.intensity_scale or config.intensity_shift:
        factor = (1 + config.intensity_scale * noise[0]).clamp(min=0.1)
        offset = config.intensity_shift * noise[1] * present.cpu()
        factor, offset = (t.to(volumes)[:, :, None, None, None] for t in (factor, offset))
        volumes = torch.addcmul(offset, volumes, factor)
    return volumes, flips[:, 0]


def _moved(volumes: Tensor, flips: Tensor, shifts: Tensor) -> Tensor:
    """Each record flipped and shifted along each axis, in one gather: flips and shifts are (B, 3)."""
    records, slots, *sizes = volumes.shape
    index = []
    for axis, n in enumerate(sizes):
        source = (torch.arange(n) + shifts[:, axis, None]).clamp(0, n - 1)
        index.append(torch.where(flips[:, axis, None], n - 1 - source, source).to(volumes.device))
    x, y, z = index
    flat = (x[:, :, None, None] * sizes[1] + y[:, None, :, None]) * sizes[2] + z[:, None, None, :]
    flat = flat.view(records, 1, -1).expand(-1, slots, -1)
    return volumes.reshape(records, slots, -1).gather(2, flat).view(volumes.shape)
