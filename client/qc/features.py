"""What tells modalities apart without a name: histogram, brightness from rim to middle, and the header's geometry."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from client.qc.regions import NotMeasured, Regions

_BINS = 20
_SHELLS = 6
_FINE = 48  # voxels along an axis, from which every second is enough for the depth


def features_of(regions: Regions) -> NDArray[np.float64]:
    """(32,): square roots of the histogram's shares, mean brightness by depth, brightness of air, logarithms of edges and view.

    Brightness is the tissue's, 0 at its 1st and 1 at its 99th percentile: gain does not count. NIfTI headers tell no echo time.
    Not a number where there is hardly any tissue.
    """
    try:
        thin, tissue = regions.thin, regions.tissue
    except NotMeasured:
        return np.full(_BINS + _SHELLS + 6, np.nan)
    low, high = np.percentile(thin[tissue], (1, 99))
    bright = ((thin - low) / max(high - low, 1e-12)).clip(-0.5, 1.5)
    counts, _ = np.histogram(bright[tissue], _BINS, (0, 1))
    step = 1 + (max(thin.shape) > _FINE)
    body, values = (whole[::step, ::step, ::step] for whole in (regions.body, bright))
    depth = ndimage.distance_transform_edt(body)[body]
    places = np.argsort(np.argsort(depth, kind="stable"), kind="stable") * _SHELLS // max(1, depth.size)
    sums = np.bincount(places, values[body], _SHELLS) / np.maximum(np.bincount(places, minlength=_SHELLS), 1)
    edges = np.log(np.sort(regions.grid.spacing_mm))
    view = np.log(regions.grid.spacing_mm * regions.grid.shape).mean()
    return np.concatenate(
        [np.sqrt(counts / max(1, counts.sum())), sums, [float(tissue.mean()), bright.std()], edges, [view]]
    )
