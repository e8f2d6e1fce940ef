"""What a language model makes of the phantom's measurements: how many of its texts are used, and what these tell.

    python -m benchmarks.language                    # SmolLM2 (docs/data.md says what to install); five minutes of a core
    python -m benchmarks.language command:./ask.sh   # any other writer of `medmap-client ingest --reports generated:`

8 brains, half of them with a tumour, and 20 livers, half of them with an HCC and half with a metastasis; cubes of 24^3
voxels. For each organ and kind of reports: the notes of `ingest`, processor time, the first text of each outcome.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from client.manifest import read_manifest
from client.sources.found import Found, Row
from client.sources.language import Facts, Writer, fault, trimmed
from client.sources.language_writers import writer_of
from client.sources.reports import Kind, add_reports
from configs import load_vocabulary
from configs.schema import PhantomConfig
from simulation.phantom import generate
from simulation.sites import OrganShare, SiteSpec

VOCABULARY = load_vocabulary("medmom")
PATIENTS, SEED = {"brain": 8, "liver": 20}, 3
MIX = {"brain": {"normal": 0.5, "glioblastoma": 0.5}, "liver": {"hcc": 0.5, "metastasis": 0.5}}


def rows_of(organ: str, folder: Path) -> list[Row]:
    """The phantom's volumes and masks, without its own reports."""
    share = OrganShare(PATIENTS[organ], 0, 0, 0, VOCABULARY.organs[organ].modalities, MIX[organ])
    generate([SiteSpec(organ, "reference-3T", {organ: share})], PhantomConfig(workers=1), VOCABULARY, folder, seed=SEED)
    return [
        Row(study.patient_id, study.study_id, m, path, organ, study.abnormality or "", mask=study.mask)
        for study in read_manifest(folder / "manifest.csv", VOCABULARY).studies
        for m, path in study.images.items()
    ]


def shown(writer: Writer, facts: Sequence[Facts]) -> list[str]:
    """What it writes; prints the first text of each outcome."""
    texts, seen = writer(facts), set[str]()
    for one, raw in zip(facts, texts, strict=True):
        text = trimmed(raw, most=len(one.lines))
        why = fault(text, one, VOCABULARY)
        if why not in seen:
            print(f"\n  {why or 'used'}: {'; '.join(one.lines)}\n  -> {text}")
            seen.add(why)
    return texts


def main() -> None:
    """Everything that the docstring names, on the screen."""
    writer = writer_of(sys.argv[1] if len(sys.argv) > 1 else "smollm2")
    told = Kind("generated", lambda facts: shown(writer, facts), informed=True)
    kinds = {"measured": Kind("measured"), "generated": Kind("generated", lambda facts: shown(writer, facts))}
    for organ in PATIENTS:
        with tempfile.TemporaryDirectory() as folder:
            rows = rows_of(organ, Path(folder))
            for name, kind in {**kinds, "generated-with-label": told}.items():
                print(f"\n{organ}, {name}", flush=True)
                found, begun = Found(list(rows)), time.process_time()
                add_reports(found, VOCABULARY, [kind])
                print("", *(f"- {note}" for note in found.notes), sep="\n")
                print(f"- {time.process_time() - begun:.0f} s of processor time", flush=True)


if __name__ == "__main__":
    main()
