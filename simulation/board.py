"""The curves of a run's conditions as TensorBoard files: events of the round loop in, scalars per condition and stage out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Self

from server.progress import Event


class TensorBoard:
    """Scalars per condition and stage, as TensorBoard event files in `run_dir/tensorboard/<condition>`."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / "tensorboard"
        self._writers: dict[str, Any] = {}

    def __call__(self, event: Event) -> None:
        """Write what the event measures, at the round of the model it was measured on."""
        ended = event.kind == "round_end"
        if ended and event.loss is not None:
            self._writer(event.condition).add_scalar(f"{event.stage}/loss", event.loss, event.round)
        validated = event.round - ended  # see Event.score
        if event.kind in ("round_end", "stage_end") and event.score is not None and validated > 0:
            self._writer(event.condition).add_scalar(f"{event.stage}/validation_score", event.score, validated)

    def _writer(self, condition: str) -> Any:
        if condition not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            # The condition may hold a site's name: it becomes one folder, whatever is in it.
            name = re.sub(r"[^A-Za-z0-9_-]", "_", condition)
            self._writers[condition] = SummaryWriter(str(self._folder / name), flush_secs=10)
        return self._writers[condition]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for writer in self._writers.values():
            writer.close()
