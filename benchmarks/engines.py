"""What a round costs when sites compute nothing: the in-process engine against Flower's Ray simulation, in one run.

    python -m benchmarks.engines [--sites 8] [--rounds 20] [--skip-ray]

Each site gets 1 MB of module groups and returns it. A round is: serialise, hand out, decode, encode, check, aggregate,
write the checkpoint. Writes benchmarks/results/engines.csv.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SType

from configs import load, load_vocabulary
from medmap_model.contract import Card, decode_vector, encode_vector
from medmap_model.groups import group_names
from server.exchange import record
from server.rounds import Federation
from simulation.engines import InProcessGrid, run_ray

GROUPS_PER_SITE = 12  # four encoders, four projections, text projection, fusion, one head: what a brain hospital has
MODALITIES = ("T1", "T1ce", "T2", "FLAIR")


def client() -> ClientApp:
    """Sites that decode what they get and encode it again, and nothing else."""
    app, vocabulary = ClientApp(), load_vocabulary("medmom")

    @app.query()
    def query(msg: Message, context: Context) -> Message:
        name = f"h{context.node_config['partition-id']}"
        card = Card(name, dict.fromkeys(MODALITIES, 10), {"brain": 10}, {"train": 10}, vocabulary.hash, "none")
        return Message(RecordDict({"card": record("card", card)}), reply_to=msg)

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        arrays: Any = msg.content["arrays"]
        vectors = {k: decode_vector(v.data) for k, v in arrays.items()}
        back = ArrayRecord({k: Array("float32", v.shape, SType.NUMPY, encode_vector(v)) for k, v in vectors.items()})
        return Message(RecordDict({"arrays": back, "metrics": MetricRecord({"loss": 0.0})}), reply_to=msg)

    @app.evaluate()
    def evaluate(msg: Message, context: Context) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"val_loss": 0.0})}), reply_to=msg)

    return app


def measure(grid: Any, sites: int, rounds: int) -> tuple[float, list[float]]:
    """(seconds of the loop with its checkpoints, over rounds; seconds of each round without) on this grid."""
    vocabulary = load_vocabulary("medmom")
    owned = [
        g for g in group_names(vocabulary) if g.split("/")[-1] in (*MODALITIES, "text_projection", "fusion", "brain")
    ]
    size = 2**20 // 4 // len(owned)
    initial = {g: np.ones(size if g in owned else 1, np.float32) for g in group_names(vocabulary)}
    layout = {g: [(g, v.shape)] for g, v in initial.items()}
    config = load([f"stage.finetune.rounds={rounds}", "stage.pretrain.rounds=0", "strategy.join_timeout_s=60"])
    with tempfile.TemporaryDirectory() as folder:
        f = Federation(
            grid,
            config,
            vocabulary,
            initial=initial,
            layout=layout,
            text_hash="none",
            folder=Path(folder),
            sites=sites,
        )
        f.join()
        begun = time.perf_counter()
        f._run_stage("finetune")
        return (time.perf_counter() - begun) / rounds, [line["wall_s"] for line in f.history]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--skip-ray", action="store_true")
    args = parser.parse_args()
    rows = []
    app = client()

    def note(engine: str, total: float, rounds: list[float], start: float) -> None:
        rows.append(
            {"engine": engine, "sites": args.sites, "megabytes_per_site": 1, "rounds": args.rounds,
             "ms_per_round_median": round(1e3 * float(np.median(rounds)), 2),
             "ms_per_round_with_checkpoint": round(1e3 * total, 2), "start_s": round(start, 2)}
        )  # fmt: skip

    begun = time.perf_counter()
    grid = InProcessGrid(app, args.sites, {})
    start = time.perf_counter() - begun
    note("inprocess", *measure(grid, args.sites, args.rounds), start)
    if not args.skip_ray:
        begun = time.perf_counter()
        results: list[Any] = []

        def serve(ray_grid: Any) -> None:
            up = time.perf_counter() - begun
            results.extend([*measure(ray_grid, args.sites, args.rounds), up])

        run_ray(app, args.sites, {}, serve)
        note("ray", *results)
    for row in rows:
        print(row)
    if len(rows) == 2:
        ratio = rows[1]["ms_per_round_with_checkpoint"] / rows[0]["ms_per_round_with_checkpoint"]
        print(f"Ray takes {ratio:.0f} times as long a round as the in-process engine.")
    target = Path(__file__).parent / "results" / "engines.csv"
    target.parent.mkdir(exist_ok=True)
    with target.open("w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
