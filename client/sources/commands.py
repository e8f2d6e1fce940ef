"""The commands of `medmap-client ingest`, one per source. Heavy packages load in them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from client.sources.finish import finish
from client.sources.found import Found, SourceError

Root = Annotated[Path, typer.Argument(metavar="PATH", help="The data set's folder.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="The manifest. Without it nothing is written.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a manifest (masks, a review) that is there.")]
Words = Annotated[str, typer.Option("--vocabulary", help="A vocabulary that comes with MedMAP-FL, or a YAML file.")]
Texts = Annotated[
    list[str] | None,
    typer.Option(
        "--reports",
        metavar="KIND",
        help="Where no report is: measured (in the mask), caption (of the label), generated:MODEL (a language model puts "
        "what was measured into words; docs/data.md). Repeatable: the first that can be made.",
    ),
]
_Fold = Annotated[
    int | None, typer.Option(min=1, max=5, help="Train and val of this fold of LLD-MMRI's; else official.")
]
_Masks = Annotated[
    Path | None,
    typer.Option("--write-masks", help="A folder: LLD-MMRI's lesion boxes are written there as masks. Takes -o."),
]


def _check_masks(masks: Path | None, output: Path | None) -> None:
    if masks is not None and output is None:
        print("medmap-client: --write-masks takes -o manifest.csv: without it nothing is written", file=sys.stderr)
        raise typer.Exit(2)


def lld_mmri(
    root: Root,
    output: Output = None,
    fold: _Fold = None,
    rois: Annotated[bool, typer.Option("--rois", help="The lesion crops, not whole volumes.")] = False,
    masks: _Masks = None,
    reports: Texts = None,
    force: Force = False,
    vocabulary: Words = "medmom",
) -> None:
    """LLD-MMRI: liver, 8 phases, 7 classes; whole volumes with Annotation.json, or lesion crops.

    Example: medmap-client ingest lld-mmri /data/LLD-MMRI --fold 1 -o /data/LLD-MMRI/manifest.csv
    """
    from client.sources.lld_mmri import scan

    _check_masks(masks, output)
    finish(
        lambda: scan(root, fold=fold, rois=rois, masks=masks, force=force),
        root,
        output=output,
        force=force,
        vocabulary=vocabulary,
        reports=reports,
    )


def brats(
    root: Root,
    output: Output = None,
    partition: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A FeTS partition (CSV): its institutions are sites."),
    ] = None,
    reports: Texts = None,
    force: Force = False,
    vocabulary: Words = "medmom",
) -> None:
    """BraTS of 2018 to 2024, FeTS: brains with a tumour; T1, T1ce, T2, FLAIR and the tumour's mask.

    Example: medmap-client ingest brats /data/FeTS2022 --partition partitioning_1.csv -o /data/FeTS2022/manifest.csv
    """
    from client.sources.brats import scan

    finish(
        lambda: scan(root, partition=partition),
        root,
        output=output,
        force=force,
        vocabulary=vocabulary,
        reports=reports,
    )


def ixi(
    root: Root,
    output: Output = None,
    reports: Texts = None,
    force: Force = False,
    vocabulary: Words = "medmom",
) -> None:
    """IXI: healthy volunteers of three hospitals; T1 and T2 are used.

    Example: medmap-client ingest ixi /data/IXI -o /data/IXI/manifest.csv
    """
    from client.sources.ixi import scan

    finish(lambda: scan(root), root, output=output, force=force, vocabulary=vocabulary, reports=reports)


def fed_brats(
    root: Root, output: Output = None, reports: Texts = None, force: Force = False, vocabulary: Words = "medmom"
) -> None:
    """Flower's fed-brats: a snapshot of its repository, five sites.

    Example: medmap-client ingest fed-brats /data/fed-brats -o /data/fed-brats/manifest.csv
    """
    from client.sources.fed_brats import scan

    finish(lambda: scan(root), root, output=output, force=force, vocabulary=vocabulary, reports=reports)


def bids(
    root: Root,
    output: Output = None,
    organ: Annotated[str, typer.Option(help="What was imaged.")] = "brain",
    label_column: Annotated[str, typer.Option(help="The column of participants.tsv that tells the abnormality.")] = "",
    label: Annotated[list[str] | None, typer.Option(help="VALUE=CLASS: what a value of it means. Repeatable.")] = None,
    site_column: Annotated[
        str, typer.Option(help="The column that tells the site; else the sidecars' InstitutionName.")
    ] = "site",
    report_column: Annotated[str, typer.Option(help="The column that holds reports.")] = "",
    reports: Texts = None,
    force: Force = False,
    vocabulary: Words = "medmom",
) -> None:
    """A BIDS data set: subjects, sessions, suffixes, sidecars, participants.tsv, lesion masks of derivatives/.

    Example: medmap-client ingest bids /data/ds --label-column group --label patient=tumour -o /data/ds/manifest.csv
    """
    from client.sources.bids import Columns, scan

    pairs = dict(text.partition("=")[::2] for text in label or ())
    if not all(pairs.values()):
        print("medmap-client: --label takes VALUE=CLASS, such as --label patient=tumour", file=sys.stderr)
        raise typer.Exit(2)
    columns = Columns(label_column, site_column, report_column, pairs)
    finish(
        lambda: scan(root, organ=organ, columns=columns),
        root,
        output=output,
        force=force,
        vocabulary=vocabulary,
        reports=reports,
    )


def folder(
    root: Root,
    layout: Annotated[
        Path, typer.Option("--layout", "-l", exists=True, dir_okay=False, help="The YAML that describes it.")
    ],
    output: Output = None,
    reports: Texts = None,
    force: Force = False,
    vocabulary: Words = "medmom",
) -> None:
    """Any folder: a YAML file says by regular expressions what its paths mean. docs/data.md has an example.

    Example: medmap-client ingest folder /data/mri --layout mine.yaml -o /data/mri/manifest.csv
    """
    from client.sources.folder import scan

    finish(lambda: scan(root, layout), root, output=output, force=force, vocabulary=vocabulary, reports=reports)


def medmom(
    lld: Annotated[Path, typer.Argument(metavar="LLD-MMRI", help="LLD-MMRI's folder.")],
    brain: Annotated[Path, typer.Argument(metavar="BRATS", help="A BraTS' folder.")],
    output: Output = None,
    healthy: Annotated[Path | None, typer.Option(help="IXI's folder: brains without a tumour.")] = None,
    fold: _Fold = None,
    masks: _Masks = None,
    reports: Texts = None,
    force: Force = False,
    vocabulary: Words = "medmom",
) -> None:
    """MedMoM-MRI3D as the paper's counts suggest: LLD-MMRI and a BraTS; says what is unknown.

    Example: medmap-client ingest medmom /data/LLD-MMRI /data/BraTS2020 --healthy /data/IXI -o /data/medmom.csv
    """
    from client.sources.medmom import scan

    _check_masks(masks, output)
    finish(
        lambda: scan(lld, brain, healthy=healthy, fold=fold, masks=masks, force=force),
        lld,
        output=output,
        force=force,
        vocabulary=vocabulary,
        reports=reports,
    )


def dicom(
    root: Root,
    output: Output = None,
    review: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="An edited review (CSV): what it says is done.")
    ] = None,
    review_to: Annotated[Path | None, typer.Option(help="Write the review here, to be edited.")] = None,
    rules: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Your own rules, in place of configs/dicom/rules.yaml."),
    ] = None,
    organ: Annotated[str | None, typer.Option(help="The organ of every series, where names do not tell it.")] = None,
    key: Annotated[
        Path | None, typer.Option(help="The pseudonyms' secret; made on first use. Else in this user's settings.")
    ] = None,
    report_table: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="CSV: accession_number, report[, abnormality].")
    ] = None,
    deface: Annotated[
        str | None, typer.Option(help="For heads: a command with {input} and {output}, of a tool that you have.")
    ] = None,
    copies: Annotated[bool, typer.Option("--dicom-copies", help="De-identified DICOM copies as well.")] = False,
    reports: Texts = None,
    force: Force = False,
    vocabulary: Words = "medmom",
) -> None:
    """DICOM, a folder tree or a PACS export: series to modalities by rules, NIfTI, pseudonyms, reports of SR or CSV.

    Example: medmap-client ingest dicom /data/export --review-to review.csv, then
    medmap-client ingest dicom /data/export --review review.csv -o /data/mri/manifest.csv
    """

    def scan() -> Found:
        try:
            from client.dicom.ingest import Request, ingest
        except ModuleNotFoundError as error:
            raise SourceError(f"{error.name} is not installed: pip install 'medmap-fl[ingest]'") from None
        from rich.console import Console

        from configs import load_vocabulary

        secret = key or Path(typer.get_app_dir("medmap-client"), "pseudonyms.key")
        request = Request(root, secret, output, organ, rules, review, review_to, report_table, deface, copies, force)
        return ingest(request, load_vocabulary(vocabulary), Console(soft_wrap=False))

    finish(scan, root, output=output, force=force, vocabulary=vocabulary, reports=reports, private=True)


ALL: dict[str, Callable[..., None]] = {
    "lld-mmri": lld_mmri,
    "brats": brats,
    "fed-brats": fed_brats,
    "ixi": ixi,
    "medmom": medmom,
    "bids": bids,
    "folder": folder,
    "dicom": dicom,
}

ingest = typer.Typer(
    no_args_is_help=True,
    help="Turn a data set's folder into a manifest. Nothing of the folder is changed; without -o it is a dry run.\n\n"
    "Exit code: 0 all was understood, 1 something was left out (and is listed), 2 wrong usage.",
)
for _name, _command in ALL.items():
    ingest.command(_name)(_command)
