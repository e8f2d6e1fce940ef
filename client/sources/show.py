"""What was found, on the screen of whoever typed `medmap-client ingest`: counts, problems with remedies, notes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.text import Text

from client.check import counted, problem_table, summary
from client.manifest import OPTIONAL, REQUIRED, Manifest, Study, split_of
from client.sources.found import Found
from medmap_model.vocabulary import Vocabulary


def as_manifest(found: Found, path: Path) -> Manifest:
    """The studies that a manifest of these rows would hold."""
    studies = []
    for (patient, name), rows in found.studies().items():
        first = rows[0]
        studies.append(
            Study(
                patient_id=patient,
                study_id=name,
                organ=first.organ,
                abnormality=first.abnormality or None,
                report=next((row.report for row in rows if row.report), None),
                split=first.split or split_of(patient),
                site=first.site or None,
                images={row.modality: row.image for row in rows},
                mask=next((row.mask for row in rows if row.mask), None),
                spacings={row.modality: row.spacing_mm for row in rows if row.spacing_mm},
                report_source=next((row.report_source for row in rows if row.report), None) or None,
            )
        )
    ignored = sorted({name for row in found.rows for name in row.extra} - set(REQUIRED + OPTIONAL))
    return Manifest(path, tuple(studies), tuple(ignored))


def show(found: Found, vocabulary: Vocabulary, source: Path, written: Path | None, console: Console) -> None:
    """Print it all. written: the manifest, or None for a dry run."""
    if found.problems:
        console.print(problem_table(found.problems))
        console.print()
    manifest = as_manifest(found, source)
    if manifest.studies:
        for part in summary(manifest, vocabulary):
            console.print(part)
        volumes = Counter(row.modality for row in found.rows)
        order = [*vocabulary.modalities]
        console.print(Text("Volumes: " + ", ".join(f"{m} {volumes[m]}" for m in order if volumes[m])))
        sites = Counter(site for _, site in {(row.patient_id, row.site) for row in found.rows} if site)
        if sites:
            console.print(Text("Patients per site: " + ", ".join(f"{site} {n}" for site, n in sorted(sites.items()))))
        if not any(row.split for row in found.rows):
            console.print(Text("Splits are by a hash of the patient: the column split stays empty."))
    if found.notes:
        console.print()
        console.print(Text("To know", "bold"))
        for note in found.notes:
            console.print(Text(f"- {note}"))
    console.print()
    if not manifest.studies:
        console.print(Text(f"{source} holds nothing of this source's layout.", "bold red"))
    elif written is None:
        console.print(Text("A dry run: no manifest was written. Give -o manifest.csv to write.", "bold"))
    else:
        said = f"{written} holds {counted(len(found.rows), 'volume')}. Next: medmap-client check {written}"
        console.print(Text(said, "bold green"))
