"""What a federation remembers from round to round besides its weights."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from medmap_model.checkpoint import CheckpointError
from medmap_model.contract import STAGES, Card


@dataclass
class State:
    """All that a round depends on besides the weights, and what has been seen so far. JSON-safe.

    completed: rounds done over both stages; best: checkpoint with the lowest validation loss of the present stage;
    stale: rounds since; pretrained: checkpoint that stage 1 ended with; lines: rounds in metrics.jsonl; pending: the latest
    round's line, until the sites have validated the model that it made (which rides on the next round's replies); trained:
    the sites that have returned an update, and the modalities and organs that they have patients of; run: its id, by which
    sites charge their ledgers and keep what their compressed updates left over; receipts: site -> how far its ledger had
    come, and what it tells of its budget.
    """

    condition: str
    stage: str = STAGES[0]
    round: int = 0
    completed: int = 0
    best: str | None = None
    best_val_loss: float | None = None
    stale: int = 0
    finished: bool = False
    lines: int = 0
    pending: dict[str, Any] | None = None
    pretrained: str | None = None
    trained: dict[str, list[str]] = field(default_factory=lambda: {"sites": [], "modalities": [], "organs": []})
    run: str = ""
    receipts: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, saved: Mapping[str, Any], *, where: Path, condition: str) -> State:
        """What the checkpoint at `where` holds of it. Raises CheckpointError: of another condition, or of a newer version."""
        if saved.get("condition") != condition:
            raise CheckpointError(
                f"{where} is of '{saved.get('condition')}', not of '{condition}': take the folder of a run of its own"
            )
        if unknown := sorted(saved.keys() - {f.name for f in fields(cls)}):
            raise CheckpointError(
                f"{where} holds what this version does not know ({', '.join(unknown)}): a newer one wrote it; install that one"
            )
        return cls(**saved)

    def note_trained(self, cards: Iterable[Card], trunk: Mapping[str, str], left_out: Collection[str]) -> None:
        """A modality counts as trained when a site that has volumes of it has returned an update.

        trunk: modality -> its encoder's name. left_out: module groups that no update of the round has changed.
        """
        for card in cards:
            volumes = {m: n for m, n in card.volumes.items() if f"encoder/{trunk.get(m)}" not in left_out}
            found = {"sites": {card.site: 1}, "modalities": volumes, "organs": card.studies}
            for kind, counts in found.items():
                self.trained[kind] = sorted({*self.trained[kind], *(k for k, n in counts.items() if n)})
