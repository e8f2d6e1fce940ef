"""Reads a run's folder for the report: summary, metric lines, settings, examples; every NaN is made None.

A run may have been cut short, so everything but `summary.json` may be absent or end in the middle of a line.
"""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_IMAGE_BYTES = 2_000_000


@dataclass(frozen=True)
class Run:
    """What the report is made from. rounds: a dict per finished round. examples: with images as data URIs."""

    summary: dict[str, Any]
    rounds: list[dict[str, Any]]
    config: str
    examples: list[dict[str, Any]]


def read_run(run_dir: Path) -> Run:
    """Read a run's folder. Raises FileNotFoundError when it has no `summary.json`."""
    summary = _clean(json.loads((run_dir / "summary.json").read_text(encoding="utf-8")))
    validation = run_dir / "validation.json"  # `medmap-server validate` may have written it after the run
    if validation.is_file():
        summary["validation"] = _clean(json.loads(validation.read_text(encoding="utf-8")))
    config = run_dir / "config.yaml"
    return Run(
        summary=summary,
        rounds=_rounds(run_dir / "metrics.jsonl"),
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
        examples=_examples(run_dir / "examples"),
    )


def _clean(value: Any) -> Any:
    """The same JSON with every number that is not finite made None: a gap is never drawn as a figure."""
    if isinstance(value, dict):
        return {str(k): _clean(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_clean(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _rounds(path: Path) -> list[dict[str, Any]]:
    """The metric lines; a round repeated after a resume counts once, with its last values."""
    if not path.is_file():
        return []
    latest: dict[tuple[str, str, int], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = _clean(json.loads(line))
            key = (str(row["condition"]), str(row["stage"]), int(row["round"]))
        except (ValueError, KeyError, TypeError):
            continue  # the last line of a run that was killed
        latest[key] = row
    return list(latest.values())


def _examples(folder: Path) -> list[dict[str, Any]]:
    """The example patients, each slice embedded; a slice that cannot be read has `uri` None."""
    index = folder / "examples.json"
    if not index.is_file():
        return []
    examples = _clean(json.loads(index.read_text(encoding="utf-8")))
    for example in examples:
        for modality in example.get("modalities") or []:
            modality["uri"] = _data_uri(folder, str(modality.get("image") or ""))
            modality["overlay_uri"] = _data_uri(folder, str(modality.get("overlay") or ""))
    return list(examples)


def _data_uri(folder: Path, name: str) -> str | None:
    path = (folder / name).resolve()
    # The name comes from a file: it may not reach outside the folder of examples.
    if not path.is_relative_to(folder.resolve()) or not path.is_file() or path.stat().st_size > MAX_IMAGE_BYTES:
        return None
    data = path.read_bytes()
    if not data.startswith(PNG_SIGNATURE):
        return None
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")
