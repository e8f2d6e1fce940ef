"""A series' images in, its 3-D volumes out: slices in order along their normal, a regular grid each.

One series often holds several volumes: echoes, b-values, time points, phase beside magnitude. Where positions repeat,
the first attribute that tells the repeats apart splits them. Geometry is NIfTI's: mm, RAS, affine (4, 4) of
(column, row, slice).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.dicom.headers import Image
from client.dicom.index import Series
from client.grids import Grid
from client.problems import Problem

MIN_SLICES = 4  # below: a localizer or a single image
_ALIKE = 2e-3  # mm of spacing, or of a unit vector, that the images of one volume may differ in
_GAP = 0.25  # of the usual step, by which one may differ before it counts as missing slices
_UNEVEN = 0.1  # of the usual step, by which a slice may lie off a regular grid
_DRIFT = 0.5  # of a voxel, by which the last slice may be shifted in its plane against the first
_SPLITS: tuple[tuple[str, Callable[[Image], Any]], ...] = (
    ("component", lambda i: i.component),
    ("type", lambda i: i.image_type),
    ("TE", lambda i: i.te_ms and round(i.te_ms, 2)),
    ("b", lambda i: i.b_value),
    ("time point", lambda i: i.temporal),
    ("acquisition", lambda i: i.acquisition),
    ("time", lambda i: i.time_s),
)


@dataclass(frozen=True)
class Part:
    """One volume of a series. images: in the order of slices. label: what tells it from the series' other volumes."""

    series: Series
    images: tuple[Image, ...]
    grid: Grid
    label: str

    @property
    def te_ms(self) -> float | None:
        """Echo time of its first image."""
        return self.images[0].te_ms

    @property
    def time_s(self) -> float | None:
        """When its first image was acquired, seconds since 1970."""
        return min((i.time_s for i in self.images if i.time_s is not None), default=None)


def split(series: Series) -> tuple[list[Part], list[Problem]]:
    """The volumes of a series that can be used, and a row for each thing that keeps the others from it."""
    images = series.images
    if any(None in (i.position, i.orientation, i.spacing_mm) or 0 in i.shape for i in images):
        remedy = "Export the original images: a screenshot or a report page cannot be placed in space"
        return [], [series.problem("its images say no position, orientation, voxel or matrix size", remedy)]
    counts = _planes(images)
    if len(counts) > 1:
        if max(counts) < MIN_SLICES:
            return [], []  # a localizer of three planes: nothing is lost
        remedy = "Take out what does not belong, or split the series by orientation and size"
        problem = f"it mixes images of {len(counts)} orientations or sizes ({', '.join(map(str, counts))} images)"
        return [], [series.problem(problem, remedy)]
    parts, problems = list[Part](), list[Problem]()
    for label, group in _volumes(images):
        if group[0].component != "magnitude":
            problem = f"{len(group)} {group[0].component} images are not used: intensities there are no signal strength"
            problems.append(series.problem(problem, "Nothing to do: the magnitude images are used, if there are any"))
        elif group[0].frame is not None and len(scalings := {i.scaling for i in group}) > 1:
            problem = f"its {len(group)} frames are scaled in {len(scalings)} ways (rescale slope and intercept)"
            problems.append(
                series.problem(problem, "Export it as one file a slice: dcm2niix takes one scaling for a file")
            )
        elif len(group) >= MIN_SLICES:
            grid = _grid(group)
            named = f" ({label})" if label else ""
            if isinstance(grid, Grid):
                parts.append(Part(series, tuple(group), grid, label))
            else:
                problems.append(series.problem(f"{grid[0]}{named}", grid[1]))
    return parts, problems


def _planes(images: Sequence[Image]) -> list[int]:
    """How many images there are of each size and orientation."""
    found: list[tuple[tuple[int, int], NDArray[np.float64]]] = []
    counts: list[int] = []
    for image in images:
        plane = np.array([*(image.orientation or ()), *(image.spacing_mm or ())])
        for k, (shape, other) in enumerate(found):
            if shape == image.shape and np.abs(plane - other).max() < _ALIKE:
                counts[k] += 1
                break
        else:
            found.append((image.shape, plane))
            counts.append(1)
    return counts


def _volumes(images: Sequence[Image]) -> list[tuple[str, list[Image]]]:
    """(what tells it from the others, its images in order), as far as attributes tell repeated positions apart."""
    groups: list[tuple[str, list[Image]]] = [("", _ordered(images))]
    for name, value in _SPLITS:
        made = []
        for label, group in groups:
            values = sorted({value(i) for i in group}, key=lambda v: (v is None, v))
            divided = [[i for i in group if value(i) == v] for v in values]
            if len(values) > 1 and (name == "component" or _tells_apart(group, divided)):
                shown = [str(k) if name == "time" else _shown(v) for k, v in enumerate(values, 1)]
                made += [(f"{label} {name} {v}".strip(), d) for v, d in zip(shown, divided, strict=True)]
            else:
                made.append((label, group))
        groups = made
    return groups


def _tells_apart(group: Sequence[Image], divided: Sequence[Sequence[Image]]) -> bool:
    """Whether positions repeat in the group, and each part covers most of them: the times of single slices do not."""
    covered = _places(group)
    return len(covered) < len(group) and all(len(_places(part)) > len(covered) / 2 for part in divided)


def _places(images: Sequence[Image]) -> set[tuple[float, ...]]:
    return {tuple(round(v, 2) for v in i.position or ()) for i in images}


def _ordered(images: Sequence[Image]) -> list[Image]:
    normal = _axes(images[0])[2]
    return sorted(images, key=lambda i: (round(float(normal @ np.array(i.position)), 3), i.instance))


def _axes(image: Image) -> NDArray[np.float64]:
    """Unit vectors along a row, along a column, and normal to both (3, 3)."""
    x, y = np.array(image.orientation).reshape(2, 3)
    normal = np.cross(x, y)
    x, normal = x / np.linalg.norm(x), normal / np.linalg.norm(normal)
    return np.stack([x, np.cross(normal, x), normal])


def _grid(images: Sequence[Image]) -> Grid | tuple[str, str]:
    """The grid of a volume, or what is wrong with it and what to do."""
    axes = _axes(images[0])
    at = np.array([i.position for i in images])
    depth = at @ axes[2]
    steps = np.diff(depth)
    usual = float(np.median(steps[steps > 1e-3])) if (steps > 1e-3).any() else 0.0
    repeats = int((steps <= 1e-3).sum())
    if repeats:
        places = f"{len(images)} images at {len(images) - repeats} positions"
        remedy = "Export one volume a series: of diffusion directions the trace images, of time points each by itself"
        return f"it is 4-D: {places}, and no echo, b-value or time tells them apart", remedy
    missing = round(float((steps / usual - 1).clip(0)[steps > usual * (1 + _GAP)].sum()))
    if missing:
        return f"slices are missing: {missing} of {len(images) + missing}", "Retrieve the series again from the PACS"
    regular = np.linspace(depth[0], depth[-1], len(at))
    if abs(depth - regular).max() > _UNEVEN * usual:
        return f"its slices lie {steps.min():.3g} to {steps.max():.3g} mm apart", "Reconstruct it with equal distances"
    drift = (at[-1] - at[0]) @ axes[:2].T  # of the last slice within the plane
    (rows, columns), (between_rows, between_columns) = images[0].shape, images[0].spacing_mm or (1.0, 1.0)
    if np.abs(drift).max() > _DRIFT * min(between_rows, between_columns):
        tilt = float(np.degrees(np.arctan2(np.linalg.norm(drift), depth[-1] - depth[0])))
        remedy = "Resample it to upright slices first: a sheared grid would be read as a straight one"
        return f"its slices are sheared by {tilt:.1f} degrees (gantry tilt)", remedy
    step = axes[2] * (depth[-1] - depth[0]) / (len(at) - 1)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([axes[0] * between_columns, axes[1] * between_rows, step], axis=1)
    affine[:3, 3] = at[0]
    return Grid((columns, rows, len(images)), np.diag([-1.0, -1, 1, 1]) @ affine)


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
