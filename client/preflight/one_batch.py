"""What the dry run's own process does: a folder with a few patients' manifest and task.json in, result.json out.

It trains as a round does (client.site, client.training), for one batch of each stage, and forgets the model. Under privacy the
checks and the step of a private round run on made-up patients. No ledger is opened.
"""

from __future__ import annotations

import itertools
import json
import resource
import sys
import time
import traceback
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from client.policy import read_site
from client.problems import DataError, SiteError
from configs import from_json, to_json
from configs.schema import Config
from configs.setting import ConfigError
from medmap_model.contract import STAGES, Task

if TYPE_CHECKING:
    from client.records import SiteRecords
    from client.site import Site
    from medmap_model.batch import Batch

_NOISE = 1.0  # where none is solved yet: the time of a step does not depend on it


class FirstBatch:
    """A site's records of which a pass has one batch."""

    def __init__(self, records: SiteRecords) -> None:
        self.records = records

    def train_batches(self, **options: Any) -> Iterator[Batch]:
        """The first batch of `SiteRecords.train_batches`."""
        return itertools.islice(self.records.train_batches(**options), 1)


class MadeUp:
    """As many made-up patients as a batch holds, in a site's place."""

    def __init__(self, site: Site, patients: int) -> None:
        self.site, self.count = site, patients

    def patients(self, split: str) -> int:
        """As `SiteRecords.patients`."""
        return self.count

    def batches_of(self, drawn: Sequence[int], **options: Any) -> Iterator[Batch]:
        """One batch of those drawn; each has every modality of the first organ."""
        from client.privacy.synthetic import synthetic_batch

        config, organ = self.site.config, next(iter(self.site.vocabulary.organs))
        size, negatives = config.data.volumes.size, config.stage.pretrain.hard_negatives
        yield synthetic_batch(self.site.trainer.model, organ, patients=len(drawn), size=size, negatives=negatives)


def one_batch(folder: Path) -> dict[str, Any]:
    """Seconds of each part, memory, device, patients of a batch. Raises what training raises."""
    import torch

    from client.site import open_site
    from medmap_model.groups import owned

    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    config = _once(from_json(task["config"]))
    begun = time.monotonic()
    own = read_site(Path(task["site_yaml"]))
    site = open_site(to_json(config), own.name, (folder / "manifest.csv",), own.cache_dir, own.privacy)
    seconds = {"opening": time.monotonic() - begun}
    counts, few = site.records.counts("train"), cast("SiteRecords", FirstBatch(site.records))
    told: dict[str, Any] = {"device": site.trainer.device.type, "gpu_memory_mb": None, "seconds": seconds}
    for stage in STAGES:
        if not getattr(config.stage, stage).rounds:
            continue
        begun = time.monotonic()
        job, groups = Task(stage, 0, 1, config.seed, run="check"), owned(site.vocabulary, *counts, stage, site.trunks)
        figures = site.trainer.train(few, job, groups, site=own.name)
        told["patients"] = figures.studies
        seconds[stage] = time.monotonic() - begun
        if config.privacy.kind == "patient_dp":
            begun = time.monotonic()
            _private_step(site, job, groups, patients=figures.studies or 2)
            seconds[f"private {stage}"] = time.monotonic() - begun
        if site.trainer.device.type == "cuda":  # `train` counts from its own start on
            peak_mb = torch.cuda.max_memory_allocated(site.trainer.device) / 2**20
            told["gpu_memory_mb"] = max(told["gpu_memory_mb"] or 0.0, peak_mb)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told["memory_mb"] = peak / (2**20 if sys.platform == "darwin" else 2**10)
    return told


def _once(config: Config) -> Config:
    """The same settings with one pass a round, or one private step with everybody in it, and noise where none is solved yet."""
    stage, privacy = config.stage, config.privacy
    return replace(
        config,
        stage=replace(stage, pretrain=replace(stage.pretrain, epochs=1), finetune=replace(stage.finetune, epochs=1)),
        privacy=replace(privacy, steps=1, sample_rate=1.0, noise_multiplier=privacy.noise_multiplier or _NOISE),
    )


def _private_step(site: Site, job: Task, groups: Collection[str], *, patients: int) -> None:
    """What a private round checks before it charges, and one of its steps."""
    from client.privacy.checks import check_once, check_settings
    from client.privacy.training import PrivateTrainer

    check_settings(site.config)
    check_once(site.trainer.model, site.config, run=job.run, stage=job.stage, organs=tuple(site.vocabulary.organs))
    PrivateTrainer(site.trainer).train(cast("SiteRecords", MadeUp(site, patients)), job, groups)


def main() -> int:
    """`python -m client.preflight.one_batch FOLDER`: 0 done, 1 what ended it stands in result.json."""
    folder = Path(sys.argv[1])
    try:
        told = one_batch(folder)
    except Exception as error:
        expected = isinstance(error, ConfigError | SiteError | DataError)
        told = {"error": type(error).__name__, "text": str(error), "expected": expected}
        traceback.print_exc()
    (folder / "result.json").write_text(json.dumps(told), encoding="utf-8")
    return int("error" in told)


if __name__ == "__main__":
    sys.exit(main())
