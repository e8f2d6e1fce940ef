"""`medmap-client`: what a hospital's engineer types. Heavy packages load only when something runs."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from client.gate import commands
from client.preflight.command import check
from client.preprocess.command import landmarks
from client.qc.command import qc
from client.sources.commands import ingest

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Take part in a federation: check this hospital's data, use the model that came of it.\n\n"
    "Nothing is sent anywhere; messages name patients and files, for this screen only.",
)


app.command()(check)
for quality in (qc, landmarks):
    app.command()(quality)
app.add_typer(ingest, name="ingest")


@app.command()
def predict(
    studies: Annotated[
        list[str],
        typer.Argument(
            metavar="STUDY...",
            help="A manifest (.csv), a folder of NIfTI files, or MODALITY=FILE for each file of one study.",
        ),
    ],
    checkpoint: Annotated[
        Path, typer.Option("--checkpoint", "-c", help="A run's folder, a checkpoint in it, or an exported model.")
    ],
    split: Annotated[str | None, typer.Option(help="Of a manifest: this split's studies alone.")] = None,
    organ: Annotated[str | None, typer.Option(help="The organ, where modalities do not tell it.")] = None,
    vocabulary: Annotated[
        str | None, typer.Option(help="Your vocabulary (a name or a YAML file): refuse a model of another one.")
    ] = None,
    landmarks: Annotated[
        Path | None,
        typer.Option(help="Of a model trained with Nyul's scale learnt at each site: yours, of `landmarks`."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", dir_okay=False, help="Write the JSON to this file.")
    ] = None,
) -> None:
    """Detect abnormalities in studies with a trained model; no label is needed, nothing leaves this machine.

    A folder's files are told apart by the modalities in their names. A volume of a
    modality that the model never saw is listed and ignored. Not a medical device.

    Exit code: 0 done, 1 some study could not be predicted or some volume not read
    (the others are predicted), 2 wrong usage.

    Example: medmap-client predict -c outputs/demo T1=a.nii.gz FLAIR=b.nii.gz
    """
    import json

    from client.exams import UsageError, read_exams
    from client.predict import predict as predictions
    from client.predict import to_json
    from client.preprocess.nyul import read_landmarks
    from client.problems import DataError
    from configs import load_vocabulary
    from configs.setting import ConfigError
    from medmap_model.checkpoint import CheckpointError, load
    from medmap_model.detector import UntrainedError

    try:
        model = load(checkpoint, vocabulary=load_vocabulary(vocabulary) if vocabulary else None)
        if landmarks:
            model.info["volumes"] |= {"landmarks": read_landmarks(landmarks)}
        done = list(predictions(model, read_exams(studies, model.vocabulary, split=split, organ=organ)))
    except DataError as error:
        print(f"medmap-client: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except (ConfigError, CheckpointError, UntrainedError, UsageError) as error:
        _fail(str(error))
    text = json.dumps(to_json(model.info, done), indent=1, ensure_ascii=False, allow_nan=False)
    if output is not None:
        try:
            output.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            _fail(f"{output} cannot be written ({error.strerror}): choose another file")
    if as_json:
        print(text)
    else:
        from rich.console import Console

        from client.results import show

        show(model.info, done, Console())
    raise typer.Exit(0 if all(p.clean for p in done) else 1)


@app.command()
def budget(
    ledger: Annotated[Path, typer.Argument(help="The site's ledger file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    plan: Annotated[
        Path | None,
        typer.Option(help="Would this plan fit? The output of the coordinator's `medmap-server plan --json`."),
    ] = None,
    steps: Annotated[int, typer.Option(min=0, help="Or: what would so many more noisy steps cost?")] = 0,
    noise_multiplier: Annotated[float, typer.Option(min=0.01, help="Of those steps.")] = 1.0,
    sample_rate: Annotated[float, typer.Option(min=1e-6, max=1, help="Of those steps.")] = 0.5,
) -> None:
    """What a ledger says: privacy spent and left, by run and purpose; its chain is checked.

    The JSON is what a coordinator plans by: no patient and no count is in it.
    Asking costs nothing and writes nothing.

    Exit code: 0 all is well, 1 the ledger cannot be read or was changed.

    Example: medmap-client budget /data/mri/north.db --steps 30 --noise-multiplier 2
    """
    import json

    from rich.console import Console

    from client.privacy.budget import budget as told_by
    from client.privacy.budget import open_existing, read_plan, show
    from client.privacy.ledger import LedgerError
    from medmap_model.accounting import Cost

    try:
        planned = read_plan(plan) if plan else []
        planned += [Cost(steps, noise_multiplier, sample_rate)] if steps else []
        told = told_by(open_existing(ledger), planned)
    except LedgerError as error:
        print(f"medmap-client: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    if as_json:
        print(json.dumps(told, indent=1))
    else:
        show(told, Console())


@app.command()
def request(
    name: Annotated[str, typer.Argument(help="The site's name in the federation: the kit's README tells it.")],
    kit: Annotated[Path, typer.Option("--output", "-o", help="The kit's folder.")] = Path("."),
) -> None:
    """Make this site's key, and the request by which the coordinator admits it. The key stays here.

    Example: medmap-client request north
    """
    from client.request import request as make
    from configs.kits import KitError

    try:
        path, fingerprint = make(name, kit)
    except KitError as error:
        _fail(str(error))
    print(
        f"send {path} to the coordinator (no secret is in it), and read them this fingerprint by phone:\n{fingerprint}"
    )


@app.command()
def verify(
    kit: Annotated[Path, typer.Argument(help="The kit's folder, a site's or the server's.")] = Path("."),
    fingerprint: Annotated[
        str | None, typer.Option(help="The authority's, as the coordinator read it to you by phone.")
    ] = None,
) -> None:
    """Check a kit: nothing changed since the coordinator sealed it, keys kept private, certificates and site.yaml good.

    Exit code: 0 all is well, 2 it must not be used.

    Example: medmap-client verify . --fingerprint AB:CD:...
    """
    from client.verify import verify as check_kit
    from configs.kits import KitError
    from configs.setting import ConfigError

    try:
        found = check_kit(kit, fingerprint=fingerprint)
    except (KitError, ConfigError) as error:
        _fail(str(error))
    for warning in found.warnings:
        print(f"medmap-client: {warning}", file=sys.stderr)
    print(f"the kit is as it was sealed by the authority {found.fingerprint}")


@app.command()
def schema() -> None:
    """Print the JSON schema of site.yaml, by which an editor completes it.

    Example: medmap-client schema > site.schema.json
    """
    from client.policy import SiteSettings
    from configs.json_schema import schema_text

    print(schema_text(SiteSettings, title="site.yaml"), end="")


for command in commands.ALL:
    app.command()(command)


def _fail(message: str) -> NoReturn:
    print(f"medmap-client: {message}", file=sys.stderr)
    raise typer.Exit(2)


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the screen's encoding lacks is no reason to end
    app()


if __name__ == "__main__":
    main()
