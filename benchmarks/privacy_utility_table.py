"""The rows of `benchmarks.privacy_utility` as a table of cells, on the screen and as a figure."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

TEST_SETS = ("union", "external")
Rows = list[dict[str, Any]]


def cells(rows: Rows, *, factors: int) -> Rows:
    """A row per finished cell, the public start first: the factor that is best on public validation patients of all seeds,
    and its gains over the public start, paired by seed.

    factors: learning rates that a finished cell has. beats: the mean gain is larger than its standard deviation over seeds.
    Of cells that gain nothing one in nine does so too, with three seeds.
    """
    found: dict[tuple[int, str, float], dict[float, dict[int, dict[str, Any]]]] = defaultdict(lambda: defaultdict(dict))
    for r in rows:
        found[int(r["patients"]), r["trainable"], float(r["epsilon"])][float(r["factor"])][int(r["seed"])] = r
    start = found[0, "nothing", 0.0][0.0]
    table = []
    for (patients, trainable, epsilon), tried in sorted(found.items()):
        complete = [by_seed for by_seed in tried.values() if set(by_seed) >= set(start)]
        if patients and len(complete) < factors:
            continue
        best = max(complete, key=lambda by_seed: statistics.fmean(float(by_seed[s]["public_val_auroc"]) for s in start))
        line = {"patients": patients, "trainable": trainable, "epsilon": epsilon, "seeds": len(start)}
        line |= {k: next(iter(best.values()))[k] for k in ("parameters", "noise_multiplier", "lr")}
        for name in TEST_SETS:
            auroc = {s: float(best[s][f"{name}_auroc"]) for s in start}
            gains = [auroc[s] - float(start[s][f"{name}_auroc"]) for s in start]
            spread = statistics.stdev(gains) if len(gains) > 1 else math.nan
            line |= {
                f"{name}_auroc": round(statistics.fmean(auroc.values()), 4),
                f"{name}_gain": round(statistics.fmean(gains), 4), f"{name}_gain_sd": round(spread, 4),
                f"{name}_gain_least": round(min(gains), 4), f"{name}_beats": statistics.fmean(gains) > spread,
            }  # fmt: skip
        table.append(line)
    return table


def show(table: Rows) -> None:
    """The cells on the screen, and which of them beat the public start."""
    columns = ("patients", "trains", "parameters", "epsilon", "noise", "lr", "union", "gain", "external", "gain")
    shown = Table(*columns, box=box.SIMPLE, caption="*: the mean gain is larger than its spread over seeds")
    for r in table:
        line = [str(r[k]) for k in ("patients", "trainable", "parameters", "epsilon", "noise_multiplier", "lr")]
        for name in TEST_SETS:
            star = " *" if r[f"{name}_beats"] else ""
            line += [f"{r[f'{name}_auroc']:.3f}", f"{r[f'{name}_gain']:+.3f} ± {r[f'{name}_gain_sd']:.3f}{star}"]
        shown.add_row(*line)
    Console(width=130).print(shown)
    private = [r for r in table if r["patients"]]
    for name in TEST_SETS:
        beat = [f"{r['trainable']} {r['patients']} epsilon {r['epsilon']:g}" for r in private if r[f"{name}_beats"]]
        print(f"{name}: {len(beat)} of {len(private)} cells gain more than their spread: {'; '.join(beat) or 'none'}")
    print(
        f"Of cells that gain nothing, {len(private) / 9:.1f} of {len(private)} would be expected to, with three seeds."
    )


def plot(table: Rows, sets: Sequence[str], epsilons: Sequence[float], path: Path) -> None:
    """Gain over the public start against epsilon: a column per set, a row per test set, a line per number of patients."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    size = (3 * len(sets) + 1, 6)
    figure, axes = plt.subplots(len(TEST_SETS), len(sets), figsize=size, sharex=True, sharey="row", squeeze=False)
    sizes = sorted({r["patients"] for r in table if r["patients"]})
    for (i, name), (j, trainable) in itertools.product(enumerate(TEST_SETS), enumerate(sets)):
        axis = axes[i, j]
        axis.axhline(0, color="black", linewidth=0.8)
        for k, patients in enumerate(sizes):
            mine = [r for r in table if (r["trainable"], r["patients"]) == (trainable, patients)]
            at = [epsilons.index(r["epsilon"]) + 0.1 * (k - 1) for r in mine]
            gain, spread = ([r[f"{name}_{c}"] for r in mine] for c in ("gain", "gain_sd"))
            axis.errorbar(at, gain, spread, marker="o", capsize=2, label=f"{patients} patients per hospital")
        axis.set_xticks(range(len(epsilons)), ["no noise" if math.isinf(e) else f"{e:g}" for e in epsilons])
        axis.grid(alpha=0.3)
        if not i:
            axis.set_title(trainable)
        if not j:
            axis.set_ylabel(f"AUROC gain, {name}")
    axes[0, 0].legend(fontsize=7)
    figure.supxlabel("epsilon (delta 1e-5)")
    figure.suptitle("Phantom. Gain over the public start: mean and standard deviation over seeds")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
