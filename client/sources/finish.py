"""The end of every `medmap-client ingest`: rows found in; reports, a manifest and a screen of counts out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import typer

from client.sources.found import Found, SourceError


def finish(
    scan: Callable[[], Found],
    source: Path,
    *,
    output: Path | None,
    force: bool,
    vocabulary: str,
    reports: Sequence[str] | None = None,
    private: bool = False,
) -> NoReturn:
    """Run a source, write its manifest (not without `output`; private: for this user alone), print what was found.

    Ends with exit code 0, 1 (something was left out, or nothing found) or 2 (a wrong path or option, one sentence).
    """
    from rich.console import Console

    from client.sources.found import settle
    from client.sources.reports import add_reports, kind_of
    from client.sources.show import show
    from client.sources.write import check_output, write_manifest
    from configs import load_vocabulary
    from configs.setting import ConfigError

    try:
        words = load_vocabulary(vocabulary)
        if output is not None:
            check_output(output, force=force)
        kinds = [kind_of(asked) for asked in reports or ()]
        found = settle(scan(), words)
        add_reports(found, words, kinds)
        if output is not None and found.rows:
            write_manifest(found.rows, output, force=force, private=private)
    except (SourceError, ConfigError) as error:
        print(f"medmap-client: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    show(found, words, source, output, Console(soft_wrap=False))
    raise typer.Exit(1 if found.problems or not found.rows else 0)
