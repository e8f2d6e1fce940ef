"""Who has what, before anything trains: hospitals in; counts per site, organ, abnormality and modality out.

The counts (`server.report.partition` has their layout) become a table, partition.json and partition.png.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from client.manifest import SPLITS, read_manifest
from configs.setting import ConfigError
from medmap_model.vocabulary import Vocabulary
from server.files import write_json

if TYPE_CHECKING:
    from simulation.conditions import Hospital
    from simulation.sites import SiteSpec

PICTURE = "partition.png"
UNKNOWN = "not known"


class Study(NamedTuple):
    """What the census counts of one study."""

    patient: str
    split: str
    organ: str
    abnormality: str | None
    modalities: Sequence[str]
    reported: bool


def of_hospitals(hospitals: Sequence[Hospital], vocabulary: Vocabulary) -> dict[str, Any]:
    """From the hospitals' manifests. Raises ManifestError."""
    sites = []
    for hospital in hospitals:
        studies = [
            Study(s.patient_id, s.split, s.organ, s.abnormality, tuple(s.images), bool(s.report))
            for path in hospital.entry.manifests
            for s in read_manifest(path, vocabulary, check_files=False).studies
        ]
        sites.append(_site(hospital.entry.name, studies, vocabulary, external=hospital.external))
    return _census(sites, vocabulary)


def of_plan(specs: Sequence[SiteSpec], vocabulary: Vocabulary, *, seed: int) -> dict[str, Any]:
    """From the plan of a phantom: the very patients that it would simulate, without simulating them."""
    from simulation.phantom.kinds import KINDS
    from simulation.phantom.plan import cases_of, check_specs

    check_specs(specs, vocabulary)
    sites = []
    for spec in specs:
        studies = [
            Study(c.patient_id, c.split, c.organ, KINDS[c.organ][c.kind], c.modalities, c.reported)
            for c in cases_of(spec, seed)
        ]
        sites.append(_site(spec.name, studies, vocabulary, external=spec.external))
    return _census(sites, vocabulary)


def write_census(told: dict[str, Any], folder: Path) -> dict[str, Any]:
    """partition.json and partition.png in a folder; returns what it was given. Raises ConfigError where nobody trains."""
    from matplotlib import rc_context

    from server.report.figures import STYLE
    from server.report.partition import partition_figure

    if not any(site["organs"] for site in told["sites"] if not site["external"]):
        raise ConfigError("no patient of the partition trains: give some the split train, or leave the column empty")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "partition.json", told)
    with rc_context(STYLE):
        partition_figure(told).savefig(folder / PICTURE, dpi=110)
    return told


def print_census(told: dict[str, Any]) -> None:
    """Tables on the screen, a row per site: all patients; and of each organ those who train."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False)  # names are a user's, and may look like markup

    def called(site: dict[str, Any]) -> str:
        return f"{site['name']} (test)" if site["external"] else str(site["name"])

    def show(title: str, columns: Sequence[str], rows: Iterable[tuple[dict[str, Any], Sequence[Any]]]) -> None:
        console.print(title, style="bold")
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("site", no_wrap=True)
        for name in columns:
            table.add_column(name.replace("_", " "), justify="right", no_wrap=True)
        for site, cells in rows:
            table.add_row(called(site), *(str(cell or "-") for cell in cells))
        console.print(table)

    sites = told["sites"]
    show("patients", (*SPLITS, "reports"), [(s, (*s["patients"].values(), s["reports"])) for s in sites])
    for organ, names in told["organs"].items():
        rows, lacking = [], dict[str, list[str]]()
        for site in (s for s in sites if organ in s["organs"]):
            own = site["organs"][organ]
            rows.append((site, [own["labels"].get(label, 0) for label in names["labels"]]))
            lacks = [m for m in names["modalities"] if m not in own["modalities"]]
            lacking.setdefault(", ".join(lacks), []).append(called(site))
        show(f"{organ}: patients who train", names["labels"], rows)
        for lacks_these, who in lacking.items():
            if lacks_these:
                console.print(f"without {lacks_these}: {', '.join(who)}")
        console.print()


def _census(sites: list[dict[str, Any]], vocabulary: Vocabulary) -> dict[str, Any]:
    """The sites, and the organs, labels and modalities that any of them has, in the vocabulary's order."""
    organs = {}
    for name, organ in vocabulary.organs.items():
        own = [s["organs"][name] for s in sites if name in s["organs"]]
        labels = [c for c in (*organ.abnormalities, UNKNOWN) if any(c in o["labels"] for o in own)]
        modalities = [m for m in organ.modalities if any(m in o["modalities"] for o in own)]
        if own:
            organs[name] = {"labels": labels, "modalities": modalities}
    return {"organs": organs, "sites": sites}


def _site(name: str, studies: Iterable[Study], vocabulary: Vocabulary, *, external: bool) -> dict[str, Any]:
    """One site's counts of patients, each counted once per organ, by the last study of it."""
    last = {(s.patient, s.organ): s for s in studies}
    split_of = {s.patient: s.split for s in last.values()}
    counted = [s for s in last.values() if s.split == ("test" if external else "train")]
    organs: dict[str, Any] = {}
    for organ in vocabulary.organs.values():
        own = [s for s in counted if s.organ == organ.name]
        if not own:
            continue
        known = [organ.classes_of(s.abnormality) if s.abnormality else (UNKNOWN,) for s in own]
        organs[organ.name] = {
            "patients": len(own),
            "labels": dict(Counter(label for labels in known for label in labels)),
            "modalities": dict(Counter(m for s in own for m in s.modalities)),
        }
    return {
        "name": name,
        "external": external,
        "patients": {split: sum(own == split for own in split_of.values()) for split in SPLITS},
        "reports": len({s.patient for s in counted if s.reported}),
        "organs": organs,
    }
