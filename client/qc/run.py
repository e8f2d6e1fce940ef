"""A manifest in, everything that its volumes show out; each file is read once for the measures and once for duplicates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from client.cache import read_files, workers_for
from client.grids import Finding, VolumeError, study_grids
from client.manifest import Manifest, Study, scan_manifest
from client.preflight.data import leaking_rows, same_voxels, spread, told_same
from client.problems import Problem
from client.qc.features import features_of
from client.qc.limits import Limits
from client.qc.measures import MEASURES, measure
from client.qc.regions import Regions
from client.qc.remarks import GRADES, Remark, Volume, judge
from client.qc.thumbnails import thumbnail
from client.volumes import Intensity, load
from medmap_model.vocabulary import Vocabulary

_CLIP = (0.5, 99.5)  # percentiles: as training's default


@dataclass
class Quality:
    """All that was found. general: remarks on rows, files and pairs of volumes; the volumes hold their own."""

    manifest: Manifest
    volumes: list[Volume] = field(default_factory=list)
    general: list[Remark] = field(default_factory=list)

    @property
    def remarks(self) -> list[Remark]:
        """All, failures first, then by row."""
        found = self.general + [remark for volume in self.volumes for remark in volume.remarks]
        return sorted(found, key=lambda r: (GRADES.index(r.grade), r.rows))

    def count(self, grade: str) -> int:
        """How many remarks have the grade."""
        return sum(remark.grade == grade for remark in self.remarks)

    def as_dict(self) -> dict[str, Any]:
        """What may be sent on: rows, numbers and words; no patient, no file, no picture."""
        return {
            "counts": {grade: self.count(grade) for grade in GRADES} | {"volumes": len(self.volumes)},
            "remarks": [
                {
                    "grade": r.grade,
                    "check": r.check,
                    "rows": list(r.rows),
                    "found": r.text,
                    "value": r.value,
                    "remedy": r.remedy,
                }
                for r in self.remarks
            ],
            "measures": {m.name: {"title": m.title, "unit": m.unit, "bad": m.bad} for m in MEASURES},
            "volumes": [volume.as_dict() for volume in self.volumes],
        }


def examine(path: Path, vocabulary: Vocabulary, limits: Limits, *, progress: Console) -> Quality:
    """Read and measure every volume of the manifest's sound rows. Raises ManifestError where no row can be understood."""
    manifest, problems = scan_manifest(path, vocabulary)
    found = Quality(manifest)
    leaks = leaking_rows(problems)
    found.general += [_of_row(problem, leaking=problem in leaks) for problem in problems]
    studies = manifest.studies
    with workers_for(studies) as pool:
        results = track(pool.map(_study, studies), "Measuring", len(studies), console=progress, transient=True)
        for study, (volumes, findings) in zip(studies, results, strict=True):
            found.volumes += volumes
            found.general += [_of_file(finding, study) for finding in findings]
    found.general += _duplicates(studies, progress)
    judge(found.volumes, limits)
    return found


def _study(study: Study) -> tuple[list[Volume], list[Finding]]:
    contents, findings = read_files(study.images)
    grids, _ = study_grids(contents, None, findings, study.spacings)
    volumes = []
    for modality, stored in grids.items():
        try:
            grid, data = load(contents[modality], stored)
            regions = Regions(grid, data, Intensity.of(data, _CLIP))
        except VolumeError as error:
            findings.append(Finding(modality, error.problem, error.remedy))
            continue
        values, reasons = measure(regions)
        picture = thumbnail(grid, data, regions.intensity)
        volumes.append(Volume(study, modality, study.rows[modality], values, reasons, features_of(regions), picture))
    return volumes, findings


def _of_row(problem: Problem, *, leaking: bool) -> Remark:
    check, text = "manifest", f"A problem in the column {problem.column}" if problem.column else "A problem in the file"
    if leaking:
        check, text = "leakage", f"A patient who has another {problem.column} in another row"
    said = f"{problem.problem}. {problem.remedy}"
    return Remark("failed", check, (problem.row or 0,), text, "Mend the row, as medmap-client check says", detail=said)


def _of_file(finding: Finding, study: Study) -> Remark:
    place = finding.at(study)
    return Remark(
        "failed", "file", (place.row or 0,), f"{finding.slot}: {finding.problem}", finding.remedy, detail=place.problem
    )


def _duplicates(studies: Sequence[Study], progress: Console) -> Iterator[Remark]:
    for group in same_voxels(studies, progress):
        splits, patients = spread(group)
        rows = tuple(sorted(study.rows[modality] for study, modality in group))
        where = "in two splits" if splits > 1 else "under two patients" if patients > 1 else "twice with one patient"
        remedy = (
            "One person needs one patient_id; if it is not the same person, export the series again"
            if patients > 1
            else "Correct the path or the modality of one of the rows"
        )
        grade = "failed" if patients > 1 else "warning"
        yield Remark(grade, "duplicates", rows, f"The same image {where}", remedy, detail=told_same(group))
