"""One small finished run for the tests of what is done with a model: real rounds, predictions and summary, trained once."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path

from client.site import SiteEntry
from configs import load_vocabulary
from configs.schema import Config
from simulation.comparison import compare
from simulation.conditions import Hospital, jobs, run_job
from tests.conftest import small_config, write_hospital

OVERRIDES = ("baselines=[]", "evaluation=none", "seed=3")


def config(*overrides: str) -> Config:
    return small_config(*OVERRIDES, *overrides)


@functools.cache
def trained_run(*overrides: str) -> Path:
    """The folder of a run of two brain hospitals: nobody has T1ce, nobody a liver. Do not change it: copy it."""
    root = Path(tempfile.mkdtemp(prefix="medmap-tests-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    settings, run = config(*overrides), root / "run"
    sites = {
        "east": write_hospital(root / "east", ["T1", "FLAIR"], patients=8),
        "west": write_hospital(root / "west", ["T2", "FLAIR"], patients=8),
    }
    hospitals = [Hospital(SiteEntry(name, (path,)), external=False) for name, path in sites.items()]
    [[job]] = jobs(settings, hospitals)
    done = run_job(job, hospitals, run, lambda event: None)
    compared = compare(run, ["federated"], hospitals, load_vocabulary("medmom"), bootstrap=20, seed=0)
    summary = {"schema_version": 1, "status": "completed", "privacy": None, "sites": done["sites"], **compared}
    (run / "summary.json").write_text(json.dumps(summary))
    return run


def manifest_of(run: Path, site: str) -> Path:
    """A site's manifest."""
    return run.parent / site / "manifest.csv"
