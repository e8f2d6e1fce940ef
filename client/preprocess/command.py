"""`medmap-client landmarks`: Nyul's scales of a manifest's training volumes, as a file that a run's settings take."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def landmarks(
    manifest: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The CSV, one row per volume.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", dir_okay=False, help="Write to this file, not to the screen.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the run, such as data.volumes.bias_correction=n4. May be repeated."),
    ] = None,
) -> None:
    """Learn the standard intensity scale (Nyul) of each modality from the training patients of a manifest.

    For data that are public, or for a hospital's own use of a model that was
    trained with data.volumes.standardise=nyul. Of patients it holds averages
    over all training volumes: it is not differentially private.

    Exit code: 0 done, 1 the manifest or the volumes have problems, 2 wrong usage.

    Example: medmap-client landmarks public.csv -o landmarks.yaml, then
    medmap-sim data.volumes.standardise=nyul "data.volumes.landmarks=$(tr -d ' ' < landmarks.yaml)"
    """
    import yaml

    from client.preprocess.learn import learn
    from client.problems import DataError
    from configs import load
    from configs.setting import ConfigError

    if output is not None and output.suffix.lower() not in (".yaml", ".yml"):
        print(f"medmap-client: {output}: end it with .yaml, so that no data are overwritten", file=sys.stderr)
        raise typer.Exit(2)
    try:
        found = learn(manifest, load(settings or []))
    except ConfigError as error:
        print(f"medmap-client: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except DataError as error:
        print(f"medmap-client: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    text = yaml.safe_dump(
        {m: list(row) for m, row in found.items()}, default_flow_style=True, width=10**6, sort_keys=False
    )
    if output is None:
        print(text, end="")
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        print(f"medmap-client: {output} cannot be written ({error.strerror}): choose another file", file=sys.stderr)
        raise typer.Exit(2) from None
