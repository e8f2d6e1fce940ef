"""All studies of all hospitals on disk: site specs in; NIfTI files, manifests, ground truth of every patient out.

    folder/dataset.json             what this is; written last, so its presence means complete
    folder/manifest.csv, cases.csv  all sites: a row per volume; a row per patient with what is true of it
    folder/SITE/manifest.csv        the same of one site; its presence means the site is complete
    folder/SITE/PATIENT/MODALITY.nii.gz, mask.nii.gz

Patients are simulated side by side and written as they come; nothing is kept in memory but one study per process.
"""

from __future__ import annotations

import csv
import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.schema import PhantomConfig
from medmap_model.vocabulary import Vocabulary
from simulation.phantom import nifti
from simulation.phantom.kinds import KINDS, PhantomError
from simulation.phantom.plan import cases_of, check_specs
from simulation.phantom.scanners import scanner
from simulation.phantom.study import Case, Study, make_study
from simulation.sites import OrganShare, SiteSpec

# Part of every data set's identity: raise it when the same settings no longer give the same files.
VERSION = 1
STATEMENT = "All data in this folder are SIMULATED (phantom): no scan, mask or report is of a real patient."
ROW = ("patient_id", "study_id", "modality", "image", "organ", "abnormality", "report", "mask", "site", "split")
TRUTH = (
    "patient_id", "site", "split", "organ", "kind", "abnormality", "decoy", "scanner", "external", "modalities",
    "reported", "view_x_mm", "view_y_mm", "view_z_mm", "lesions", "lesion_x_mm", "lesion_y_mm", "lesion_z_mm",
    "long_mm", "short_mm", "side", "place", "mass_voxels", "reaction_voxels",
)  # fmt: skip
Progress = Callable[[int, int], None]
Rows = tuple[list[dict[str, Any]], dict[str, Any]]


def write_dataset(
    specs: Sequence[SiteSpec],
    config: PhantomConfig,
    vocabulary: Vocabulary,
    folder: Path,
    *,
    seed: int,
    progress: Progress | None = None,
) -> Path:
    """`simulation.phantom.generate`, with its docstring."""
    check_specs(specs, vocabulary)
    spec = _spec(specs, config, vocabulary, seed)
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if _claim(folder, digest):
            return folder
        total, done = sum(sum(_counts(share).values()) for s in specs for share in s.organs.values()), 0
        with ExitStack() as stack:
            mapper = _mapper(stack, min(config.workers, total))
            for site in specs:
                cases = list(cases_of(site, seed))
                if (folder / site.name / "manifest.csv").exists():
                    done += len(cases)
                    continue
                (folder / site.name).mkdir(exist_ok=True)
                jobs = [Job(case, config, folder / site.name, seed, site.external) for case in cases]
                with _tables(folder / site.name) as (rows, truths):
                    for volumes, truth in mapper(write_patient, jobs):
                        rows.writerows(volumes)
                        truths.writerow(truth)
                        done += 1
                        if progress:
                            progress(done, total)
        _join(folder, specs)
        record = {
            "schema_version": 1, "statement": STATEMENT, "spec_hash": digest, "seed": seed, **spec,
            "sites": [_describe(s, config) for s in specs],
        }  # fmt: skip
        _put(folder / "dataset.json", json.dumps(record, indent=1) + "\n")
        (folder / "unfinished.json").unlink()
    return folder


@dataclass(frozen=True)
class Job:
    """One patient to write below `folder`."""

    case: Case
    config: PhantomConfig
    folder: Path
    seed: int
    external: bool


def write_patient(job: Job) -> Rows:
    """Simulate one patient and write the files; the rows of the two tables."""
    case = job.case
    study = make_study(case, job.config, seed=job.seed)
    folder = job.folder / case.patient_id
    folder.mkdir(exist_ok=True)
    head = nifti.header(study.grid, "int16")
    for modality, volume in study.volumes.items():
        data = nifti.encode_volume(volume, study.gains[modality], head)
        (folder / f"{modality}.nii.gz").write_bytes(data)
    (folder / "mask.nii.gz").write_bytes(nifti.encode_mask(study.mask, nifti.header(study.grid, "uint8")))
    common = {
        "patient_id": case.patient_id,
        "study_id": f"{case.patient_id}-mr1",
        "organ": case.organ,
        "abnormality": KINDS[case.organ][case.kind],
        "report": study.report,
        "mask": f"{case.patient_id}/mask.nii.gz",
        "site": case.site,
        "split": case.split,
    }
    rows = [{**common, "modality": m, "image": f"{case.patient_id}/{m}.nii.gz"} for m in study.volumes]
    return rows, _truth(case, study, job.external)


def _truth(case: Case, study: Study, external: bool) -> dict[str, Any]:
    """What is true of one patient, measured where it can be."""
    f = study.findings
    places = {f"view_{a}_mm": round(v, 2) for a, v in zip("xyz", study.grid.centre_mm, strict=True)}
    if f.centre_mm:
        places |= {f"lesion_{a}_mm": round(v, 2) for a, v in zip("xyz", f.centre_mm, strict=True)}
    return {
        "patient_id": case.patient_id, "site": case.site, "split": case.split, "organ": case.organ,
        "kind": case.kind, "abnormality": KINDS[case.organ][case.kind], "decoy": case.decoy, "scanner": case.scanner,
        "external": int(external), "modalities": " ".join(case.modalities), "reported": int(case.reported), **places,
        "lesions": f.count, "long_mm": round(f.long_mm, 1), "short_mm": round(f.short_mm, 1), "side": f.side,
        "place": f.place, "mass_voxels": int((study.mask == 1).sum()), "reaction_voxels": int((study.mask == 2).sum()),
    }  # fmt: skip


def _mapper(stack: ExitStack, workers: int) -> Callable[..., Iterator[Rows]]:
    """A `map` that yields in order: in this process, or over processes that start clean."""
    if workers < 2:
        return map
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload(["simulation.phantom.dataset"])
    pool = ProcessPoolExecutor(workers, context, initializer=_ignore_interrupts)
    stack.callback(pool.shutdown, cancel_futures=True)

    def in_order(function: Callable[[Job], Rows], jobs: Sequence[Job]) -> Iterator[Rows]:
        try:
            yield from pool.map(function, jobs, chunksize=4)
        except BrokenProcessPool:
            raise PhantomError(
                "a process that simulates patients was killed, most likely for want of memory: "
                f"take fewer than data.phantom.workers={workers}, and start again to go on"
            ) from None

    return in_order


def _ignore_interrupts() -> None:
    """Ctrl-C is the parent's business: it lets the processes finish what they are at."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _spec(specs: Sequence[SiteSpec], config: PhantomConfig, vocabulary: Vocabulary, seed: int) -> dict[str, Any]:
    """Everything that the files depend on, JSON-safe. Workers are not part of it."""
    phantom = asdict(config)
    phantom.pop("workers")
    sites = [
        {**asdict(s), "organs": {k: {**asdict(v), "mix": dict(v.mix)} for k, v in s.organs.items()}} for s in specs
    ]
    plain: dict[str, Any] = json.loads(
        json.dumps({"version": VERSION, "phantom": phantom, "vocabulary": vocabulary.hash, "seed": seed, "plan": sites})
    )
    return plain


def _counts(share: OrganShare) -> dict[str, int]:
    return {"train": share.train, "val": share.val, "test": share.test, "common": share.common}


def _describe(site: SiteSpec, config: PhantomConfig) -> dict[str, Any]:
    """A hospital as `dataset.json` tells it."""
    return {
        "name": site.name,
        "scanner": site.scanner,
        "settings": asdict(scanner(site.scanner, config.scanner_strength)),
        "external": site.external,
        "organs": {organ: list(share.modalities) for organ, share in site.organs.items()},
        "patients": {organ: _counts(share) for organ, share in site.organs.items()},
    }


def _claim(folder: Path, digest: str) -> bool:
    """True: complete already. False: ours to write. PhantomError: the folder is something else's."""
    for name, complete in (("dataset.json", True), ("unfinished.json", False)):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))["spec_hash"]
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError):
            found = None
        if found == digest:
            return complete
        what = "a phantom of other settings" if complete else "an unfinished phantom of other settings"
        raise PhantomError(f"{folder} holds {what}: delete it or choose another folder")
    if any(path.name != ".lock" for path in folder.iterdir()):
        raise PhantomError(f"{folder} holds other files: choose an empty folder for the phantom")
    _put(folder / "unfinished.json", json.dumps({"spec_hash": digest}) + "\n")
    return False


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time writes a folder; a second waits, and then finds it complete."""
    with (folder / ".lock").open("w") as handle:
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)  # released by the system when the process ends, however it ends
        except ImportError:  # no such lock on Windows
            pass
        yield


@contextmanager
def _tables(folder: Path) -> Iterator[tuple[csv.DictWriter[str], csv.DictWriter[str]]]:
    """Writers of a site's two tables, which appear under their names when the site is complete, the manifest last."""
    with ExitStack() as stack:
        writers = []
        for name, columns in (("manifest", ROW), ("cases", TRUTH)):
            handle = stack.enter_context((folder / f"{name}.part").open("w", newline="", encoding="utf-8"))
            writers.append(csv.DictWriter(handle, columns, lineterminator="\n"))
            writers[-1].writeheader()
        yield writers[0], writers[1]
    for name in ("cases", "manifest"):
        os.replace(folder / f"{name}.part", folder / f"{name}.csv")


def _join(folder: Path, specs: Sequence[SiteSpec]) -> None:
    """The two tables of all sites."""
    with _tables(folder) as (rows, truths):
        for site in specs:
            with (folder / site.name / "manifest.csv").open(newline="", encoding="utf-8") as handle:
                for row in csv.DictReader(handle):
                    paths: Mapping[str, str] = {k: f"{site.name}/{row[k]}" for k in ("image", "mask")}
                    rows.writerow({**row, **paths})
            with (folder / site.name / "cases.csv").open(newline="", encoding="utf-8") as handle:
                truths.writerows(csv.DictReader(handle))


def _put(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
