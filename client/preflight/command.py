"""`medmap-client check`: of a manifest, or of everything that a site.yaml names. Heavy packages load only when it runs."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from configs.schema import VolumesConfig

_DEFAULTS = VolumesConfig()
_OF_MANIFEST = {"vocabulary": "--vocabulary", "spacing_mm": "--spacing-mm", "size": "--size"}
_OF_SITE = {
    "kit": "--kit", "settings": "--set", "skip": "--skip", "dry_run": "--no-dry-run", "as_json": "--json",
}  # fmt: skip


def check(
    context: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(
            metavar="MANIFEST.csv|site.yaml",
            exists=True,
            dir_okay=False,
            readable=True,
            help="The CSV, one row per volume; or site.yaml, for everything that taking part needs.",
        ),
    ],
    vocabulary: Annotated[
        str, typer.Option(help="Of a CSV: name of a vocabulary that comes with MedMAP-FL, or path of a YAML file.")
    ] = "medmom",
    spacing_mm: Annotated[
        float, typer.Option(min=0.2, max=20, help="Of a CSV: voxel edge that training resamples to.")
    ] = _DEFAULTS.spacing_mm,
    size: Annotated[
        int, typer.Option(min=8, max=256, help="Of a CSV: voxels along each edge of the cube that training sees.")
    ] = _DEFAULTS.size,
    headers_only: Annotated[
        bool, typer.Option("--headers-only", help="Do not read voxels: faster, but damage goes unseen.")
    ] = False,
    kit: Annotated[
        Path | None, typer.Option(help="Of a site.yaml: the kit's folder, unless site.yaml is in it.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Of a site.yaml: a setting of the run, such as model=small. May be repeated."),
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(help="Of a site.yaml: a check to leave out. May be repeated.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run/--no-dry-run", help="Of a site.yaml: train a batch.")] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Of a site.yaml: print JSON, without patients, files and folders.")
    ] = False,
) -> None:
    """Find every problem of a manifest and its volumes, or of all that taking part needs, and say how to mend it.

    A manifest is a CSV file with a row per volume and the columns patient_id,
    study_id, modality, image and, as far as known, organ, abnormality, report,
    mask, site, split. Paths are relative to the manifest.

    With a site.yaml: versions, disk, memory, GPU, clock, the way to the server,
    keys and certificates, approved code, the privacy budget, the manifest,
    patients in two splits, images that are there twice, modalities, and a batch
    of training on a few of the patients, in a process of its own. Nothing is
    charged; the server is asked whether it is there, and told nothing.

    Exit code: 0 no problems (of a site.yaml: nothing failed), 1 problems, 2 wrong usage.

    Example: medmap-client check /data/mri/manifest.csv

    Example: medmap-client check site.yaml --json
    """
    from click.core import ParameterSource

    is_site = path.suffix.lower() in (".yaml", ".yml")
    for name, option in (_OF_MANIFEST if is_site else _OF_SITE).items():
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            remedy = "is of a CSV: write --set data...=..." if is_site else "is of a site.yaml, not of a CSV"
            _fail(f"{option} {remedy}")
    if not is_site:
        _check_manifest(path, vocabulary, VolumesConfig(spacing_mm=spacing_mm, size=size), headers_only=headers_only)
    from client.preflight.run import preflight
    from configs.kits import KitError
    from configs.setting import ConfigError

    left_out = [*(skip or []), *([] if dry_run else ["dry-run"])]
    try:
        code = preflight(
            path, kit=kit, settings=settings or [], skip=left_out, headers_only=headers_only, as_json=as_json
        )
    except (ConfigError, KitError) as error:
        _fail(str(error))
    raise typer.Exit(code)


def _check_manifest(manifest: Path, vocabulary: str, config: VolumesConfig, *, headers_only: bool) -> NoReturn:
    from rich.console import Console
    from rich.text import Text

    from client.check import check_site, problem_table, show
    from client.manifest import ManifestError
    from configs import load_vocabulary
    from configs.setting import ConfigError

    gc.set_threshold(50_000)  # 100,000 rows stay to the end: walking over them for garbage is a seventh of the time
    console = Console(soft_wrap=False)
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
