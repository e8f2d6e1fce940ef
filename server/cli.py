"""`medmap-server`: the coordinator's command. Heavy packages load only when something runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.console import fail
from server.provision import commands as provisioning
from server.running import commands as running

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Coordinate a federation: provision kits, keep the server up, run rounds and watch them, validate, export.\n\n"
    "To simulate one first: `medmap-sim`. docs/coordinator.md goes through all of it.",
)


@app.command()
def report(run_dir: Annotated[Path, typer.Argument(help="A finished run's folder.")]) -> None:
    """Write report.html again from a finished run's summary.json.

    Example: medmap-server report outputs/demo
    """
    if not (run_dir / "summary.json").is_file():
        fail(
            f"{run_dir} holds no finished run (no summary.json): `medmap-server status {run_dir}` says how to go on with it"
        )
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
        fail(str(error))
    except OSError as error:
        fail(f"{output} cannot be written ({error.strerror}): choose another folder")


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
        fail(str(error))
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
    kit: Annotated[Path | None, typer.Option(help="The server's kit, whose SuperLink runs on this machine.")] = None,
    superlink: Annotated[str | None, typer.Option(help="Or: name of a SuperLink in Flower's config.toml.")] = None,
    sites_file: Annotated[Path | None, typer.Option(help="Simulated sites: what `medmap-sim phantom` wrote.")] = None,
    app_dir: Annotated[Path, typer.Option("--app", help="The MedMAP-FL checkout that Flower bundles.")] = Path("."),
) -> None:
    """Have every site validate models, by one noisy histogram each, paid from the site's ledger.

    Runs through Flower: sites must be connected to the SuperLink. Exit code: 0 done, 1 it failed.

    Example: medmap-server validate outputs/a outputs/b -o outputs/validation --kit kits/server
    """
    import json

    from configs import to_json
    from configs.setting import ConfigError
    from medmap_model.checkpoint import CheckpointError
    from server.flower import COMPLETED, FlowerError, SuperLink, simulated
    from server.progress import clean
    from server.validate import FILE, config_for, show

    try:
        more, federation = simulated(sites_file)
        values: dict[str, str | int] = {
            "config": to_json(config_for(checkpoints[0], settings or [])),
            "validate": ",".join(str(c.absolute()) for c in checkpoints),
            "output-dir": str(output.absolute()),
        }
        link = SuperLink.of_kit(kit) if kit else SuperLink(superlink)
        ended = link.wait(link.submit(app_dir, values | more, federation=federation))
    except (ConfigError, CheckpointError, FlowerError) as error:
        fail(str(error))
    if ended.status != COMPLETED or not (output / FILE).is_file():
        fail(
            f"the run ended with {ended.status} ({clean(ended.details) or 'no reason given'}): see the SuperLink's log"
        )
    show(json.loads((output / FILE).read_text(encoding="utf-8")))


for command in (*running.ALL, *provisioning.ALL):
    app.command()(command)


def main() -> None:
    """Entry point of the console script."""
    app()
