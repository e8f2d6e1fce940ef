"""`medmap-server`: the coordinator's command. Heavy packages load only when something runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

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


def _fail(sentence: str) -> None:
    print(f"medmap-server: {sentence}", file=sys.stderr)
    raise typer.Exit(1)


def main() -> None:
    """Entry point of the console script."""
    app()
