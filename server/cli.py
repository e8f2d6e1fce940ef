"""`medmap-server`: the coordinator's command. Heavy packages load only when something runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from server.provision import commands

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Coordinate a federation: look at a run, write its report again, export its model.\n\n"
    "A federation itself is started with `flwr run .` against a SuperLink, or simulated with `medmap-sim`.",
)


@app.command()
def status(run_dir: Annotated[Path, typer.Argument(help="A run's folder, finished or not.")]) -> None:
    """Where a run stands: stage, round, losses, and which sites returned an update in the last round.

    Example: medmap-server status outputs/demo
    """
    import json

    lines = run_dir / "metrics.jsonl"
    if not lines.is_file():
        _fail(f"{run_dir} holds no run with a finished round (no metrics.jsonl); give the output_dir of a run")
    history = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    for line in history:
        loss, score = (line[k] for k in ("loss", "val_score"))
        print(
            f"{line['stage']:<9} round {line['round']:>3}/{line['rounds']:<3}"
            f"  loss {'-' if loss is None else f'{loss:.4f}':<8}"
            f"  validation AUROC {'-' if score is None else f'{score:.3f}':<6}"
            f"  {len(line['returned'])} sites, {line['wall_s']:.1f} s"
            + (f"  missing: {', '.join(line['missing'])}" if line["missing"] else "")
            + "".join(f"  refused: {r['site']} ({r['reason']})" for r in line["refused"])
        )
    print(
        "complete" if (run_dir / "summary.json").is_file() else f"not complete; to go on: medmap-sim resume={run_dir}"
    )


@app.command()
def report(run_dir: Annotated[Path, typer.Argument(help="A finished run's folder.")]) -> None:
    """Write report.html again from a finished run's summary.json.

    Example: medmap-server report outputs/demo
    """
    if not (run_dir / "summary.json").is_file():
        _fail(f"{run_dir} holds no finished run (no summary.json); go on with it: medmap-sim resume={run_dir}")
    from server.report import write_report

    print(write_report(run_dir))


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A run's folder, or one checkpoint in it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder for the exported model.")],
    to: Annotated[str, typer.Option(help="safetensors, bundle (MONAI) or onnx.")] = "safetensors",
) -> None:
    """Write a model for others to use, with its model card (README.md): data, sites, scores, privacy, limits.

    Of a finished run's folder the card tells the scores. An ONNX export is held against
    torch and not written if a probability differs by more than 1e-4.

    Example: medmap-server export outputs/demo -o exported --to onnx
    """
    from medmap_model.checkpoint import CheckpointError
    from server.export import ExportError
    from server.export import export as write

    try:
        print(write(checkpoint, output, kind=to))
    except (CheckpointError, ExportError) as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{output} cannot be written ({error.strerror}): choose another folder")


@app.command()
def plan(
    settings: Annotated[list[str] | None, typer.Argument(help="The run's settings, as for medmap-sim.")] = None,
    ledger: Annotated[
        list[Path] | None,
        typer.Option(
            help="What a site tells of its ledger: the output of `medmap-client budget --json`. Once per site."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Solve the noise of a whole schedule (both stages, statistics, validations) from the sites' budgets.

    On top of what each ledger has spent. Nothing is sent or written. Exit code: 0 it fits, 1 it cannot.

    Example: medmap-server plan experiment=flower privacy=patient_dp privacy.validations=1 --ledger north.json
    """
    import json

    from configs import load
    from configs.setting import ConfigError
    from server.plan import plan as planned
    from server.plan import read_told, show

    try:
        config = load(settings or ["privacy=patient_dp"])
        told = planned(config, {path.stem: read_told(path) for path in ledger or []})
    except ConfigError as error:
        _fail(str(error))
    print(json.dumps(told, indent=1)) if as_json else show(told)
    raise typer.Exit(0 if all(s["fits"] for s in told["sites"].values()) else 1)


@app.command()
def validate(
    checkpoints: Annotated[
        list[Path], typer.Argument(metavar="CHECKPOINT...", help="Runs' folders, or checkpoints in them; of one model.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for validation.json.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="A setting, such as privacy.validation_epsilon=0.5.")
    ] = None,
    superlink: Annotated[str | None, typer.Option(help="Name of the SuperLink in Flower's config.toml.")] = None,
    sites_file: Annotated[Path | None, typer.Option(help="Simulated sites: what `medmap-sim phantom` wrote.")] = None,
    app_dir: Annotated[Path, typer.Option("--app", help="The MedMAP-FL checkout that Flower bundles.")] = Path("."),
) -> None:
    """Have every site validate models, by one noisy histogram each, paid from the site's ledger.

    Runs through Flower: sites must be connected to the SuperLink. Exit code: 0 done, 1 it failed.

    Example: medmap-server validate outputs/a outputs/b -o outputs/validation --superlink prod
    """
    import json

    from configs import to_json
    from configs.setting import ConfigError
    from medmap_model.checkpoint import CheckpointError
    from server.flower import FlowerError, submit, wait
    from server.validate import FILE, config_for, show

    try:
        values = {
            "config": to_json(config_for(checkpoints[0], settings or [])),
            "validate": ",".join(str(c.absolute()) for c in checkpoints),
            "output-dir": str(output.absolute()),
        }
        federation = ""
        if sites_file is not None:
            values["sites-file"] = str(sites_file.absolute())
            sites = len(json.loads(sites_file.read_text(encoding="utf-8")))
            federation = f"num-supernodes={sites} client-resources-num-cpus=1"
        status = wait(submit(app_dir, superlink, values, federation=federation), superlink)
    except (ConfigError, CheckpointError, FlowerError) as error:
        _fail(str(error))
    except (OSError, ValueError) as error:
        _fail(f"{sites_file} is not a sites file ({type(error).__name__}); `medmap-sim phantom` writes one")
    if status != "finished:completed" or not (output / FILE).is_file():
        _fail(f"the run ended with {status}: see the SuperLink's log")
    show(json.loads((output / FILE).read_text(encoding="utf-8")))


for command in commands.ALL:
    app.command()(command)


def _fail(sentence: str) -> None:
    print(f"medmap-server: {sentence}", file=sys.stderr)
    raise typer.Exit(1)


def main() -> None:
    """Entry point of the console script."""
    app()
