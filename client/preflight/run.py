"""The preflight as a whole: all checks in order, the cheap ones first; their rows as a table or as JSON."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.policy import SiteFile, read_site
from client.preflight.budget import budget
from client.preflight.data import cohort, duplicates, manifest, modalities, splits
from client.preflight.dry_run import dry_run
from client.preflight.kit import bundle, certificate, find_kit
from client.preflight.machine import disk, gpu, memory, versions
from client.preflight.network import clock, reachability
from client.preflight.rows import Row, Subject
from configs import load
from configs.schema import Config
from configs.setting import ConfigError


@dataclass(frozen=True)
class Check:
    """A check by its name. tells_cohort: what it finds depends on how many patients and volumes there are."""

    name: str
    run: Callable[[Subject], Row]
    tells_cohort: bool = False


CHECKS = (
    Check("versions", versions),
    Check("disk", disk, tells_cohort=True),
    Check("clock", clock),
    Check("reachability", reachability),
    Check("certificate", certificate),
    Check("bundle", bundle),
    Check("budget", budget),
    Check("splits", splits, tells_cohort=True),
    Check("modalities", modalities, tells_cohort=True),
    Check("GPU", gpu),
    Check("memory", memory, tells_cohort=True),
    Check("manifest", manifest, tells_cohort=True),
    Check("cohort", cohort, tells_cohort=True),
    Check("duplicates", duplicates, tells_cohort=True),
    Check("dry-run", dry_run, tells_cohort=True),
)
_STYLES = {"ok": "green", "warning": "bold yellow", "failed": "bold red", "skipped": "dim"}
_WITHHELD = "on the site's own screen alone (privacy.cohort: hidden)"


def preflight(
    path: Path, *, kit: Path | None, settings: Sequence[str], skip: Collection[str], headers_only: bool, as_json: bool
) -> int:
    """Run the checks and print their rows. The exit code: 1 where one failed, else 0.

    settings: of the run, as `medmap-sim` takes them. Raises ConfigError and KitError for what cannot be used at all.
    """
    unknown = sorted(set(skip) - {check.name for check in CHECKS})
    if unknown:
        raise ConfigError(f"--skip {unknown[0]}: there is no such check; there are {', '.join(c.name for c in CHECKS)}")
    site = read_site(path)
    progress = Console(stderr=True)
    subject = Subject(path, site, find_kit(path, kit), run_settings(site, settings), progress, headers_only)
    rows = list(run_checks(subject, skip))
    if as_json:
        print(json.dumps(as_dict(rows, site), indent=1))
    else:
        show(rows, Console())
    sys.stdout.flush()
    return int(any(row.result == "failed" for row in rows))


def run_settings(site: SiteFile, settings: Sequence[str]) -> Config:
    """What `flwr run .` takes, with the overrides; private where site.yaml asks for it and they say nothing of privacy."""
    given = {setting.partition("=")[0] for setting in settings}
    defaults = ["experiment=flower"]
    if site.privacy.required and "privacy" not in given:
        defaults += ["privacy=patient_dp", "stage.pretrain.objective=bank"]
    return load([*(d for d in defaults if d.partition("=")[0] not in given), *settings])


def run_checks(subject: Subject, skip: Collection[str] = ()) -> Iterator[Row]:
    """A row for each check; one that raises is a failed row, and the others go on."""
    for check in CHECKS:
        if check.name in skip:
            row = Row("skipped", "as you asked")
        else:
            try:
                row = check.run(subject)
            except Exception as error:
                found = f"The check itself ended with {type(error).__name__}"
                row = Row(
                    "failed", found, "Mend what the line below names, or show it to the coordinator", (str(error),)
                )
        yield replace(row, check=check.name)


def as_dict(rows: Sequence[Row], site: SiteFile) -> dict[str, Any]:
    """What may be sent to the coordinator: no patient, no file, no folder; of a hidden cohort no count either."""
    hidden = {c.name for c in CHECKS if c.tells_cohort} if site.privacy.cohort == "hidden" else set[str]()
    # Withheld is the remedy, too: it says which number was too small.
    withheld = [row.check in hidden and row.result != "skipped" for row in rows]
    told = [
        {
            "check": row.check,
            "result": row.result,
            "found": _WITHHELD if no else row.found,
            "remedy": "" if no else row.remedy,
        }
        for row, no in zip(rows, withheld, strict=True)
    ]
    results = {row.result for row in rows}
    worst = next((r for r in ("failed", "warning") if r in results), "ok")
    return {"schema_version": 1, "site": site.name, "result": worst, "rows": told}


def show(rows: Sequence[Row], console: Console) -> None:
    """A line for each check, what is to be known of those that are not well, and the verdict."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, ratio in (("check", None), ("result", None), ("found", 3), ("what to do", 2)):
        table.add_column(name, ratio=ratio, overflow="fold", no_wrap=ratio is None)
    for row in rows:
        style = _STYLES[row.result]
        table.add_row(Text(row.check), Text(row.result, style), Text(row.found), Text(row.remedy))
    console.print(table)
    for row in rows:
        if row.details:
            console.print(Text(row.check, "bold"))
            for line in row.details:
                console.print(Text(f"  {line}"), soft_wrap=True)
    counts = Counter(row.result for row in rows)
    if counts["failed"]:
        console.print(Text(f"{counts['failed']} failed: mend them before this site starts.", "bold red"))
    elif counts["warning"]:
        console.print(Text(f"This site can start; {counts['warning']} to look at.", "bold yellow"))
    else:
        console.print(Text("This site can start.", "bold green"))
