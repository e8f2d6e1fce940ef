"""How far apart the sites' images are, from their moments: tables of sums in; distances, and what chance shows, out.

In: site -> (M, EXACT) or (M, RELEASED) sums (`medmap_model.shift`). Out, per organ: the mean over modalities that two sites
share of their Fréchet distance, and the 95th percentile of the same where nothing differs but the sample (and the noise).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmap_model.accounting import Cost, noise_scale
from medmap_model.contract import Request
from medmap_model.releases import SHIFT, cohort_tables
from medmap_model.shift import FEATURES, Moments, frechet, moments, released_sums, sums
from medmap_model.vocabulary import Vocabulary
from server.files import write_json
from server.releases import Releases

FILE = "shift.json"
_DRAWS = 40
_MOST = 30  # sites: beyond, pairs are too many to look at, and to draw for
_LEVEL = 95.0
_CLEAR = 3.0  # deviations of the noise that a site's number of patients has to exceed

Array = NDArray[np.float64]


def ask_shift(
    releases: Releases, vocabulary: Vocabulary, *, organs: Sequence[str], epsilon: float, run: str, folder: Path
) -> dict[str, Any]:
    """Ask every site once for its noisy moments and write `folder`/shift.json: what `shift_between` returns."""
    given = releases.cohort(Request(list(organs), epsilon=epsilon, tables=list(SHIFT), run=run, number=1))
    (name,) = SHIFT
    units = {organ: cohort_tables(vocabulary.organs[organ])[name] for organ in organs}
    tables = {o: {site: of[o][name] / units[o].unit for site, of in given.items()} for o in organs}
    scales = {o: noise_scale(Cost(1, epsilon=epsilon), cells=units[o].cells) for o in organs}
    result = shift_between(tables, vocabulary, noise=scales) | {"epsilon": epsilon, "refused": list(releases.refused)}
    write_json(folder / FILE, result)
    return result


def shift_between(
    tables: Mapping[str, Mapping[str, Array]], vocabulary: Vocabulary, *, noise: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """tables: organ -> site -> sums. noise: organ -> scale of the Laplace noise on them, in patients; None: they are exact.

    distance and chance: (sites, sites), None where two sites share no modality. A modality of a site with hardly more patients
    than noise is left out, and a site without any modality.
    """
    organs = {}
    for organ, by_site in tables.items():
        names = vocabulary.organs[organ].modalities
        scale = (noise or {}).get(organ, 0.0)
        least = _CLEAR * math.sqrt(2) * scale  # in fewer patients there is nothing but noise, or nobody at all
        known = {site: [moments(row) if row[0] > least else None for row in rows] for site, rows in by_site.items()}
        known = {site: rows for site, rows in known.items() if any(rows)}
        if 2 <= len(known) <= _MOST:
            organs[organ] = {
                "sites": list(known),
                "modalities": {
                    site: [m for m, row in zip(names, rows, strict=True) if row] for site, rows in known.items()
                },
                "patients": {site: round(max(row.n for row in rows if row)) for site, rows in known.items()},
                "distance": _plain(_distances(list(known.values()))),
                "chance": _plain(_chance(list(known.values()), [by_site[s] for s in known], scale)),
            }
    return {"epsilon": None, "features": list(FEATURES), "organs": organs}


def _distances(sites: Sequence[Sequence[Moments | None]]) -> Array:
    """(S, S), the mean over shared modalities; NaN where there is none."""
    found = np.full((len(sites), len(sites)), np.nan)
    for i, one in enumerate(sites):
        for j, other in enumerate(sites[:i]):
            apart = [frechet(a, b) for a, b in zip(one, other, strict=True) if a and b]
            if apart:
                found[i, j] = found[j, i] = np.mean(apart)
        found[i, i] = 0.0
    return found


def _chance(sites: Sequence[Sequence[Moments | None]], tables: Sequence[Array], scale: float) -> Array:
    """(S, S): what `_distances` stays below in 95 of 100 draws in which all sites' patients are alike.

    Patients of a modality are drawn from the Gaussian of all sites together, as many as each site has, with its noise.
    """
    rng = np.random.default_rng(0)
    used = [
        np.array([row is not None for row in rows])[:, None] * table for rows, table in zip(sites, tables, strict=True)
    ]
    every = [moments(row) for row in np.sum(used, axis=0)]
    draws = []
    for _ in range(_DRAWS):
        drawn = [[_draw(own, common, scale, rng) for own, common in zip(rows, every, strict=True)] for rows in sites]
        draws.append(_distances(drawn))
    with np.errstate(invalid="ignore"):
        return np.percentile(draws, _LEVEL, axis=0)


def _plain(matrix: Array) -> list[list[float | None]]:
    return [[None if np.isnan(x) else float(x) for x in row] for row in matrix]


def _draw(own: Moments | None, common: Moments | None, scale: float, rng: np.random.Generator) -> Moments | None:
    if own is None or common is None:
        return None
    patients = rng.multivariate_normal(common.mean, common.covariance, max(2, round(own.n)), check_valid="ignore")
    if not scale:
        return moments(sums(patients))
    exact = released_sums(patients)
    return moments(exact + rng.laplace(0, scale, exact.shape)) or own
