"""The MedMoM-MRI3D phantom: simulated brain and liver MRI of virtual hospitals, written as NIfTI, manifest and reports.

grid, anatomy      where is sampled; how a patient differs from the template
brain, abdomen     the two templates: tissue shares or labels, places and their names
lesions, tissues   what a lesion of each kind looks like; relaxation times, contrast agent, protocols
physics, scanners, acquisition    signal equations; machines; bias, blur, slices, noise
findings, reports, wording        what can be measured in the result, and how it is told
study, dataset, nifti, kinds      one study; all of them on disk
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from simulation.phantom.kinds import KINDS, PhantomError

if TYPE_CHECKING:
    from configs.schema import PhantomConfig
    from medmap_model.vocabulary import Vocabulary
    from simulation.sites import SiteSpec

__all__ = ["KINDS", "PhantomError", "generate"]


def generate(
    specs: list[SiteSpec],
    config: PhantomConfig,
    vocabulary: Vocabulary,
    folder: Path,
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the hospitals' data below `folder` and return it.

    A complete data set of the same specs, config, vocabulary and seed is used as it is; a half-written one is
    completed. The files do not depend on the number of workers. `progress(done, total)` counts patients. Raises
    PhantomError, one line, where `folder` holds anything else or the phantom cannot simulate what is asked.
    """
    from simulation.phantom.dataset import write_dataset

    return write_dataset(specs, config, vocabulary, Path(folder), seed=seed, progress=progress)
