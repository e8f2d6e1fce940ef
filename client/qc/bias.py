"""The bias field: how much the brightness of one tissue changes across a volume."""

from __future__ import annotations

import numpy as np

from client.qc.regions import NotMeasured, Regions

_SEEN = 20_000  # voxels that the field is fitted to
_CLASSES = 3
_ROUNDS = 60  # at most: a strong field takes that many before its classes stay as they are


def bias(regions: Regions) -> float:
    """95th over 5th percentile of the field in the tissue, minus 1: 0 none, 1 one side is twice as bright.

    The field's logarithm is a polynomial of second degree in space, fitted to log-intensities together with a level for each of
    three tissue classes, in turns with the classes (after Styner et al., PABIC, IEEE TMI 19(3), 2000; MRIQC takes N4's field,
    which needs SimpleITK). What anatomy has of such a slope counts as field: values compare within a modality. Raises
    NotMeasured where there is hardly any tissue.
    """
    where = np.argwhere(regions.tissue)
    where = where[:: max(1, len(where) // _SEEN)]
    values = regions.thin[tuple(where.T)]
    good = values > 0
    where, logs = where[good], np.log(values[good]).astype(np.float64)
    if len(logs) < 500:
        raise NotMeasured("hardly any tissue")
    x, y, z = (where / (np.array(regions.thin.shape) - 1) * 2 - 1).T
    space = np.stack([x, y, z, x * x, y * y, z * z, x * y, x * z, y * z], 1)
    field, centres = np.zeros_like(logs), np.quantile(logs, (np.arange(_CLASSES) + 0.5) / _CLASSES)
    classes = np.full(len(logs), -1)
    for _ in range(_ROUNDS):
        before, classes = classes, np.abs((logs - field)[:, None] - centres).argmin(1)
        if np.array_equal(before, classes):
            break
        terms = np.hstack([space, np.eye(_CLASSES)[classes]])
        found, *_ = np.linalg.lstsq(terms.T @ terms, terms.T @ logs, rcond=None)
        field, centres = space @ found[: space.shape[1]], found[space.shape[1] :]
    low, high = np.percentile(field, (5, 95))
    return float(np.exp(high - low) - 1)
