"""`medmap-sim`: simulate a federation of hospitals. Heavy packages load only when something runs."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from configs.schema import Config

HELP = """\
medmap-sim - simulate a federation of hospitals that trains MedMAP, and see what it brings

  medmap-sim [run] [key=value ...]     data, federation, baselines, comparison, report
  medmap-sim partition [key=value ...] who has what: a table, partition.png, partition.json; nothing trains
  medmap-sim phantom [key=value ...]   write the simulated MRI data only, and say where
  medmap-sim -m key=a,b [key=value ..] a run per combination of values, one after the other, and a table over them
  medmap-sim config [key=value ...]    print every setting with its value and meaning

examples
  medmap-sim                                   the demo: six hospitals, two organs (a few minutes on two cores)
  medmap-sim experiment=smoke output_dir=DIR   the whole path in under a minute
  medmap-sim sites=label_skew sites.count=8 seed=1 output_dir=outputs/skew
  medmap-sim data=manifest data.manifest=my.csv sites=natural sites.column=hospital
  medmap-sim partition data=manifest data.manifest=my.csv sites=scanner_clusters output_dir=outputs/who
  medmap-sim resume=outputs/demo               go on with an interrupted run
  medmap-sim -m experiment=ablation            what each part of MedMAP brings: five variants, three seeds

named settings
{groups}
A run leaves summary.json, report.html, config.yaml, metrics.jsonl, checkpoints/ and tensorboard/ in its output_dir.
-m (--multirun) leaves a folder per run, sweep.csv, sweep_mean.csv and sweep.png; given again, it repeats no finished run.
Exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted (it can be resumed).
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exits with a true code and, for a user's mistake, one clear sentence."""
    sys.exit(_main(list(sys.argv[1:] if arguments is None else arguments)))


def _main(arguments: list[str]) -> int:
    from configs import GROUPS, choices, load
    from configs.setting import ConfigError

    if any(a in ("-h", "--help", "help") for a in arguments):
        print(HELP.format(groups="".join(f"  {g:<11} {', '.join(choices(g))}\n" for g in GROUPS)), end="")
        return 0
    many = [a for a in arguments if a in ("-m", "--multirun")]
    arguments = [a for a in arguments if a not in ("-m", "--multirun")]
    command = arguments.pop(0) if arguments and "=" not in arguments[0] else "run"
    if command not in ("run", "partition", "phantom", "config"):
        return _fail(f"there is no command '{command}': take run, partition, phantom or config (medmap-sim --help)", 2)
    if many and command != "run":
        return _fail(f"{many[0]} runs what it varies: it does not go with '{command}'", 2)
    try:
        if many:
            from simulation.sweep import sweep

            return sweep(arguments)
        config = load(arguments)
        if command == "config":
            return _print_config(config)
        return {"run": _run, "partition": _partition, "phantom": _phantom}[command](config)
    except ConfigError as error:
        return _fail(str(error), 2)


def _run(config: Config) -> int:
    for polite in (signal.SIGINT, signal.SIGTERM):  # either ends the run cleanly: nothing is lost
        signal.signal(polite, signal.default_int_handler)
    from server.progress import make_progress
    from server.running.lock import FolderBusy
    from simulation.experiment import run
    from simulation.packages import RealDataError
    from simulation.summary import print_summary
    from simulation.workers import MISTAKES, Stopped

    try:
        with make_progress() as progress:
            folder = run(config, progress)
    except (KeyboardInterrupt, Stopped):
        where = config.resume or config.output_dir
        return _fail(f"interrupted. Every finished round is kept; to go on: medmap-sim resume={where}", 130)
    except (*MISTAKES, FolderBusy, RealDataError) as error:
        return _fail(str(error), 1)
    print_summary(folder)
    return 0


def _partition(config: Config) -> int:
    from client.manifest import ManifestError
    from configs import load_vocabulary
    from server.progress import make_progress
    from simulation import census

    if config.data.kind == "real":
        return _fail("data.kind=real: its hospitals are fixed; take data=phantom or data=manifest", 2)
    if Path(config.output_dir, "config.yaml").exists():
        return _fail(
            f"output_dir={config.output_dir} holds a run, whose partition is its own: give another output_dir", 2
        )
    vocabulary, folder = load_vocabulary(config.data.vocabulary), Path(config.output_dir).absolute()
    try:
        if config.data.kind == "manifest":
            from simulation.manifests import manifest_hospitals

            with make_progress() as progress:
                hospitals = manifest_hospitals(config, vocabulary, folder, progress)
            told = census.of_hospitals(hospitals, vocabulary)
        else:
            from simulation.sites import plan_sites

            told = census.of_plan(plan_sites(config.sites, vocabulary, seed=config.seed), vocabulary, seed=config.seed)
        census.write_census(told, folder)
    except (ManifestError, OSError) as error:
        return _fail(str(error), 1)
    census.print_census(told)
    print(f"picture: {folder / census.PICTURE}")
    return 0


def _phantom(config: Config) -> int:
    from configs import load_vocabulary
    from server.files import write_json
    from server.progress import make_progress
    from simulation.experiment import prepare_data

    if config.data.kind != "phantom":
        return _fail(f"data.kind={config.data.kind}: `medmap-sim phantom` writes simulated data; take data=phantom", 2)
    with make_progress() as progress:
        hospitals, _ = prepare_data(
            config, load_vocabulary(config.data.vocabulary), Path(config.output_dir).absolute(), progress
        )
    folder = hospitals[0].entry.manifests[0].parent.parent
    trained = [h.entry for h in hospitals if not h.external]
    write_json(folder / "sites.json", [{"name": e.name, "manifests": [f"{e.name}/manifest.csv"]} for e in trained])
    print(f"{len(hospitals)} hospitals in {folder}")
    print(f"check one:      medmap-client check {folder / trained[0].name / 'manifest.csv'}")
    print(
        f"Flower's own:   flwr run . --run-config 'sites-file=\"{folder / 'sites.json'}\"' "
        f"--federation-config 'num-supernodes={len(trained)} client-resources-num-cpus=1'"
    )
    return 0


def _print_config(config: Config) -> int:
    import functools

    from configs import keys

    for key, _, meaning in keys():
        value = functools.reduce(getattr, key.split("."), config)
        print(f"{key}={value}".ljust(48) + f"  {meaning}")
    return 0


def _fail(sentence: str, code: int) -> int:
    print(f"medmap-sim: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":  # each run of a sweep is `python -m simulation.cli`
    main()
