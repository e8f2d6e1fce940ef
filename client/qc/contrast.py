"""How much tissues differ against noise: once by the noise in air, once by the grain of the tissue itself."""

from __future__ import annotations

import numpy as np

from client.qc.regions import NotMeasured, Regions

_RAYLEIGH_MEDIAN = 1.17741  # of magnitude noise without signal, in deviations of its Gaussian parts
_NORMAL_MEDIAN = 0.67449  # of absolute normal deviates
_SLAB = 32  # slices that are looked at, at full resolution


def cnr(regions: Regions) -> float:
    """Contrast-to-noise ratio: |mean of the brighter tissue - mean of the darker| / sigma of the noise in air.

    After Magnotta and Friedman (J Digit Imaging 19, 2006) and MRIQC's `cnr`, with Otsu's halves of all tissue in place of grey
    and white matter. sigma by the median of air, which is Rayleigh-distributed (Gudbjartsson and Patz, MRM 34, 1995): ghosts in a
    corner do not matter to it. Several coils, parallel imaging and filters change that distribution (Dietrich et al., JMRI 26,
    2007), so values of different protocols do not compare. Raises NotMeasured where the background is not air.
    """
    dark, bright = regions.halves
    sigma = float(np.median(regions.thin[regions.air])) / _RAYLEIGH_MEDIAN
    if sigma <= 0:
        raise NotMeasured("the air holds no noise")
    return (bright - dark) / sigma


def noise(regions: Regions) -> float:
    """Grain of the tissue over the tissues' contrast, for any background.

    Median of absolute second differences along the axis of the finest voxels, as a deviation (they have six times the noise's
    variance): Immerkaer's idea (CVIU 64(2), 1996), with a median so that edges do not count. Structure of the size of a voxel
    counts as grain: values compare within a modality and protocol. Raises NotMeasured where there is hardly any tissue.
    """
    axis = int(regions.grid.spacing_mm.argmin())
    across = (axis + 1) % 3
    middle = regions.data.shape[across] // 2
    slab = regions.data.take(
        range(max(0, middle - _SLAB // 2), min(regions.data.shape[across], middle + _SLAB // 2)), across
    )
    slab = np.moveaxis(slab, axis, 0)
    inside = slab > regions.intensity.foreground
    inside = inside[:-2] & inside[1:-1] & inside[2:]
    seconds = np.abs(slab[:-2] - 2 * slab[1:-1] + slab[2:])[inside]
    dark, bright = regions.halves
    if seconds.size < 100 or bright <= dark:
        raise NotMeasured("hardly any tissue")
    return float(np.median(seconds)) / _NORMAL_MEDIAN / np.sqrt(6.0) / (bright - dark)
