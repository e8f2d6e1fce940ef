"""What server and site agree on: record names, fields, units, version. The one module both sides import for it.

A parameter travels inside its module group: `encoder/FLAIR` is ONE float32 vector, the group's parameters flattened in the
order of `groups.layout`. Messages:

query        -> reply: records `card` (ConfigRecord, JSON in field `card`)
train        <- records `arrays` (group -> vector), `task` (ConfigRecord, JSON in field `task`: a `Task`)
             -> records `arrays` (the groups it owns and trained), `metrics` (declared keys only, see METRICS);
                validation is of the model as it came, before training: it rides on the train reply
evaluate     <- as train, -> `metrics` alone (after a stage's last round)
compressed update (`strategy.update_dtype`) -> as train, `arrays` being the change as float16 or int8 (`compression`), and record
                `scales` (group -> float32, one per block of 256)
private reply -> as train, `metrics` empty, and record `receipt` (ConfigRecord, JSON in field `receipt`: how far the ledger is)
secure aggregation (`strategy.secure_aggregation`), one round, before and after `train`; JSON in field `secure`, bytes as hex:
query.secure_keys    <- round, me (the site's number) -> cipher, mask: the site's public keys
query.secure_shares  <- round, threshold, keys of all, groups (group -> owners) -> sealed: number -> its shares, encrypted
train                <- as above and record `secure`: round, sealed (number -> shares for this site), weights (group ->
                        [the site's, all owners']) -> as above, `arrays` being masked numbers (uint16 or uint32)
query.secure_unmask  <- round, returned (numbers) -> shares: of a site that returned, `seeds` per group; of another, `key`
evaluate.scores <- records `arrays` (the whole model), `request` (ConfigRecord, JSON in field `request`: a `Request`)
query.cohort    <- record `request`
                -> record `release` (ConfigRecord, JSON in field `release`: organ -> noisy tables), `receipt`
any failure  -> record `refusal` (ConfigRecord: `code` from REFUSALS, `incident`); never an exception's text
"""

from __future__ import annotations

import functools
import io
import json
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

import numpy as np

VERSION = 2

ARRAYS = "arrays"
SCALES = "scales"
METRICS_RECORD = "metrics"
TASK = "task"
CARD = "card"
REFUSAL = "refusal"
RECEIPT = "receipt"
REQUEST = "request"
RELEASE = "release"
SECURE = "secure"

SECURE_STEPS = ("secure_keys", "secure_shares", "secure_unmask")

STAGES = ("pretrain", "finetune")

_DTYPES: dict[np.dtype[Any], str] = {
    np.dtype(np.float32): "<f4",
    np.dtype(np.float16): "<f2",
    np.dtype(np.int8): "|i1",
    np.dtype(np.uint16): "<u2",
    np.dtype(np.uint32): "<u4",
}

# Every figure that may ride on a train reply. A site's policy may send fewer, never others.
METRICS = {
    "loss": "mean training loss of the round",
    "val_loss": "mean loss of the received model over validation patients; absent when there are none",
    "val_score": "finetune: mean validation AUROC over organs; absent when it is undefined",
    "val_studies": "validation studies behind them",
    "steps": "optimiser steps",
    "train_s": "seconds in training",
    "eval_s": "seconds in validation",
    "peak_memory_mb": "peak accelerator memory, MB; process peak on a CPU",
}

# Fixed codes a site may answer instead of an update. The text is for the coordinator's log; nothing of the site is in it.
REFUSALS = {
    "version": "the site runs another contract version",
    "vocabulary": "the site uses another vocabulary",
    "text": "the site's frozen text encoder has another hash",
    "data": "the site's data cannot be read; its own log names the files",
    "task": "the task is not one this site can do",
    "policy": "the site's policy does not allow this",
    "bundle": "the site has not approved this app bundle; its own log says how to",
    "egress": "the site's gate let no such reply out; its own log says why",
    "replay": "the site has answered this very request before",
    "budget": "the site's privacy budget does not allow this round",
    "ledger": "the site's ledger cannot be used; its own log says why",
    "secure": "the site cannot take part in the secure sum of this round; its own log says why",
    "diverged": "the loss is not finite; lower the learning rate",
    "internal": "the site failed; its own log has the incident",
}


@dataclass(frozen=True)
class Task:
    """What a site is asked to do in one round.

    run, message: what a ledger charges by; a message sent anew has another id. receipt: the newest the server has of this
    site's ledger, by which a site notices that its file is an older copy.
    """

    stage: str
    round: int
    rounds: int
    seed: int
    run: str = ""
    message: str = ""
    receipt: dict[str, Any] | None = None
    version: int = VERSION


@dataclass(frozen=True)
class Request:
    """A noisy release that a site is asked for, and what it may cost.

    organs: whose tables, whether or not the site has such patients. epsilon: of discrete Laplace noise, or
    noise_multiplier: of Gaussian noise; the other is 0. Of scores: bins, split (whose scores), known (modalities that the
    model was trained on). Of a cohort: tables. run, number, message: what a ledger charges by; receipt as in `Task`.
    """

    organs: list[str]
    epsilon: float = 0.0
    noise_multiplier: float = 0.0
    bins: int = 8
    split: str = "test"
    known: list[str] | None = None
    tables: list[str] | None = None
    run: str = ""
    number: int = 0
    message: str = ""
    receipt: dict[str, Any] | None = None
    version: int = VERSION


@dataclass(frozen=True)
class Card:
    """What a site says of itself before the first round: counts and hashes, no patient.

    volumes: modality -> training volumes; studies: organ -> training studies; splits: split -> studies.
    """

    site: str
    volumes: dict[str, int]
    studies: dict[str, int]
    splits: dict[str, int]
    vocabulary_hash: str
    text_hash: str
    version: int = VERSION


def to_json(value: Any) -> str:
    """A Task, Request, Card or any JSON-safe value, as it stands in a record's one field."""
    return json.dumps(asdict(value) if is_dataclass(value) and not isinstance(value, type) else value)


def encode_vector(vector: np.ndarray) -> bytes:
    """A 1-D vector in NumPy's .npy format, which Flower puts in an array record: float32, (compressed) float16 or int8,
    (masked) uint16 or uint32."""
    if vector.ndim != 1 or vector.dtype not in _DTYPES:
        raise ValueError(f"a module group is one float32 vector, not {vector.dtype} of shape {vector.shape}")
    return npy_header(vector.shape[0], _DTYPES[vector.dtype]) + vector.tobytes()


def decode_vector(data: bytes) -> np.ndarray:
    """The array in .npy bytes, never unpickled. Raises ValueError when it is not one.

    The header of a vector is known beforehand: comparing it is 20 times as fast as parsing it, and with a dozen groups per
    site parsing is what a round would otherwise wait for.
    """
    header = len(npy_header(0))
    for dtype, descr in _DTYPES.items():
        n, rest = divmod(len(data) - header, dtype.itemsize)
        if n >= 0 and not rest and data[:header] == npy_header(n, descr):
            return np.frombuffer(data, dtype, n, header)
    return np.load(io.BytesIO(data), allow_pickle=False)


@functools.lru_cache(maxsize=1024)
def npy_header(n: int, descr: str = "<f4") -> bytes:
    """What stands before the n numbers of a vector, of NumPy's dtype `descr`, in the .npy format."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": (n,)})
    return stream.getvalue()
