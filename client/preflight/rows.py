"""A row of the preflight (what was checked, how it stands, what to do), and what all checks look at."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from client.check import SiteCheck, check_site
from client.manifest import Manifest, ManifestError, scan_manifest
from client.policy import SiteFile
from client.problems import Problem
from configs import load_vocabulary
from configs.schema import Config
from medmap_model.vocabulary import Vocabulary

if TYPE_CHECKING:
    from rich.console import Console

    from client.preflight.network import Answer, Unreachable

GB = 1e9
_SHOWN = 5  # of details that many rows of a manifest share


@dataclass(frozen=True)
class Row:
    """What one check says. result: one of ok, warning, failed, skipped.

    found and remedy name no patient, no file of a volume and no folder, since `--json` may be sent on; details may: they are
    for this screen alone.
    """

    result: str
    found: str
    remedy: str = ""
    details: tuple[str, ...] = ()
    check: str = ""


@dataclass
class Subject:
    """A site as it is checked. path: of its site.yaml; kit: None where there is none; config: a run's settings; progress: where
    bars are drawn."""

    path: Path
    site: SiteFile
    kit: Path | None
    config: Config
    progress: Console
    headers_only: bool = False
    answer: Answer | Unreachable | None = None  # the server's, once it was asked

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """Of the run's settings."""
        return load_vocabulary(self.config.data.vocabulary)

    @functools.cached_property
    def scanned(self) -> tuple[Manifest, list[Problem]]:
        """The manifest's sound part and the problems of its rows; no file that it names is opened. Raises ManifestError."""
        return scan_manifest(self.site.manifest, self.vocabulary, check_files=False)

    @functools.cached_property
    def checked(self) -> SiteCheck:
        """The manifest and its volumes, every one opened. Raises ManifestError."""
        return check_site(
            self.site.manifest, self.vocabulary, self.config.data.volumes, headers_only=self.headers_only,
            progress=self.progress,
        )  # fmt: skip

    @functools.cached_property
    def volumes(self) -> int:
        """How many volumes the manifest's sound rows name; 0 where no row can be understood."""
        try:
            return sum(len(study.images) for study in self.scanned[0].studies)
        except ManifestError:
            return 0

    @property
    def cube_bytes(self) -> int:
        """Of all prepared volumes: float16 (client/cache.py)."""
        return self.volumes * self.config.data.volumes.size**3 * 2


def shown(lines: Iterable[object], more: str = "") -> tuple[str, ...]:
    """The first of many lines, how many more there are, and what command tells them."""
    texts = [str(line) for line in lines]
    left = len(texts) - _SHOWN
    return (*texts[:_SHOWN], f"and {left} more" + (f": {more}" if more else "")) if left > 0 else tuple(texts)


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
