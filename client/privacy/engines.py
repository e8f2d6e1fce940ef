"""Which engine computes the gradients per patient: as `privacy.engine` says, or the quickest of those that are right."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from client.privacy.gradients import PatientGradients, Vectors
from client.privacy.losses import RecordLoss
from client.privacy.synthetic import synthetic_batch
from configs.federated import PrivacyConfig
from configs.setting import ConfigError
from medmap_model.batch import Batch
from medmap_model.model import MedMAP

log = logging.getLogger("medmap.client")
_AT_ONCE = {
    "layers": 8,
    "vmap": 2,
    "hooks": 2,
    "loop": 0,
}  # patients where privacy.chunk=0: each then takes as much memory
_TOLERANCE = 1e-6  # relative, in float64
_CHOSEN: dict[tuple[object, ...], str] = {}


def make_engine(
    kind: str, model: MedMAP, loss: RecordLoss, parameters: list[str], privacy: PrivacyConfig
) -> PatientGradients:
    """The engine of that name. Raises ConfigError where `layers` has no rule for what trains."""
    known: Callable[..., PatientGradients] = PatientGradients
    if kind == "layers":
        from client.privacy.layers import LayerGradients as known
    elif kind == "hooks":
        from client.privacy.hooks import HookGradients as known
    chunk = 0 if kind == "loop" else privacy.chunk or _AT_ONCE[kind]
    return known(model, loss, parameters, clip_norm=privacy.clip_norm, chunk=chunk)


def build_engine(
    model: MedMAP,
    loss: RecordLoss,
    parameters: list[str],
    privacy: PrivacyConfig,
    *,
    settings: str,
    steady: RecordLoss,
    trial: Batch,
) -> PatientGradients:
    """The engine of a round. trial: made-up patients, on whom `auto` compares engines. settings: what the loss is made by.
    steady: the loss without modality dropout, by which it tries whether `layers` is right.

    `auto` chooses once per process for a model, a set of parameters, a loss and a shape of patients, and never by patients: a
    time or a failure that depended on them would tell of them. What is asked for by name is taken on trust:
    `checks.check_model` must have passed.
    """
    kind = privacy.engine
    if kind == "auto":
        key = repr(model.config), tuple(parameters), settings, tuple(trial.volumes.shape), str(trial.volumes.device)
        if key not in _CHOSEN:
            kinds = ["layers", "vmap", "loop"] if _layers_right(model, steady, parameters, trial) else ["vmap", "loop"]
            _CHOSEN[key] = quickest({k: make_engine(k, model, loss, parameters, privacy) for k in kinds}, trial)
        kind = _CHOSEN[key]
    return make_engine(kind, model, loss, parameters, privacy)


def refuse_if_wrong(engine: PatientGradients, batch: Batch) -> None:
    """Raise ConfigError, in a sentence, unless an engine gives the same gradient for every patient as a loop does.

    batch: made-up patients, all of the same part (`losses.alike`). The engine's model is a copy that can be spoilt (hooks that
    fail stay where they are), in float64 and evaluation mode; its loss is without modality dropout.
    """
    loop = PatientGradients(engine.model, engine.loss, engine.names, clip_norm=engine.clip_norm, chunk=0)
    try:
        name = _first_difference(engine.each(batch), loop.each(batch))
    except Exception as error:  # whatever a layer that an engine cannot deal with raises
        first = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        reason = f"it cannot deal with this model ({first})"
    else:
        reason = f"its gradient of {name} is not that of each patient alone" if name else ""
    if reason:
        raise ConfigError(f"privacy.engine={engine.kind}: {reason}; take privacy.engine=auto")


def _first_difference(found: Vectors, expected: Vectors) -> str:
    """The first parameter whose gradients differ by more than rounding in float64; none: nothing."""
    size = torch.stack([g.norm() for g in expected.values()]).norm()
    for name, right in expected.items():
        if not (found[name] - right).norm() <= _TOLERANCE * torch.maximum(right.norm(), 1e-3 * size):
            return name
    return ""


def _layers_right(model: MedMAP, loss: RecordLoss, parameters: list[str], trial: Batch) -> bool:
    trial_model = copy.deepcopy(model).double().eval()
    try:
        for organ in model.vocabulary.organs:
            size, negatives = trial.volumes.shape[-1], trial.negatives is not None
            batch = synthetic_batch(trial_model, organ, patients=3, size=size, negatives=negatives)
            engine = make_engine("layers", trial_model, loss, parameters, PrivacyConfig(chunk=3))
            refuse_if_wrong(engine, uneven(batch))
    except ConfigError as refused:
        log.info("privacy.engine=auto: %s", str(refused).removeprefix("privacy.engine=").partition(";")[0])
        return False
    return True


def uneven(batch: Batch) -> Batch:
    """The same three patients, of whom the second lacks the first modality and the third all others."""
    present = batch.present.clone()
    if present.shape[1] > 1:
        present[1, 0] = present[2, 1:] = False
    return replace(batch, present=present)


def quickest(engines: Mapping[str, PatientGradients], trial: Batch) -> str:
    """The name of the engine that takes the least time for the trial's patients; one that vmap cannot serve is passed over.

    The loop is the last: what fails there fails in any engine, and is raised.
    """
    seconds: dict[str, float] = {}
    for kind, engine in engines.items():
        try:
            seconds[kind] = _seconds(engine, trial)
        except (RuntimeError, NotImplementedError, ValueError) as error:  # torch's own, of what vmap has no rule for
            if kind == "loop":
                raise
            log.warning("privacy.engine=auto: no %s for this model (%s)", kind, error)
    return min(seconds, key=lambda kind: seconds[kind])


def _seconds(engine: PatientGradients, trial: Batch) -> float:
    """Time of the second pass: the first also prepares."""
    begun = 0.0
    for _ in range(2):
        begun = time.perf_counter()
        engine.clipped_sum(trial)
        if trial.volumes.is_cuda:
            torch.cuda.synchronize()
    return time.perf_counter() - begun
