"""One ONNX file per organ: volumes (B, M, D, H, W) and present (B, M) -> probabilities (B, C), held against torch."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medmap_model.checkpoint import LoadedMedMAP, to_json
from medmap_model.detector import Detector

TOLERANCE = 1e-4  # largest difference of a probability that passes
_LARGEST_BATCH = 4096


class DisagreementError(ValueError):
    """The exported network does not give what the model gives."""


def write_onnx(target: Path, model: LoadedMedMAP) -> None:
    """`ORGAN.onnx` and `ORGAN.json` (slots, classes, preprocessing) for every organ that was trained.

    Raises DisagreementError, and ModuleNotFoundError where onnx, onnxscript or onnxruntime is missing.
    """
    import onnxruntime  # noqa: F401  before the minute that an export takes
    import onnxscript  # noqa: F401

    from server.export import contract_of

    for organ in model.info["organs"]:
        told, path = contract_of(model, organ), target / f"{organ}.onnx"
        difference = _write(path, model, organ, told)
        (target / f"{organ}.json").write_bytes(to_json(told | {"largest_difference_from_torch": difference}))


def _write(path: Path, model: LoadedMedMAP, organ: str, told: dict[str, object]) -> float:
    """Export one organ and return the largest difference of a probability. Raises DisagreementError."""
    detector = Detector(model, organ)
    volumes, present = _example(model, organ, records=3, seed=0)
    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    shapes = {"volumes": {0: batch}, "present": {0: batch}}
    with _quiet(), torch.no_grad():
        # strict: traced by Dynamo, which takes the length of a batch for a symbol; otherwise it would be fixed to 3
        program = torch.export.export(detector, (volumes, present), dynamic_shapes=shapes, strict=True)
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["volumes", "present"],
            output_names=["probabilities"],
            verbose=False,
        )
        assert exported is not None
        exported.model.metadata_props["medmap"] = json.dumps(told)
        exported.save(path)
    worst = largest_difference(path, model, organ)
    if not worst <= TOLERANCE:
        raise DisagreementError(
            f"the ONNX model of the {organ} differs from torch by {worst:.2g} (at most {TOLERANCE:g} is allowed): nothing was "
            "written; report it with the versions of torch and onnxruntime"
        )
    return worst


def largest_difference(path: Path, model: LoadedMedMAP, organ: str) -> float:
    """Between onnxruntime and `model` as it predicts, over batches of 1 to 2 M + 2 records and every kind of absence.

    Absent slots hold what is not a number: nothing of it may come through.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    volumes, present = _example(model, organ, records=2 * len(model.slots(organ)) + 2, seed=1)
    seen = torch.tensor([m in model.info["modalities"] for m in model.slots(organ)])
    spoilt = torch.where(present[..., None, None, None], volumes, torch.nan)
    worst = 0.0
    for rows in (slice(0, 1), slice(1, 2), slice(0, None)):
        given = {"volumes": spoilt[rows].numpy(), "present": present[rows].numpy()}
        found = session.run(None, given)[0]
        there = present[rows] & seen
        with torch.no_grad():
            embedded = model.encode(volumes[rows], there, organ)
            logits = model.classify(model.fuse(embedded, there, organ), organ)
            wanted = model.probabilities(logits, organ).numpy()
        difference = float(np.abs(found - wanted).max())
        worst = difference if not difference <= worst else worst  # a nan stays
    return worst


def _example(model: LoadedMedMAP, organ: str, *, records: int, seed: int) -> tuple[Tensor, Tensor]:
    """Volumes and a mask: all there, each modality alone, each one missing, none there; then again."""
    slots = len(model.slots(organ))
    kinds = [[True] * slots]
    kinds += [[i == k for i in range(slots)] for k in range(slots)]
    kinds += [[i != k for i in range(slots)] for k in range(slots)]
    kinds += [[False] * slots]
    size = int(model.info["volumes"]["size"])
    generator = torch.Generator().manual_seed(seed)
    volumes = torch.randn(records, slots, size, size, size, generator=generator)
    return volumes, torch.tensor([kinds[i % len(kinds)] for i in range(records)])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's progress on stdout and its log of operators that it does not need."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
