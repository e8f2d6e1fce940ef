"""Side and negation in the frozen text encoder, and what a trained text projection with hard negatives makes of them.

    python -m benchmarks.text                  24 patients of every kind, three seeds of the projection

Reports are the phantom's. Of one patient's findings two are worded: text and paraphrase. The hard negatives are the
text with its sides swapped, and with one negation turned (`medmap_model.text.negatives`). First table: cosines of frozen
embeddings. Second, on held-out patients: how often the paraphrase picks its text and not the text's negative, which is
what an image must do (chance 0.5); how often the text is nearer to the paraphrase than to its own negative, which asks
to ignore all wording besides; and recall@1 of the paraphrase. For the frozen embedding, and for a linear projection of it
(the model's `TextProjection`) trained by contrast on other patients, without and with hard negatives; of both organs,
or of the other organ alone. Third: balanced accuracy of the nearest class, frozen, by the vocabulary's first prompt of each
class, all prompts, the ensemble (prompts in templates) and attributes. Writes benchmarks/results/text.csv.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from configs import load_vocabulary
from configs.schema import PhantomConfig, TextConfig
from configs.stages import PretrainConfig
from medmap_model.model import TextProjection
from medmap_model.objectives import bounded_temperature
from medmap_model.text import TextEncoder, build_text_encoder
from medmap_model.text.negatives import negation_negative, side_negative
from simulation.phantom import reports, wording
from simulation.phantom.kinds import KINDS
from simulation.phantom.plan import single_case
from simulation.phantom.scanners import MAKES
from simulation.phantom.study import make_study, random_stream

PAIRS = ("paraphrase", "side swapped", "negation turned", "other finding")
HARD = PAIRS[1:3]
QUESTIONS = (*(f"{question}: {name}" for question in ("picks", "nearer") for name in HARD), "recall@1")
VOCABULARY = load_vocabulary("medmom")
DIM, EPOCHS, BATCH, LR = 128, 60, 32, 1e-3
STAGE = PretrainConfig()
BOUNDS = (STAGE.temperature_bounds[0], STAGE.temperature_bounds[1])
# Statements of one kind; {} is filled with the arterial phase.
STATEMENTS = (
    wording.RING, wording.SOLID, wording.NO_UPTAKE, wording.OEDEMA, wording.PRESSURE, wording.ARTERIAL_BRIGHT,
    wording.WASHOUT, wording.CAPSULE, wording.NO_ENHANCEMENT, wording.RESTRICTED, wording.FAT, wording.LIVER_OEDEMA,
)  # fmt: skip


class Reports(NamedTuple):
    """N patients. texts: pair of `PAIRS` or "text" -> N texts, "" where there is none. label: (N,) class of the organ.

    brain, held_out: (N,) bool.
    """

    texts: dict[str, list[str]]
    label: Tensor
    brain: Tensor
    held_out: Tensor


def worded(organ: str, kind: str, number: int) -> list[str]:
    """Two reports of one patient's findings, without the diagnosis: the wording alone differs."""
    case = single_case(organ, kind, f"{organ}-{kind}-{number}", scanner=MAKES[number % len(MAKES)])
    findings = make_study(case, PhantomConfig(size=16), seed=0).findings
    streams = [random_stream(0, case.patient_id, name) for name in ("text", "paraphrase")]
    return [
        reports.write(findings, organ=organ, kind=kind, spots=0, push_mm=0, withhold_diagnosis=True, rng=rng)
        for rng in streams
    ]


def write_reports(patients: int) -> Reports:
    """`patients` of each kind, every third held out; two wordings of each patient's findings and what contradicts them."""
    texts: dict[str, list[str]] = {name: [] for name in ("text", *PAIRS)}
    labels, brain, held_out = [], [], []
    for organ in KINDS:
        for kind, abnormality in KINDS[organ].items():
            for i in range(patients):
                for name, text in zip(("text", "paraphrase"), worded(organ, kind, i), strict=True):
                    texts[name].append(text)
                labels.append(VOCABULARY.organs[organ].label(abnormality))
                brain.append(organ == "brain")
                held_out.append(i % 3 == 2)
    texts["side swapped"] = [side_negative(t) or "" for t in texts["text"]]
    texts["negation turned"] = [negation_negative(t) or "" for t in texts["text"]]
    # the next kind's patient of the same number: another finding of the same organ, but for the last kind of an organ
    texts["other finding"] = texts["text"][patients:] + texts["text"][:patients]
    return Reports(texts, torch.tensor(labels), torch.tensor(brain), torch.tensor(held_out))


def sentences() -> dict[str, list[tuple[str, str]]]:
    """Pair of `PAIRS` -> pairs of single sentences."""

    def filled(form: str) -> str:
        return form.format(phases="the arterial phase", phase="the arterial phase")

    groups = [[filled(s) for s in group] for group in STATEMENTS]
    places = [
        f"A 32 mm mass {form.format(side=side, place='frontal')}."
        for form in wording.WHERE["lobe"]
        for side in ("left", "right")
    ]
    lobes = [f"A 32 mm lesion in the {side} lobe of the liver." for side in ("left", "right")]
    turned = [(s, negation_negative(s) or "") for group in groups for s in group]
    return {
        "paraphrase": [(a, b) for group in groups for a in group for b in group if a < b],
        "side swapped": [(t, side_negative(t) or "") for t in (*places, *lobes)],
        "negation turned": [(a, b) for a, b in turned if b],
        "other finding": [(a[0], b[0]) for i, a in enumerate(groups) for b in groups[:i]],
    }


def embedded(reports_: Reports, encoder: TextEncoder) -> dict[str, Tensor]:
    """Name -> (N, E) unit vectors, zeros where there is no text."""
    out = {}
    for name, texts in reports_.texts.items():
        there = torch.tensor([bool(t) for t in texts])
        out[name] = encoder.embed(texts) * there[:, None]
    return out


def train(vectors: dict[str, Tensor], rows: Tensor, *, hard: bool, seed: int) -> TextProjection:
    """A projection under which a text and its paraphrase meet, both ways (InfoNCE); `hard` adds the text's negatives."""
    torch.manual_seed(seed)
    projection = TextProjection(vectors["text"].shape[1], DIM)
    optimizer = torch.optim.AdamW(projection.parameters(), lr=LR, weight_decay=1e-3)
    index = rows.nonzero()[:, 0]
    for _ in range(EPOCHS):
        for part in index[torch.randperm(len(index))].split(BATCH):
            tau = bounded_temperature(projection.temperature, start=STAGE.temperature, bounds=BOUNDS)
            text, same = (F.normalize(projection(vectors[name][part]), dim=1) for name in ("text", "paraphrase"))
            logits, own = same @ text.T, torch.arange(len(part))
            loss = F.cross_entropy(logits.T / tau, own)
            for name in HARD if hard else ():  # the paraphrase picks the text, as an image would, also against these
                negative = vectors[name][part]
                cosine = (same * F.normalize(projection(negative), dim=1)).sum(1, keepdim=True)
                logits = torch.cat([logits, cosine.masked_fill(~(negative != 0).any(1, keepdim=True), -10.0)], 1)
            loss = loss + F.cross_entropy(logits / tau, own)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return projection.eval()


def accuracy(
    vectors: dict[str, Tensor], rows: Tensor, projection: TextProjection | None
) -> dict[str, tuple[int, float]]:
    """Question of `QUESTIONS` -> (number of texts, share that is right)."""

    def unit(name: str) -> Tensor:
        v = vectors[name][rows]
        return v if projection is None else F.normalize(projection(v), dim=1)

    out = {}
    with torch.no_grad():
        text, same = unit("text"), unit("paraphrase")
        near = (text * same).sum(1)
        for question, other in (("picks", same), ("nearer", text)):
            for name in HARD:
                there = (vectors[name][rows] != 0).any(1)
                right = near[there] > (other * unit(name)).sum(1)[there]
                out[f"{question}: {name}"] = (int(there.sum()), float(right.float().mean()))
        found = (text @ same.T).argmax(1) == torch.arange(len(text))
        out["recall@1"] = (len(text), float(found.float().mean()))
    return out


Row = dict[str, str | int | float | None]


def cosines(vectors: dict[str, Tensor], encoder: TextEncoder) -> list[Row]:
    """Mean cosine of every kind of pair, of single sentences and of whole reports, frozen."""
    rows: list[Row] = []
    for pair, texts in sentences().items():
        a, b = (encoder.embed(side) for side in zip(*texts, strict=True))
        rows.append(_cosine("sentences", pair, (a * b).sum(1)))
    for pair in PAIRS:
        there = (vectors[pair] != 0).any(1)
        rows.append(_cosine("reports", pair, (vectors["text"] * vectors[pair]).sum(1)[there]))
    return rows


def _cosine(texts: str, pair: str, values: Tensor) -> Row:
    return {
        "measure": "cosine", "texts": texts, "projection": "frozen", "pair": pair, "n": len(values),
        "mean": round(float(values.mean()), 3), "sd": round(float(values.std()), 3),
    }  # fmt: skip


def separations(vectors: dict[str, Tensor], data: Reports, seeds: Sequence[int]) -> list[Row]:
    """Accuracy on held-out patients, before and after training; sd over the seeds of the projection."""
    settings: list[tuple[str, Tensor, Tensor]] = [
        ("new patients", ~data.held_out, data.held_out),
        ("new organ: brain", ~data.held_out & ~data.brain, data.held_out & data.brain),
        ("new organ: liver", ~data.held_out & data.brain, data.held_out & ~data.brain),
    ]
    rows: list[Row] = []
    for texts, learn, test in settings:
        trained = {
            "frozen": [accuracy(vectors, test, None)],
            "trained": [accuracy(vectors, test, train(vectors, learn, hard=False, seed=s)) for s in seeds],
            "trained, hard negatives": [
                accuracy(vectors, test, train(vectors, learn, hard=True, seed=s)) for s in seeds
            ],
        }
        for projection, runs in trained.items():
            for pair in runs[0]:
                values = [run[pair][1] for run in runs]
                rows.append(
                    {"measure": "accuracy", "texts": texts, "projection": projection, "pair": pair, "n": runs[0][pair][0],
                     "mean": round(float(np.mean(values)), 3), "sd": round(float(np.std(values)), 3) if len(values) > 1 else None}
                )  # fmt: skip
    return rows


def nearest_class(vectors: dict[str, Tensor], data: Reports, encoder: TextEncoder) -> list[Row]:
    """Balanced accuracy of all reports, which withhold the diagnosis, by each way to describe a class."""
    rows: list[Row] = []
    for organ in VOCABULARY.organs.values():
        here = data.brain == (organ.name == "brain")
        ways: dict[str, Sequence[Sequence[str]]] = {
            "first prompt": [ts[:1] for ts in organ.prompts.values()],
            "prompts": list(organ.prompts.values()),
            "ensemble": [organ.ensemble(c) for c in organ.abnormalities],
            "attributes": [[t for ts in by.values() for t in ts] for by in organ.attributes.values()],
        }
        for way, texts in ways.items():
            described = F.normalize(torch.stack([encoder.embed(ts).mean(0) for ts in texts]), dim=1)
            right = (vectors["text"][here] @ described.T).argmax(1) == data.label[here]
            value = np.mean([float(right[data.label[here] == c].float().mean()) for c in range(len(texts))])
            rows.append(
                {"measure": "nearest class", "texts": organ.name, "projection": "frozen", "pair": way, "n": len(right),
                 "mean": round(float(value), 3), "sd": None}
            )  # fmt: skip
    return rows


def _figure(row: Row) -> str:
    return f"{row['mean']:.2f}" if row["sd"] is None else f"{row['mean']:.2f} ± {row['sd']:.2f}"


def show(rows: list[Row]) -> None:
    """All tables."""
    first = Table("cosine, frozen", "sentences", "reports", box=box.SIMPLE)
    value = {(r["measure"], r["texts"], r["projection"], r["pair"]): r for r in rows}
    for pair in PAIRS:
        first.add_row(pair, *(f"{value['cosine', t, 'frozen', pair]['mean']:.3f}" for t in ("sentences", "reports")))
    second = Table("held out", "", *QUESTIONS, box=box.SIMPLE)
    for texts in dict.fromkeys(r["texts"] for r in rows if r["measure"] == "accuracy"):
        for projection in ("frozen", "trained", "trained, hard negatives"):
            cells = [value["accuracy", texts, projection, question] for question in QUESTIONS]
            second.add_row(str(texts), projection, *(_figure(c) for c in cells))
    third = Table("nearest class", *VOCABULARY.organs, box=box.SIMPLE)
    for way in dict.fromkeys(r["pair"] for r in rows if r["measure"] == "nearest class"):
        third.add_row(str(way), *(f"{value['nearest class', o, 'frozen', way]['mean']:.2f}" for o in VOCABULARY.organs))
    console = Console(width=150)
    for table in (first, second, third):
        console.print(table)
    console.print(
        "picks: the paraphrase picks the text, not its negative. nearer: the text is nearer to the paraphrase."
    )
    console.print("recall@1: the paraphrase found among all held-out ones. ±: standard deviation over seeds.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=24, help="per kind; a third is held out")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    encoder = build_text_encoder(TextConfig())
    data = write_reports(args.patients)
    vectors = embedded(data, encoder)
    rows = (
        cosines(vectors, encoder)
        + separations(vectors, data, range(args.seeds))
        + nearest_class(vectors, data, encoder)
    )
    show(rows)
    target = Path(__file__).parent / "results" / "text.csv"
    with target.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
