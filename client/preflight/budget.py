"""The check of the site's privacy budget: the ledger, its chain, and what is left in it; nothing is charged."""

from __future__ import annotations

import os

from client.manifest import ManifestError
from client.preflight.rows import Row, Subject, existing
from client.privacy.budget import budget as told_by
from client.privacy.budget import open_existing
from client.privacy.ledger import LedgerError

_LOW = 0.1  # share of the budget


def budget(subject: Subject) -> Row:
    """Epsilon left in the ledger; where there is none yet, whether it can be made."""
    privacy, path = subject.site.privacy, subject.site.ledger
    demanded = "" if privacy.required else "; site.yaml does not require privacy"
    try:
        patients = len({study.patient_id for study in subject.scanned[0].studies})
    except ManifestError:
        patients = 0
    if privacy.delta * patients >= 1:
        remedy = "Take a smaller privacy.delta in site.yaml, before the ledger is made"
        return Row(
            "failed", f"delta {privacy.delta:g} is not below 1 / patients: every release would be refused", remedy
        )
    if not os.access(existing(path.parent), os.W_OK):
        remedy = "Give this user the right to write there, or name another place in site.yaml (privacy.ledger)"
        return Row("failed", "The ledger's folder cannot be written", remedy, (str(path),))
    if not path.exists():
        found = f"None spent of {privacy.epsilon:g}: the ledger is made at the first release{demanded}"
        return Row("ok", found)
    try:
        told = told_by(open_existing(path))
    except LedgerError as error:
        return Row("failed", "The ledger cannot be used", "Put the newest good copy back", (str(error),))
    if (told["epsilon_budget"], told["delta"]) != (privacy.epsilon, privacy.delta):
        found = (
            f"The ledger keeps epsilon {told['epsilon_budget']:g}, delta {told['delta']:g}; site.yaml says "
            f"{privacy.epsilon:g}, {privacy.delta:g}"
        )
        return Row("failed", found, "A budget stays for the ledger's life: set site.yaml back to it")
    left = told["epsilon_left"]
    found = (
        f"Epsilon {left:.2f} of {privacy.epsilon:g} left, chain of {told['chain']['entries']} entries intact{demanded}"
    )
    if left < _LOW * privacy.epsilon:
        return Row("warning", found, "Ask the coordinator what is planned: rounds beyond the budget are refused")
    return Row("ok", found)
