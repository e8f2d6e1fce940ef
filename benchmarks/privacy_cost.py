"""What a private step costs over a plain one: CPU time and memory of clipping per patient and of noise. 48^3, 8 patients.

    python -m benchmarks.privacy_cost [--models resnet10 tiny small resnet] [--cases "1 of 1" ...] [--rounds 5]

Stage 2 of models with convolutional encoders, all parameters train, volumes of noise, one thread, no modality dropout. Plain:
forward and backward of the batch's mean loss, a step of SGD. Private: `clipped_sum` of an engine, some patients at a time, then
`PatientDPOptimizer.step_on` with noise from ChaCha20 or from NumPy. CPU seconds, medians over rounds in which all ways take
turns. `step_mb`: how far a process of its own grows in its second step over what model and data take. Cases: patients of a
federation with one modality; with four, all there; with four slots, only the first there (vmap and the loop compute empty
slots too). Writes benchmarks/results/privacy_cost.csv; models and cases that are not asked for keep their rows.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import functools
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.demo import RESULTS, write
from client.privacy.engines import make_engine
from client.privacy.gradients import PatientGradients, Vectors
from client.privacy.losses import record_loss, without_modality_dropout
from client.privacy.optimizer import PatientDPOptimizer
from configs import load
from configs.federated import PrivacyConfig
from configs.schema import Config
from medmap_model.batch import Batch
from medmap_model.model import MedMAP, build_model
from medmap_model.randomness import SecretRandom
from medmap_model.text import build_text_encoder
from medmap_model.vocabulary import Vocabulary

PATIENTS, SIZE = 8, 48
MODELS = ("resnet10", "tiny", "small", "resnet")
CASES = {"1 of 1": (1, 1), "4 of 4": (4, 4), "1 of 4": (4, 1)}  # modality slots, how many of them are there
PLAIN = "plain"
WAYS = {f"{engine}, {chunk}": (engine, chunk) for engine in ("layers", "vmap") for chunk in (2, 4, 8)}
WAYS["loop"] = ("loop", 0)  # an engine and its patients per call


class Bench:
    """A model, a batch and every way to take a step; what is timed does not change the weights by much."""

    def __init__(self, model: str, case: str) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        slots, here = CASES[case]
        self.config = without_modality_dropout(load([f"model={model}", "text=hash", f"data.volumes.size={SIZE}"]))
        self.model = _model(self.config, slots)
        present = (torch.arange(slots) < here).expand(PATIENTS, slots).clone()
        volumes = torch.randn(PATIENTS, slots, SIZE, SIZE, SIZE) * present[..., None, None, None]
        nothing = torch.zeros(PATIENTS, self.model.texts.embedding.shape[1])
        label, no_report = torch.arange(PATIENTS) % 2, torch.zeros(PATIENTS, dtype=torch.bool)
        self.batch = Batch("brain", volumes, present, label, nothing, no_report)
        self.named = dict(self.model.named_parameters())
        self.engines: dict[str, PatientGradients] = {}

    def plain(self) -> None:
        """One step without privacy."""
        optimizer = torch.optim.SGD(self.named.values(), lr=1e-3)
        loss = self.model.finetune_loss(self.batch, self.config.stage.finetune, progress=0.5)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def clipped(self, way: str) -> Vectors:
        """The first half of a private step."""
        if way not in self.engines:
            kind, chunk = WAYS[way]
            loss, privacy = (
                record_loss(self.config, "finetune", progress=0.5),
                PrivacyConfig(clip_norm=0.5, chunk=chunk),
            )
            self.engines[way] = make_engine(kind, self.model, loss, list(self.named), privacy)
        return self.engines[way].clipped_sum(self.batch)

    def noise(self, sums: Vectors, *, chacha: bool) -> None:
        """The second half."""
        optimizer = PatientDPOptimizer(
            torch.optim.SGD(self.named.values(), lr=1e-3),
            noise_multiplier=1.0,
            clip_norm=0.5,
            expected_patients=PATIENTS,
            secret=SecretRandom(chacha=chacha),
        )
        optimizer.step_on(sums, self.named)


def _model(config: Config, slots: int) -> MedMAP:
    """The model of a federation whose brains have so many modalities."""
    names = ["T1", "T1ce", "T2", "FLAIR"][:slots]
    prompts = {"no_tumour": ["Normal brain MRI."], "tumour": ["Brain mass."]}
    brain = {"modalities": names, "query": "Brain MRI. Is there a mass?", "prompts": prompts}
    vocabulary = Vocabulary.from_dict({"name": "benchmark", "organs": {"brain": brain}})
    return build_model(config.model, vocabulary, build_text_encoder(config.text), seed=0).train()


def times(bench: Bench, rounds: int) -> dict[str, float]:
    """Way -> CPU seconds; `chacha` and `numpy` are noise and step alone."""
    sums: Vectors = {name: torch.zeros_like(p) for name, p in bench.named.items()}
    work: dict[str, Callable[[], Any]] = {PLAIN: bench.plain}
    work |= {way: functools.partial(bench.clipped, way) for way in WAYS}
    work |= {"chacha": lambda: bench.noise(sums, chacha=True), "numpy": lambda: bench.noise(sums, chacha=False)}
    seconds: dict[str, list[float]] = {way: [] for way in work}
    for _ in range(rounds + 1):
        for way, do in work.items():
            begun = time.process_time()
            do()
            seconds[way].append(time.process_time() - begun)
    return {way: statistics.median(s[1:]) for way, s in seconds.items()}  # the first also prepares


def memory_mb(bench: Bench, way: str) -> float:
    """Growth of this process in its second step, 10^6 bytes. The first loads what torch loads late."""
    before = 0.0
    for _ in range(2):
        ctypes.CDLL(None).malloc_trim(0)  # glibc: what the step before has freed goes back to the system
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is counted from here on
        before = _status_mb("VmRSS")
        if way == PLAIN:
            bench.plain()
        else:
            bench.noise(bench.clipped(way), chacha=True)
    return _status_mb("VmHWM") - before


def _status_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{field}:"))


def memory(bench: Bench) -> dict[str, float]:
    """Way -> `memory_mb`, each in a child of this process; to be called before this process has taken a step."""
    context, found = multiprocessing.get_context("fork"), {}
    for way in (PLAIN, *WAYS):
        here, there = context.Pipe()
        child = context.Process(target=_tell_memory, args=(there, bench, way))
        child.start()
        found[way] = float(here.recv())
        child.join()
    return found


def _tell_memory(there: Connection, bench: Bench, way: str) -> None:
    there.send(memory_mb(bench, way))


def measure(model: str, case: str, *, rounds: int) -> list[dict[str, Any]]:
    """A row per way."""
    bench = Bench(model, case)
    grown = memory(bench)
    seconds = times(bench, rounds)
    rows: list[dict[str, Any]] = []
    for way in (PLAIN, *WAYS):
        private = way != PLAIN
        noise = {n: seconds[n] * private for n in ("chacha", "numpy")}
        row: dict[str, Any] = {
            "model": model, "case": case, "way": way, "parameters": sum(p.numel() for p in bench.named.values()),
            "gradient_s": seconds[way], **{f"noise_{n}_s": s for n, s in noise.items()},
            **{f"time_{n}": (seconds[way] + s) / seconds[PLAIN] for n, s in noise.items()},
            "time_gradient": seconds[way] / seconds[PLAIN], "step_mb": grown[way], "memory": grown[way] / grown[PLAIN],
        }  # fmt: skip
        rows.append({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    path = RESULTS / "privacy_cost.csv"
    RESULTS.mkdir(exist_ok=True)
    table = Table(
        "model", "present", "way", "gradient s", "noise s", "time / plain", "(NumPy's noise)", "gradient / plain",
        "MB", "MB / plain",
        box=box.SIMPLE,
    )  # fmt: skip
    for model, case in itertools.product(args.models, args.cases):
        rows = measure(model, case, rounds=args.rounds)
        for r in rows:
            figures = (
                "gradient_s",
                "noise_chacha_s",
                "time_chacha",
                "time_numpy",
                "time_gradient",
                "step_mb",
                "memory",
            )
            table.add_row(model, case, r["way"], *(f"{r[f]:.2f}" for f in figures))
        write(path, _others(path, model, case) + rows)
        print(*(f"{r['way']}: {r['time_chacha']:.2f}" for r in rows), sep="; ", flush=True)
    Console(width=120).print(table)


def _others(path: Path, model: str, case: str) -> list[dict[str, Any]]:
    """Rows that are there already, of other models and cases."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as f:
        return [r for r in csv.DictReader(f) if (r["model"], r["case"]) != (model, case)]


if __name__ == "__main__":
    main()
