"""`medmap-client`: what a hospital's engineer types. Heavy packages load only when something runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from configs.schema import VolumesConfig

_DEFAULTS = VolumesConfig()

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Take part in a federation: check this hospital's data.\n\n"
    "Nothing is sent anywhere; messages name patients and files, for this screen only.",
)


@app.callback()
def _commands() -> None:
    """Keeps `check` a command of its own while it is the only one."""


@app.command()
def check(
    manifest: Annotated[
        Path,
        typer.Argument(exists=True, dir_okay=False, readable=True, help="The CSV, one row per volume."),
    ],
    vocabulary: Annotated[
        str, typer.Option(help="Name of a vocabulary that comes with MedMAP-FL, or the path of a YAML file.")
    ] = "medmom",
    spacing_mm: Annotated[
        float, typer.Option(min=0.2, max=20, help="Voxel edge that training resamples to.")
    ] = _DEFAULTS.spacing_mm,
    size: Annotated[
        int, typer.Option(min=8, max=256, help="Voxels along each edge of the cube that training sees.")
    ] = _DEFAULTS.size,
    headers_only: Annotated[
        bool, typer.Option("--headers-only", help="Do not read voxels: faster, but damage goes unseen.")
    ] = False,
) -> None:
    """Find every problem of a manifest and its volumes, and say how to mend it.

    The manifest is a CSV file with a row per volume and the columns patient_id,
    study_id, modality, image and, as far as known, organ, abnormality, report,
    mask, site, split. Paths are relative to the manifest.

    Exit code: 0 no problems, 1 problems, 2 wrong usage.

    Example: medmap-client check /data/mri/manifest.csv
    """
    from rich.console import Console
    from rich.text import Text

    from client.check import check_site, problem_table, show
    from client.manifest import ManifestError
    from configs import load_vocabulary
    from configs.schema import ConfigError

    console = Console(soft_wrap=False)
    config = VolumesConfig(spacing_mm=spacing_mm, size=size)
    try:
        words = load_vocabulary(vocabulary)
    except ConfigError as error:
        _fail(str(error))
    try:
        found = check_site(manifest, words, config, headers_only=headers_only, progress=Console(stderr=True))
    except ManifestError as error:
        console.print(problem_table(error.problems))
        console.print(Text(error.summary, "bold red"))
        raise typer.Exit(1) from None
    show(found, words, config, console)
    raise typer.Exit(1 if found.rows or found.files else 0)


def _fail(message: str) -> NoReturn:
    print(f"medmap-client: {message}", file=sys.stderr)
    raise typer.Exit(2)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
