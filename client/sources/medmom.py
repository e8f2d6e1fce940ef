"""MedMoM-MRI3D as its paper's counts suggest: LLD-MMRI for the liver, BraTS for the brain, IXI for brains without a tumour."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from client.sources import brats, ixi, lld_mmri
from client.sources.found import Found

_PAPER = {"liver": 498, "brain": 852}  # patients; 498 x 8 + 852 x 4 = 7392 volumes


def scan(
    lld: Path,
    brain: Path,
    *,
    healthy: Path | None = None,
    fold: int | None = None,
    masks: Path | None = None,
    force: bool = False,
) -> Found:
    """The parts under one another, each study with its data set in the column `source`. Raises SourceError.

    healthy: IXI's folder. fold, masks, force: as of LLD-MMRI.
    """
    others = {"brats": brats.scan(brain)}
    if healthy is not None:
        others["ixi"] = ixi.scan(healthy)
    # the last to be read, as it may write masks: not where another part cannot be read
    parts = {"lld-mmri": lld_mmri.scan(lld, fold=fold, masks=masks, force=force), **others}
    found = Found()
    for name, part in parts.items():
        found.rows += [replace(row, site=row.site or name, extra={**row.extra, "source": name}) for row in part.rows]
        found.problems += part.problems
        found.notes += [f"{name}: {note}" for note in part.notes]
    _compare(found, healthy is not None)
    return found


def _compare(found: Found, healthy: bool) -> None:
    """Say what is known of MedMoM-MRI3D, and what is not."""
    patients = {organ: {row.patient_id for row in found.rows if row.organ == organ} for organ in _PAPER}
    here = ", ".join(f"{organ} {len(patients[organ])} (paper {count})" for organ, count in _PAPER.items())
    found.notes += [
        f"Patients here: {here}. The paper's data set was not published: that its liver is LLD-MMRI is well supported "
        "(8 phases, 7 classes), that its brain is BraTS is likely, which BraTS has 852 patients is unknown.",
        "Unknown as well: the paper's splits, its reports (here there are none but what --reports makes), and what its two "
        "brain classes are. Numbers on this manifest cannot be compared with the paper's.",
    ]
    if not healthy:
        found.notes.append(
            "All brains here have a tumour, so the brain's label teaches nothing: --healthy takes IXI's folder."
        )
