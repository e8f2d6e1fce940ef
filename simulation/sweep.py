"""`medmap-sim -m`: settings with several values each -> one ordinary run per combination, then sweep.csv over all of them.

Every run is a `medmap-sim` of its own in a process of its own: a run that fails, whatever of, leaves the others alone. A
finished run is not repeated and an interrupted one is gone on with, so the same command ends what it began.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from configs import from_dict, load
from configs.schema import Config, EngineConfig
from configs.setting import ConfigError

# Where summary.json has a model's scores -> the name of the test set.
TEST_SETS = {"metrics": "common", "metrics_own": "own", "metrics_external": "external"}
INTERRUPTED = 130  # a run's exit code after Ctrl-C
_OPENS, _CLOSES, _QUOTES = "[{(", "]})", "'\""


@dataclass(frozen=True)
class Planned:
    """One run of a sweep. values: what of the swept settings it takes; overrides: the arguments of its command."""

    folder: Path
    values: Mapping[str, str]
    overrides: tuple[str, ...]
    config: Config


def split_values(text: str) -> list[str]:
    """`0,1,2` -> 0 · 1 · 2, as Hydra splits: a comma inside brackets or quotes separates nothing."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in _QUOTES:
            quote = character
        elif character in _OPENS + _CLOSES:
            depth += 1 if character in _OPENS else -1
        elif character == "," and not depth:
            parts.append("")
            continue
        parts[-1] += character
    return [p.strip() for p in parts]


def plan(arguments: Sequence[str]) -> list[Planned]:
    """The runs of a sweep, in order: the experiment's own `sweep` outside, the command line's inside.

    What the command line names, with one value or several, it decides. Raises ConfigError: every combination is composed
    and checked before anything runs.
    """
    given: dict[str, list[str]] = {}  # key -> values; [] where there is no "=", which `load` complains of
    for argument in arguments:
        key, equals, value = argument.partition("=")
        given[key if equals else argument] = split_values(value) if equals else []
        if equals and "" in given[key] and len(given[key]) > 1:
            raise ConfigError(f"{argument}: there is nothing between two commas; write for example seed=0,1,2")
    if "resume" in given:
        raise ConfigError("resume: a sweep goes on by itself where it stopped; start it again without resume")
    if len(given.get("output_dir", [])) > 1:
        raise ConfigError("output_dir: a sweep has one folder, in which every run gets its own")
    varied = {key for key, values in given.items() if len(values) > 1}
    combinations: list[tuple[dict[str, str], list[str]]] = []
    bare = [key for key, values in given.items() if not values]
    for chosen in itertools.product(*([(k, v) for v in vs] for k, vs in given.items() if vs)):
        overrides = bare + [f"{k}={v}" for k, v in chosen]
        for extra in _own(load(overrides), given):
            values = extra | {k: v for k, v in chosen if k in varied}
            combinations.append((values, overrides + [f"{k}={v}" for k, v in extra.items()]))
    if not any(values for values, _ in combinations):
        raise ConfigError(
            "-m has nothing to vary: give a setting several values, as seed=0,1,2, or take an experiment with a sweep"
        )
    planned = []
    for number, (values, overrides) in enumerate(_in_order(combinations)):
        config = load(overrides)
        folder = Path(config.output_dir).absolute() / f"{number:02d}-{_name(values)}"
        arguments_of = (*(o for o in overrides if not o.startswith("output_dir=")), f"output_dir={folder}")
        planned.append(Planned(folder, values, arguments_of, config))
    return planned


def _own(config: Config, given: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """The combinations of the experiment's own sweep, less what the command line decides."""
    lists = []
    for key, values in config.sweep.items():
        if not values:
            raise ConfigError(f"sweep.{key} names no values: list some, or leave it out")
        if key not in given:
            lists.append([(key, _written(v)) for v in values])
    yield from (dict(chosen) for chosen in itertools.product(*lists))


def _in_order(combinations: Sequence[tuple[dict[str, str], list[str]]]) -> list[tuple[dict[str, str], list[str]]]:
    """Seeds outside: when a sweep is cut short, the seeds that are done have every variant."""
    seeds = list(dict.fromkeys(values.get("seed") for values, _ in combinations))
    return sorted(combinations, key=lambda c: seeds.index(c[0].get("seed")))


def _written(value: Any) -> str:
    """A YAML value as one writes it on a command line."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return "[" + ",".join(_written(v) for v in value) + "]" if isinstance(value, list) else str(value)


def _name(values: Mapping[str, str]) -> str:
    """A folder's name that says what is special of a run: seed-0-no_csa."""
    from configs import GROUPS

    parts = [v if k in GROUPS else f"{k.rsplit('.', 1)[-1]}-{v}" for k, v in values.items()]
    return re.sub(r"[^\w.+]+", "-", "-".join(parts)).strip("-")[:100]


def state(run: Planned) -> str:
    """`finished`, `interrupted` or `new`: what its folder holds of exactly this run."""
    import yaml

    saved = run.folder / "config.yaml"
    if not saved.is_file():
        return "new"
    try:
        same = _identity(from_dict(yaml.safe_load(saved.read_text(encoding="utf-8")))) == _identity(run.config)
    except (ConfigError, yaml.YAMLError, TypeError, ValueError):  # of another version: it cannot be gone on with
        return "new"
    if not same:
        return "new"
    return "finished" if (run.folder / "summary.json").is_file() else "interrupted"


def _identity(config: Config) -> Config:
    """A config without what does not change the result, and with the data's place as a run writes it down."""
    folder = str(Path(config.data.folder or "outputs/data").absolute())
    manifest = str(Path(config.data.manifest).absolute()) if config.data.manifest else None
    data = replace(config.data, folder=folder, manifest=manifest)
    return replace(config, data=data, output_dir="", resume=None, sweep={}, engine=EngineConfig())


def sweep(arguments: Sequence[str]) -> int:
    """Run what is not finished, one after the other; write and print the tables. Returns the exit code."""
    runs = plan(arguments)
    failed, code, root = [], 0, runs[0].folder.parent
    print(f"{len(runs)} runs in {root}")
    for number, run in enumerate(runs, 1):
        before = state(run)
        told = "finished before" if before == "finished" else "begins" if before == "new" else "goes on"
        print(f"\n[{number}/{len(runs)}] {run.folder.name}: {told}", flush=True)
        if before != "finished":
            code = _start([*run.overrides, *([f"resume={run.folder}"] if before == "interrupted" else [])])
            if code == INTERRUPTED:
                break
            if code:
                failed.append(run.folder.name)
                print(f"medmap-sim: {run.folder.name} failed with exit code {code}; the sweep goes on", file=sys.stderr)
        if rows := collect(runs):
            write_rows(root / "sweep.csv", rows)
    if rows := collect(runs):
        from simulation.ablation import summarise

        summarise(rows, root, keys=list(dict.fromkeys(k for run in runs for k in run.values)))
    if code == INTERRUPTED:
        print("medmap-sim: the sweep is interrupted; the same command goes on with it", file=sys.stderr)
        return INTERRUPTED
    if failed:
        print(f"medmap-sim: {len(failed)} of {len(runs)} runs failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _start(arguments: Sequence[str]) -> int:
    """A run in a process and session of its own, so that Ctrl-C reaches it once: passed on by us. Its exit code."""
    command = [sys.executable, "-m", "simulation.cli", "run", *arguments]
    child = subprocess.Popen(command, start_new_session=True)
    polite = (signal.SIGINT, signal.SIGTERM)
    before = {s: signal.signal(s, lambda number, _: child.send_signal(number)) for s in polite}
    try:
        return child.wait()
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def collect(runs: Sequence[Planned]) -> list[dict[str, Any]]:
    """A flat row per finished run, condition, organ and test set: the swept values, then the scores. Missing is None."""
    from medmap_model.evaluation import METRICS

    rows = []
    for run in runs:
        if state(run) != "finished":
            continue
        summary = json.loads((run.folder / "summary.json").read_text(encoding="utf-8"))
        stages = {"federated": summary["stages"], **summary["baseline_stages"]}
        for key, test_set in TEST_SETS.items():
            for condition, organs in (summary.get(key) or {}).items():
                curve = stages.get(condition, {}).get("finetune", {}).get("val_score") or [None]
                for organ, scores in (organs or {}).items():
                    rows.append(
                        {"run": run.folder.name, **run.values, "condition": condition, "organ": organ, "test_set": test_set}
                        | {"n": scores.get("n")} | {m: scores.get(m) for m in METRICS}
                        | {"val_auroc": curve[-1]}
                    )  # fmt: skip
    return rows


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A CSV with a header line; None is an empty cell."""
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, list(dict.fromkeys(k for row in rows for k in row)))
        writer.writeheader()
        writer.writerows(rows)
