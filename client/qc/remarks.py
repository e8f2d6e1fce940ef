"""What was measured in, what has to be said out: limits, odd ones out, names that are doubted; each with a grade and a remedy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.manifest import Study
from client.qc.labels import doubts
from client.qc.limits import Limit, Limits, Outliers
from client.qc.measures import MEASURES, Measure

GRADES = ("failed", "warning")
_TO_NORMAL = 1.4826  # MAD to the deviation of a normal distribution
_REMEDIES = {
    "edge_mm": "Take a series with thinner slices where there is one",
    "view_mm": "Compare its protocol with the others'",
    "tilt_deg": "Resample it along the patient's axes",
    "cnr": "Look at it: take another series, or leave the row out",
    "noise": "Look at it: take another series, or leave the row out",
    "bias": "data.volumes.bias_correction=n4 removes it",
    "ghosting": "Look at it: motion or flow; take another series, or leave the row out",
    "spike": "Look at it: a spike, an overflow, or a mask drawn into the image",
    "saturated": "Export it again with its full range of numbers",
    "middle": "Look at it beside the others: another sequence, a window, or an inverted image?",
    "filled": "Look at it: is it the right part of the body, and all of it?",
}


@dataclass(frozen=True)
class Remark:
    """grade: of GRADES. check: what found it. value: what was measured.

    text, value and remedy name no patient and no file; detail, which then says the same as text, may: for the site's eyes.
    """

    grade: str
    check: str
    rows: tuple[int, ...]
    text: str
    remedy: str
    value: str = ""
    detail: str = ""

    @property
    def told(self) -> str:
        """All of it, for this site's eyes."""
        return self.detail or (f"{self.text}: {self.value}" if self.value else self.text)


@dataclass
class Volume:
    """A volume that was measured. row: of the manifest. picture: a PNG; features: for `labels`."""

    study: Study
    modality: str
    row: int
    values: dict[str, float]
    reasons: dict[str, str]
    features: NDArray[np.float64]
    picture: bytes
    remarks: list[Remark] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """What may be sent on: no name."""
        return {"row": self.row, "modality": self.modality, "split": self.study.split,
                "values": {name: round(v, 6) for name, v in self.values.items()}, "not_measured": self.reasons}  # fmt: skip


def judge(volumes: Sequence[Volume], limits: Limits) -> None:
    """Append each volume's remarks to it."""
    groups: dict[str, list[Volume]] = {}
    for volume in volumes:
        groups.setdefault(volume.modality, []).append(volume)
    for measure in MEASURES:
        limit: Limit = getattr(limits, measure.name)
        for group in groups.values():
            measured = [v for v in group if measure.name in v.values]
            scores = outlying([v.values[measure.name] for v in measured], limits.outliers)
            for volume, score in zip(measured, scores, strict=True):
                volume.remarks += _remarks(
                    measure, limit, volume, float(score) if limit.outliers else 0.0, limits.outliers.score
                )
    for organ in dict.fromkeys(v.study.organ for v in volumes):
        _doubt([v for v in volumes if v.study.organ == organ], limits)


def _doubt(volumes: Sequence[Volume], limits: Limits) -> None:
    """Of one organ: append what speaks against a volume's name."""
    features, names = np.stack([v.features for v in volumes]), [v.modality for v in volumes]
    for doubt in doubts(features, names, [v.study.patient_id for v in volumes], limits.labels):
        volume, grade = volumes[doubt.place], "failed" if doubt.sure else "warning"
        text = f"Named {volume.modality}, looks like {doubt.looks_like}"
        remedy = "Look at it beside others of both, and correct the modality in the manifest, or leave it"
        volume.remarks.append(Remark(grade, "label", (volume.row,), text, remedy))


def outlying(values: Iterable[float], limits: Outliers) -> NDArray[np.float64]:
    """Robust z-scores: (value - median) / (1.4826 MAD), 0 of too few.

    Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993.
    """
    row = np.array(list(values), np.float64)
    if len(row) < limits.least:
        return np.zeros(len(row))
    away = row - np.median(row)
    spread = max(_TO_NORMAL * float(np.median(np.abs(away))), limits.spread * abs(float(np.median(row))), 1e-9)
    return away / spread


def _remarks(measure: Measure, limit: Limit, volume: Volume, score: float, far: float) -> list[Remark]:
    """At most one: the worst that the value is."""
    value = volume.values[measure.name]
    sign = 1 if measure.bad == "high" else -1
    title, remedy = measure.title[0].upper() + measure.title[1:], _REMEDIES[measure.name]
    said = f"{value:.3g}{measure.unit and ' ' + measure.unit}"
    for grade in GRADES:
        bound = getattr(limit, grade)
        if bound is not None and sign * (value - bound) > 0:
            text = f"{title} {'above' if sign > 0 else 'below'} {bound:g}"
            return [Remark(grade, measure.name, (volume.row,), text, remedy, said)]
    bad = abs(score) if measure.bad == "either" else sign * score
    if bad > far:
        text = f"{title} far from the site's other {volume.modality}"
        return [Remark("warning", measure.name, (volume.row,), text, remedy, f"{said}, {abs(score):.0f} deviations")]
    return []
