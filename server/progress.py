"""Live progress (stand-in until the real one lands)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """One thing that happened."""

    kind: str
    condition: str
    stage: str = ""
    round: int = 0
    rounds: int = 0
    site: str = ""
    loss: float | None = None
    score: float | None = None
    text: str = ""
    done: int = 0
    total: int = 0


Progress = Callable[[Event], None]
