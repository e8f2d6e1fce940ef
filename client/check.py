"""What `medmap-client check` finds: a manifest in; a table of problems and a summary of a site's data out.

Nothing is written and nothing leaves the screen: problems name patients and files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import track
from rich.table import Table
from rich.text import Text

from client.manifest import SPLITS, Manifest, Study, scan_manifest
from client.problems import Problem
from configs.schema import VolumesConfig
from medmap_model.vocabulary import Vocabulary

_ROWS = 6  # row numbers shown of a problem that many rows share


@dataclass(frozen=True)
class SiteCheck:
    """What was found. `voxels_mm`: modality -> (smallest, largest voxel edge) -> volumes."""

    manifest: Manifest
    problems: list[Problem]
    voxels_mm: dict[str, Counter[tuple[float, float]]]
    padded: int


def check_site(
    path: Path, vocabulary: Vocabulary, config: VolumesConfig, *, headers_only: bool, console: Console
) -> SiteCheck:
    """Read the manifest and every volume of its sound rows. Raises ManifestError where no row can be understood."""
    manifest, problems = scan_manifest(path, vocabulary)
    voxels: dict[str, Counter[tuple[float, float]]] = {}
    padded = 0
    for study, found, grids in _opened(manifest.studies, config, headers_only, console):
        problems += found
        for modality, grid in grids.items():
            edges = (round(float(grid.spacing_mm.min()), 2), round(float(grid.spacing_mm.max()), 2))
            voxels.setdefault(modality, Counter())[edges] += 1
            reach = config.spacing_mm * (config.size - 1)
            padded += bool((grid.box_mm[1] - grid.box_mm[0]).min() < reach)
    problems.sort(key=lambda p: p.row or 0)
    return SiteCheck(manifest, problems, voxels, padded)
