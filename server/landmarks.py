"""A common intensity scale per modality, from the noisy landmarks of all sites: harmonisation that costs each site once.

In: one release per site. Out: `landmarks.yaml`, which the setting data.volumes.landmarks takes (with standardise=nyul), and
`landmarks.json`, which says how sure the numbers are. Each volume is then mapped to the scale by its own landmarks alone, so
that no patient's record depends on another's, and the next run's guarantee holds as before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from medmap_model.accounting import Cost, noise_variance
from medmap_model.contract import Request
from medmap_model.landmarks import scale_from
from medmap_model.releases import SCALES, cohort_tables
from medmap_model.vocabulary import Vocabulary
from server.files import write_json
from server.releases import Releases

FILE, SETTING = "landmarks.json", "landmarks.yaml"
_WORST = 0.05  # standard deviation of a position between 0 and 1 by noise, from which a modality is left out


def ask_landmarks(
    releases: Releases, vocabulary: Vocabulary, *, organs: Sequence[str], epsilon: float, run: str, folder: Path
) -> dict[str, Any]:
    """Ask every site once; write both files into `folder`. A modality with too few patients for its noise is left out."""
    (name,) = SCALES
    given = releases.cohort(Request(list(organs), epsilon=epsilon, tables=list(SCALES), run=run, number=2))
    sums: dict[str, Any] = {}  # modality -> over sites and organs
    variance: dict[str, float] = {}
    for organ in organs if given else ():
        table = cohort_tables(vocabulary.organs[organ])[name]
        noise = noise_variance(Cost(1, epsilon=epsilon), cells=table.cells, unit=table.unit) / table.unit**2
        total = sum(of[organ][name] for of in given.values()) / table.unit
        for modality, row in zip(vocabulary.organs[organ].modalities, total, strict=True):
            sums[modality] = sums.get(modality, 0) + row
            variance[modality] = variance.get(modality, 0.0) + len(given) * noise
    found: dict[str, Any] = {}
    for modality, row in sums.items():
        sd = math.sqrt(variance[modality]) / max(float(row[0]), 1.0)
        scale = scale_from(row) if sd <= _WORST else None
        found[modality] = {"patients": float(row[0]), "sd": sd, "landmarks": list(scale) if scale else None}
    result = {"epsilon": epsilon, "sites": list(given), "modalities": found, "refused": list(releases.refused)}
    setting = {m: row["landmarks"] for m, row in found.items() if row["landmarks"]}
    text = yaml.safe_dump(setting, default_flow_style=True, width=10**6, sort_keys=False)
    (folder / SETTING).write_text(text, encoding="utf-8")
    write_json(folder / FILE, result)
    return result
