"""IXI (about 600 healthy volunteers, three London hospitals): IXI<id>-<hospital>-<number>-<MOD>.nii.gz in any folders."""

from __future__ import annotations

import re
from pathlib import Path

from client.sources.files import stem, volumes
from client.sources.found import Found, Row

_NAME = re.compile(r"(IXI\d+)-(Guys|HH|IOP)-(\d+)-([A-Za-z0-9]+)(?:-\d+)?", re.IGNORECASE)
_SITES = {"guys": "Guys", "hh": "HH", "iop": "IOP"}


def scan(root: Path) -> Found:
    """Volumes by their names: patient IXI<id>, site by hospital, brain, no tumour. Raises SourceError."""
    found, strange, directions = Found(), 0, 0
    for name, path in volumes(root, found):
        match = _NAME.fullmatch(stem(name))
        if not match:
            strange += 1
            continue
        patient, hospital, number, modality = match.groups()
        if modality.upper() == "DTI":
            directions += 1
            continue
        found.rows.append(
            Row(
                patient_id=patient.upper(),
                study_id=f"{patient.upper()}-{number}",
                modality=modality.upper(),
                image=path,
                organ="brain",
                abnormality="no_tumour",
                site=_SITES[hospital.lower()],
            )
        )
    if directions:
        found.notes.append(f"DTI volumes left out, as single directions of a diffusion series: {directions}.")
    if strange:
        found.notes.append(f"NIfTI files left out, as they are not named as IXI's: {strange}.")
    found.notes.append("no_tumour says that IXI's volunteers were healthy; no radiologist's report comes with them.")
    found.notes.append(
        "The three hospitals have scanners of their own: Guys Philips 1.5 T, HH Philips 3 T, IOP GE 1.5 T."
    )
    return found
