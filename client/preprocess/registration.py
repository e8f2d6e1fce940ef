"""Rigid registration of a volume to its study's reference: mutual information, six degrees of freedom (SimpleITK)."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.grids import Grid
from client.preprocess.itk import image_of, orthonormal, reduced, sitk

_WORK_MM = 3.0  # voxels that are compared: finer ones cost time and change the answer by less than a tenth of them
_BINS = 32
_LEVELS = ((2, 2.0), (1, 0.0))  # thinned out by, smoothed by (voxels); coarse first
_LEAST = 8  # voxels along an axis
_FURTHEST_MM, _FURTHEST_DEG = 40.0, 20.0  # beyond it the optimiser was lost rather than the patient moved
_log = logging.getLogger(__name__)

Array = NDArray[np.float32]


def registered(grid: Grid, data: Array, reference: tuple[Grid, Array]) -> tuple[Grid, Array]:
    """The volume resampled to the reference's axes and field of view, with its own voxel edges.

    Mattes' mutual information (IEEE TMI 22(1), 2003) over all voxels of about 3 mm, since phases and sequences differ in
    contrast; starts where the headers say. A result that moves more than 40 mm or 20 degrees, or that does not agree better
    than the headers, is not used: then the volume is only resampled, as where fewer than 8 such voxels lie along an axis.
    """
    fixed_grid, fixed_data = reference
    fixed, moving = image_of(fixed_grid, fixed_data), image_of(grid, data)
    transform = _transform(fixed, moving, reduced(fixed_grid, _WORK_MM), reduced(grid, _WORK_MM))
    onto = _view(fixed_grid, grid)
    done = sitk().Resample(moving, image_of(onto, np.zeros(onto.shape, np.float32)), transform, sitk().sitkLinear,
                           float(data.min()))  # fmt: skip
    return onto, np.ascontiguousarray(sitk().GetArrayFromImage(done).transpose(2, 1, 0), np.float32)


def _transform(fixed: Any, moving: Any, thin_fixed: list[int], thin_moving: list[int]) -> Any:
    """From points of the fixed volume to points of the moving one; the identity where nothing better is found."""
    itk = sitk()
    start = itk.Euler3DTransform()
    size, none = fixed.GetSize(), itk.Transform(3, itk.sitkIdentity)
    start.SetCenter(fixed.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in size]))
    fixed, moving = itk.Shrink(fixed, thin_fixed), itk.Shrink(moving, thin_moving)
    if min(*fixed.GetSize(), *moving.GetSize()) < _LEAST:
        return none
    method = itk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)  # the same sums in the same order: the cache keeps what comes out
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInterpolator(itk.sitkLinear)
    method.SetInitialTransform(start, inPlace=True)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=0.01, numberOfIterations=150, gradientMagnitudeTolerance=1e-5
    )
    method.SetOptimizerScalesFromPhysicalShift()
    usable = [level for level in _LEVELS if min(fixed.GetSize()) >= _LEAST * level[0]]
    method.SetShrinkFactorsPerLevel([shrink for shrink, _ in usable])
    method.SetSmoothingSigmasPerLevel([sigma for _, sigma in usable])
    before = method.MetricEvaluate(fixed, moving)
    try:
        method.Execute(fixed, moving)
    except RuntimeError:  # no voxel of one lies in the other any more
        _log.warning("a volume could not be registered: it stays where its header says")
        return none
    angles, shift = start.GetParameters()[:3], start.GetParameters()[3:]
    if math.hypot(*shift) > _FURTHEST_MM or max(map(abs, angles)) > math.radians(_FURTHEST_DEG):
        _log.warning("a volume could not be registered: it stays where its header says")
        return none
    if not method.GetMetricValue() < before:  # it lay right already
        return none
    return start


def _view(fixed: Grid, moving: Grid) -> Grid:
    """The fixed volume's axes and field of view, sampled with the moving one's voxel edges."""
    axes = orthonormal(fixed.affine[:3, :3] / fixed.spacing_mm)
    extent = fixed.spacing_mm * fixed.shape
    shape = np.maximum(2, np.ceil(extent / moving.spacing_mm - 1e-6)).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = axes * moving.spacing_mm
    middle = fixed.to_mm((np.array(fixed.shape) - 1) / 2)
    affine[:3, 3] = middle - affine[:3, :3] @ ((shape - 1) / 2)
    return Grid(tuple(int(n) for n in shape), affine)
