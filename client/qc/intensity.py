"""Intensities that do not fit: single bright voxels, a ceiling that was hit, an odd histogram, little tissue in the view."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from client.qc.regions import NotMeasured, Regions


def spike(regions: Regions) -> float:
    """How far the brightest voxel stands out: (maximum - median) / (99.9th percentile - median), of the tissue.

    About 1 to 2 in a sound volume; a spike or an overflow of the number format makes it large.
    """
    values = _tissue(regions)
    middle, high = np.percentile(values, (50, 99.9))
    return float((values.max() - middle) / max(high - middle, 1e-6 * abs(float(middle)) + 1e-12))


def saturated(regions: Regions) -> float:
    """Share of the tissue that has exactly the volume's largest value: a ceiling was hit."""
    values = _tissue(regions)
    return float((values == values.max()).mean())


def middle(regions: Regions) -> float:
    """Where the median of the tissue lies between its 1st (0) and its 99th percentile (1): the histogram's shape, in a number."""
    low, half, high = np.percentile(regions.thin[regions.tissue], (1, 50, 99))
    return float((half - low) / max(high - low, 1e-12))


def filled(regions: Regions) -> float:
    """Share of the view that is tissue."""
    return float(regions.tissue.mean())


def _tissue(regions: Regions) -> NDArray[np.float32]:
    """Values of all tissue voxels, not only of the thinned ones: one may be the artefact. Raises NotMeasured."""
    values = regions.data[regions.data > regions.intensity.foreground]
    if not values.size:
        raise NotMeasured("hardly any tissue")
    return values
