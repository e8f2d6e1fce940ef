"""`medmap-client qc`: look at every volume of a manifest. Heavy packages load only when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer


def qc(
    manifest: Annotated[
        Path,
        typer.Argument(
            metavar="MANIFEST.csv", exists=True, dir_okay=False, readable=True, help="The CSV, one row per volume."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", dir_okay=False, help="Write a page with pictures to this .html file."),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print JSON instead of a table: rows and numbers, without patients, files and pictures."
        ),
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as failures.")] = False,
    limits: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Your own limits, in place of configs/qc.yaml.")
    ] = None,
    vocabulary: Annotated[
        str, typer.Option(help="Name of a vocabulary that comes with MedMAP-FL, or path of a YAML file.")
    ] = "medmom",
) -> None:
    """Measure every volume: geometry, contrast to noise, bias field, ghosting, odd intensities; find duplicates and wrong names.

    A volume is compared with the site's others of its modality. Nothing is changed
    and nothing leaves this machine; the page holds pictures and patient ids, and
    is readable by its owner alone.

    Exit code: 0 nothing failed (with --strict: no warnings either), 1 failures,
    2 wrong usage.

    Example: medmap-client qc /data/mri/manifest.csv -o qc.html
    """
    import json

    from rich.console import Console

    from client.manifest import ManifestError
    from client.qc.limits import DEFAULTS, read_limits
    from client.qc.page import write_page
    from client.qc.run import examine
    from client.qc.show import show
    from configs import load_vocabulary
    from configs.setting import ConfigError

    if output is not None and output.suffix.lower() not in (".html", ".htm"):
        _fail(f"{output} is no name of a page: end it with .html, so that no data are overwritten")
    if output is not None and not output.parent.is_dir():  # before anything is measured
        _fail(f"{output} cannot be written (there is no folder {output.parent}): choose another file")
    try:
        said, words = read_limits(limits or DEFAULTS), load_vocabulary(vocabulary)
    except ConfigError as error:
        _fail(str(error))
    try:
        found = examine(manifest, words, said, progress=Console(stderr=True))
    except ManifestError as error:
        print(f"medmap-client: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    if output is not None:
        try:
            write_page(found, output)
        except OSError as error:
            _fail(f"{output} cannot be written ({error.strerror}): choose another file")
    if as_json:
        print(json.dumps(found.as_dict(), indent=1, allow_nan=False))
    else:
        show(found, Console(soft_wrap=False))
    bad = found.count("failed") + (found.count("warning") if strict else 0)
    raise typer.Exit(int(bad > 0))


def _fail(message: str) -> NoReturn:
    print(f"medmap-client: {message}", file=sys.stderr)
    raise typer.Exit(2)
