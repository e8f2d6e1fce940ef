"""Which engine computes the gradients per patient: as `privacy.engine` says, or the quicker of vmap and the loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

import torch

from client.privacy.gradients import PatientGradients
from client.privacy.losses import RecordLoss
from configs.federated import PrivacyConfig
from medmap_model.batch import Batch
from medmap_model.model import MedMAP

log = logging.getLogger("medmap.client")
_CHOSEN: dict[tuple[object, ...], str] = {}


def build_engine(
    model: MedMAP, loss: RecordLoss, parameters: Iterable[str], privacy: PrivacyConfig, trial: Batch
) -> PatientGradients:
    """The engine of a round. trial: `privacy.chunk` made-up patients, on which `auto` compares vmap with the loop.

    `auto` chooses once per process for a model, a set of parameters and a shape of patients, and never by patients: a time
    or a failure that depended on them would tell of them. Hooks are taken on trust: `checks.check_model` must have passed.
    """
    names = list(parameters)
    if privacy.engine == "hooks":
        from client.privacy.hooks import HookGradients

        return HookGradients(model, loss, names, clip_norm=privacy.clip_norm, chunk=privacy.chunk)
    vmap, loop = (
        PatientGradients(model, loss, names, clip_norm=privacy.clip_norm, chunk=c) for c in (privacy.chunk, 0)
    )
    kind = privacy.engine
    if kind == "auto":
        key = repr(model.config), tuple(names), tuple(trial.volumes.shape), str(trial.volumes.device)
        if key not in _CHOSEN:
            _CHOSEN[key] = quicker(vmap, loop, trial)
        kind = _CHOSEN[key]
    return vmap if kind == "vmap" else loop


def quicker(vmap: PatientGradients, loop: PatientGradients, trial: Batch) -> str:
    """`vmap` or `loop`: whichever takes less time for the trial's patients; the loop where vmap is not possible."""
    slow = _seconds(loop, trial)  # what fails here fails in either engine, and is not to be passed over
    try:
        return "vmap" if _seconds(vmap, trial) <= slow else "loop"
    except (RuntimeError, NotImplementedError, ValueError) as error:  # torch's own, of what vmap has no rule for
        log.warning("privacy.engine=auto: no vmap for this model (%s); a loop, one patient at a time", error)
        return "loop"


def _seconds(engine: PatientGradients, trial: Batch) -> float:
    """Time of the second pass: the first also prepares."""
    begun = 0.0
    for _ in range(2):
        begun = time.perf_counter()
        engine.clipped_sum(trial)
        if trial.volumes.is_cuda:
            torch.cuda.synchronize()
    return time.perf_counter() - begun
