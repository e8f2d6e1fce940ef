"""Whether a reply was paid for: its receipt and its request, held against the site's own ledger."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from client.gate.asked import Asked
from client.privacy.budget import open_existing
from client.privacy.ledger import Key, LedgerError, Receipt


def uncharged(ledger: Path, asked: Asked, receipt: Mapping[str, Any]) -> str | None:
    """Why the ledger at this path does not bear out the receipt of a reply; None when it does, with a charge for this request."""
    try:
        own = open_existing(ledger)
        own.check_receipt(Receipt(receipt["ledger"], receipt["seq"], receipt["hash"]))
        if receipt.get("budget", own.epsilon) != own.epsilon:
            return f"the receipt tells of another budget than {ledger} has"
        key = _key(asked)
        if not any(c.key == key and c.released for c in own.charges()):
            return f"{ledger} has no charge for this request ({key.stage} {key.round})"
    except LedgerError as error:
        return str(error)
    except (KeyError, TypeError, ValueError) as error:
        return f"the request names nothing that a ledger could charge ({type(error).__name__})"
    return None


def _key(asked: Asked) -> Key:
    """What `client.site` charges this request by."""
    body = asked.body
    if asked.kind == "train":
        return Key(body["run"], body["stage"], int(body["round"]), body["message"])
    stage = {"evaluate.scores": "validation", "query.cohort": "cohort"}[asked.kind]
    return Key(body["run"], stage, int(body["number"]), body["message"])
