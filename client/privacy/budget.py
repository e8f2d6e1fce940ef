"""What a ledger says, for its owner: spent, left, by run and purpose, and what another plan would cost; as a dict or a table."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.privacy.ledger import Ledger, LedgerError
from medmap_model.accounting import Cost, merged, spent

if TYPE_CHECKING:
    from rich.console import Console


def open_existing(path: Path) -> Ledger:
    """The ledger at `path` with the budget written in it. Raises LedgerError when there is none."""
    if not path.is_file():
        raise LedgerError(f"{path} is not there: a ledger is made when a site first trains with privacy")
    try:
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            meta = dict(db.execute("SELECT key, value FROM ledger"))
        finally:
            db.close()
        return Ledger(path, epsilon=float(meta["epsilon"]), delta=float(meta["delta"]))
    except (sqlite3.Error, KeyError, ValueError) as error:
        raise LedgerError(f"{path} is not a readable ledger ({error}): restore the newest good copy") from None


def read_plan(path: Path) -> list[Cost]:
    """The costs of a plan that the coordinator sent (`medmap-server plan --json`). Raises LedgerError when it is none."""
    try:
        return [Cost(**c) for c in json.loads(path.read_text(encoding="utf-8"))["costs"]]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise LedgerError(
            f"{path} is not a plan ({type(error).__name__}): ask the coordinator for `medmap-server plan --json`"
        ) from None


def budget(ledger: Ledger, planned: Sequence[Cost] = ()) -> dict[str, Any]:
    """Everything `medmap-client budget --json` prints. planned: what is asked about.

    by_run: epsilon of each run and purpose as if it were alone; these do not add up, since composition is not addition.
    """
    charges = ledger.charges()
    groups: dict[tuple[str, str], list[Cost]] = {}
    for c in charges:
        groups.setdefault((c.key.run, c.purpose), []).append(c.cost)
    total = spent([c.cost for c in charges], delta=ledger.delta)
    told: dict[str, Any] = {
        "ledger": ledger.id,
        "epsilon_budget": ledger.epsilon,
        "epsilon_spent": total,
        "epsilon_left": max(0.0, ledger.epsilon - total),
        "delta": ledger.delta,
        "unit": "patient",
        "charges": len(charges),
        "released": sum(c.released for c in charges),
        "history": [asdict(c) for c in merged(c.cost for c in charges)],
        "chain": {"entries": ledger.verify(), "intact": True, **asdict(ledger.receipt())},
        "by_run": [
            {"run": run, "purpose": purpose, "charges": len(costs), "epsilon_alone": spent(costs, delta=ledger.delta)}
            for (run, purpose), costs in groups.items()
        ],
    }
    if planned:
        after = spent([*(c.cost for c in charges), *planned], delta=ledger.delta)
        told["planned"] = {"epsilon_after": after, "fits": after <= ledger.epsilon}
    return told


def show(told: dict[str, Any], console: Console) -> None:
    """The same as a page of text."""
    from rich import box
    from rich.table import Table

    console.print(
        f"epsilon {told['epsilon_spent']:.3f} of {told['epsilon_budget']:g} spent, {told['epsilon_left']:.3f} left "
        f"(delta {told['delta']:g}, each patient, over the ledger's life)",
        style="bold",
    )
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("run", "purpose", "charges", "epsilon if it were alone"):
        table.add_column(column, justify="right" if column.startswith(("charges", "epsilon")) else "left")
    for row in told["by_run"]:
        table.add_row(row["run"][:12], row["purpose"], str(row["charges"]), f"{row['epsilon_alone']:.3f}")
    if told["by_run"]:
        console.print(table)
    if planned := told.get("planned"):
        verdict = "fits" if planned["fits"] else "would exceed the budget: it would be refused"
        console.print(f"with what is planned: epsilon {planned['epsilon_after']:.3f}, {verdict}")
    chain = told["chain"]
    console.print(f"chain of {chain['entries']} entries intact; last {chain['hash'][:16]}", style="dim")
