"""N4: the slow change of brightness that a coil leaves in a volume is estimated and divided out (SimpleITK)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from client.grids import Grid
from client.preprocess.itk import image_of, reduced, sitk

_WORK_MM = 6.0  # the field is smooth: it is estimated on voxels of about this edge, and made for all
_ITERATIONS = (50, 50, 50)
_LEAST = 4  # voxels along an axis that three levels of splines can be fitted to

Array = NDArray[np.float32]


def bias_corrected(grid: Grid, data: Array) -> Array:
    """(X, Y, Z) divided by its bias field, which is estimated on the tissue (what is above Otsu's threshold).

    The field's mean over the tissue is 1 (geometrically), so that the scale stays. Source: Tustison et al., N4ITK, IEEE TMI
    29(6), 2010, as in ITK, with three levels of splines. Where nothing can be estimated (less than 4 voxels along an axis,
    or hardly any tissue) the volume comes back as it is.
    """
    itk = sitk()
    lowest = float(data.min())
    positive = data - lowest + np.float32(1e-3) * np.float32(np.ptp(data))  # N4 takes logarithms
    volume = image_of(grid, positive)
    mask = itk.OtsuThreshold(volume, 0, 1, 200)
    factors = reduced(grid, _WORK_MM)
    small, small_mask = itk.Shrink(volume, factors), itk.Shrink(mask, factors)
    if min(small.GetSize()) < _LEAST or int(itk.GetArrayViewFromImage(small_mask).sum()) < _LEAST**3:
        return data
    n4 = itk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(list(_ITERATIONS))
    n4.SetNumberOfThreads(1)  # the same sums in the same order: the cache keeps what comes out
    n4.Execute(small, small_mask)
    field = itk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(volume)).transpose(2, 1, 0).astype(np.float32)
    field -= field[itk.GetArrayViewFromImage(mask).transpose(2, 1, 0) > 0].mean()
    return ((data - lowest) / np.exp(field) + np.float32(lowest)).astype(np.float32)
