"""What `medmap-client check` finds: a manifest in; a table of problems and a summary of a site's data out.

Nothing is written and nothing leaves the screen: problems name patients and files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from client.cache import read_files, workers_for
from client.grids import HEADER_BYTES, Grid, boxes_mm, spacings_mm, study_grids
from client.manifest import SPLITS, Manifest, Study, scan_manifest
from client.problems import Problem
from client.volumes import prepare
from configs.schema import VolumesConfig
from medmap_model.vocabulary import NONE, Vocabulary

_AT_ONCE = 64  # studies that a thread is given where only headers are read: handing over takes longer than a study
_RANGES = 6  # of row numbers, shown of a problem that many rows share
_LINES = 1000  # of a table of problems: nobody reads on, and 100,000 take a minute to draw


@dataclass
class SiteCheck:
    """What was found: problems of rows and of files, modality -> grids of the good volumes, and studies with these alone."""

    manifest: Manifest
    rows: list[Problem]
    files: list[Problem] = field(default_factory=list)
    grids: dict[str, list[Grid]] = field(default_factory=dict)
    usable: list[Study] = field(default_factory=list)


def check_site(
    path: Path, vocabulary: Vocabulary, config: VolumesConfig, *, headers_only: bool, progress: Console
) -> SiteCheck:
    """Read the manifest and the volumes of its sound rows. Raises ManifestError where no row can be understood."""
    found = SiteCheck(*scan_manifest(path, vocabulary))
    studies = found.manifest.studies
    # masks are opened as well; what takes long and changes nothing that is looked at is left out
    config = replace(config, crop="lesion", skull_strip="none", bias_correction="none", register="none")

    def opened(study: Study) -> tuple[list[Problem], dict[str, Grid]]:
        files = {**study.images, **({"mask": study.mask} if study.mask else {})}
        contents, findings = read_files(files, HEADER_BYTES if headers_only else -1)
        mask = contents.pop("mask", None)
        if headers_only:
            grids, _ = study_grids(contents, mask, findings, study.spacings)
        else:
            done = prepare(contents, mask, config, study.spacings)
            findings += done.findings
            known, _ = study_grids(contents, None, [], study.spacings)
            grids = {slot: grid for slot, grid in known.items() if slot in done.cubes}
        return [finding.at(study) for finding in findings], grids

    step = _AT_ONCE if headers_only else 1
    batches = [studies[i : i + step] for i in range(0, len(studies), step)]
    with workers_for(studies) as pool:
        results = chain.from_iterable(pool.map(lambda batch: [opened(study) for study in batch], batches))
        told = track(results, "Opening", len(studies), console=progress, transient=True)
        for study, (problems, grids) in zip(studies, told, strict=True):
            found.files += problems
            if grids:
                images = {modality: path for modality, path in study.images.items() if modality in grids}
                found.usable.append(study if len(images) == len(study.images) else replace(study, images=images))
            for modality, grid in grids.items():
                found.grids.setdefault(modality, []).append(grid)
    return found


def show(found: SiteCheck, vocabulary: Vocabulary, config: VolumesConfig, console: Console) -> None:
    """Print problems, summary and verdict."""
    problems = sorted(found.rows + found.files, key=lambda p: p.row or 0)
    if problems:
        console.print(problem_table(problems))
        console.print()
    if found.manifest.studies:
        for part in summary(found.manifest, vocabulary):
            console.print(part)
        console.print(_modalities(found, vocabulary, config))
    console.print()
    if found.rows:
        wanted = f"{counted(len(found.rows), 'problem')} in the manifest"
        console.print(Text(f"{wanted}: training does not start before they are mended.", "bold red"))
    if found.files:
        wanted = f"{counted(len(found.files), 'file')} cannot be used"
        policy = "training leaves them out, or stops if data.volumes.on_bad_volume=stop."
        console.print(Text(f"{wanted}: {policy}", "bold yellow"))
    if not problems:
        console.print(Text("No problems: training can start with this file.", "bold green"))


def problem_table(problems: Iterable[Problem]) -> Table:
    """A line per problem; rows that share it are named together. What comes after the first 1000 lines is counted."""
    groups: dict[tuple[str | None, str, str], list[int]] = {}
    for p in problems:
        groups.setdefault((p.column, p.problem, p.remedy), []).append(p.row or 0)
    table = Table(box=box.SIMPLE_HEAD, title="Problems", title_justify="left", title_style="bold", pad_edge=False)
    for name, ratio in (("row", None), ("column", None), ("problem", 3), ("what to do", 3)):
        table.add_column(name, ratio=ratio, overflow="fold")
    for (column, problem, remedy), rows in islice(groups.items(), _LINES):
        table.add_row(*map(Text, (row_ranges(rows), column or "", problem, remedy)))
    if left := Counter(column or "file" for column, _, _ in islice(groups, _LINES, None)):
        told = ", ".join(f"{column} {count:,}" for column, count in left.items())
        table.add_row(
            "", "", Text(f"And {left.total():,} problems more: {told}"), Text("Mend these first, then check again")
        )
    return table


def row_ranges(rows: list[int]) -> str:
    """2-5, 9, 12 and 40 more."""
    spans: list[list[int]] = []
    for row in sorted(set(rows) - {0}):
        if spans and row == spans[-1][1] + 1:
            spans[-1][1] = row
        else:
            spans.append([row, row])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans[:_RANGES])
    more = sum(b - a + 1 for a, b in spans[_RANGES:])
    return text + (f" and {more} more" if more else "")


def summary(manifest: Manifest, vocabulary: Vocabulary) -> Iterator[Table | Text]:
    """How many patients, studies and labels, as lines to print; nothing of files."""
    studies = manifest.studies
    patients = {study.patient_id: study.split for study in studies}
    share = [sum(1 for s in studies if value(s)) / len(studies) for value in (_report, _label, _mask)]
    yield Text(
        f"{counted(len(patients), 'patient')}, {counted(len(studies), 'study')}, "
        f"{counted(sum(len(s.images) for s in studies), 'volume')}. "
        f"Of the studies, {share[0]:.0%} have a report, {share[1]:.0%} an abnormality, {share[2]:.0%} a mask."
    )
    counts = Counter(patients.values())
    yield Text("Patients per split: " + ", ".join(f"{split} {counts[split]}" for split in SPLITS if counts[split]))
    if manifest.ignored:
        yield Text(f"Columns that are not used: {', '.join(manifest.ignored)}", "dim")
    organs = Table("organ", "studies", "abnormality", box=box.SIMPLE_HEAD, pad_edge=False)
    for organ in vocabulary.organs.values():
        of_organ = [study for study in studies if study.organ == organ.name]
        named = [organ.classes_of(s.abnormality) or (NONE,) if s.abnormality else ("not given",) for s in of_organ]
        labels = Counter(name for names in named for name in names)
        parts = [f"{name} {labels[name]}" for name in (*organ.abnormalities, NONE, "not given") if labels[name]]
        if of_organ:
            organs.add_row(organ.name, str(len(of_organ)), ", ".join(parts))
    yield organs


def _modalities(found: SiteCheck, vocabulary: Vocabulary, config: VolumesConfig) -> Table:
    reach = config.spacing_mm * config.size
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.caption = f"Prepared: {config.size} voxels of {config.spacing_mm:g} mm along each edge, {reach:g} mm."
    table.caption_justify = "left"
    for name in ("modality", "usable volumes", "voxel edges, mm", "resampled", "padded"):
        table.add_column(name, justify="left" if name == "modality" else "right")
    for modality in vocabulary.modalities:
        grids = found.grids.get(modality, [])
        if not grids:
            continue
        spacings, boxes = spacings_mm(grids), boxes_mm(grids)
        low, high = spacings.min(), spacings.max()
        other = (np.abs(spacings - config.spacing_mm).max(1) > 1e-3 * config.spacing_mm).sum()
        small = ((boxes[:, 1] - boxes[:, 0]).min(1) < reach * 0.999).sum()
        edges = f"{low:.3g}" if high - low < 0.005 else f"{low:.3g} to {high:.3g}"
        table.add_row(modality, str(len(grids)), edges, str(other), str(small))
    return table


def _report(study: Study) -> str | None:
    return study.report


def _label(study: Study) -> str | None:
    return study.abnormality


def _mask(study: Study) -> Path | None:
    return study.mask


def counted(n: int, noun: str) -> str:
    """1 study, 2 studies."""
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{n} {noun if n == 1 else plural}"
