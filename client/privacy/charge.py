"""The charge around whatever a site computes from its patients: before it the ledger pays, after it the reply may leave."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from client.privacy.ledger import BudgetExceeded, Key, Ledger, LedgerError, Receipt
from client.problems import SiteError
from configs.federated import PrivacyConfig
from medmap_model.accounting import Cost


def open_ledger(path: Path, privacy: PrivacyConfig) -> Ledger:
    """The ledger at `path`, made at first use. Raises SiteError (`ledger`)."""
    try:
        return Ledger(path, epsilon=privacy.epsilon, delta=privacy.delta)
    except LedgerError as error:
        raise SiteError("ledger", str(error)) from None


@contextmanager
def charged(ledger: Ledger, key: Key, purpose: str, cost: Cost, receipt: dict[str, Any] | None) -> Iterator[None]:
    """Charge, then compute what is to leave; marked as released at the end.

    A failure leaves too, as a refusal that may depend on who was drawn: it is marked alike, so that a second try is charged
    anew. receipt: the newest that the server has. Raises SiteError: `budget` when the charge
    would exceed it, `ledger` when the ledger cannot be used.
    """
    try:
        if receipt is not None:
            ledger.check_receipt(Receipt(**receipt))
        ledger.reserve(key, purpose, cost)
    except BudgetExceeded as error:
        raise SiteError("budget", str(error)) from None
    except (LedgerError, TypeError) as error:
        raise SiteError("ledger", str(error)) from None
    try:
        yield
    finally:
        ledger.release(key)
