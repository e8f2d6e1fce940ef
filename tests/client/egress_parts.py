"""Replies of a site, good ones, and what is said of one: for the tests of what may leave."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.constant import SType

from client.gate.asked import Asked
from client.gate.egress import objection
from client.gate.names import Names
from client.policy import SIMULATED, Egress, Privacy
from configs import load_vocabulary
from medmap_model import contract
from medmap_model.contract import Card, Task

N = 300
GROUP = "encoder/FLAIR"
OPEN, PRIVATE = Privacy(required=False), Privacy()
NORTH = Names("north", load_vocabulary("medmom"))
SUM = {"sealed": {"2": "ab", "3": "cd"}}  # with two others
HASH = "ab" * 32
RECEIPT = {"ledger": "cd" * 16, "seq": 3, "hash": HASH, "spent": 0.5, "budget": 8.0}
CARD = Card("north", {"T1": 40, "C+A": 0}, {"brain": 40}, {"train": 30, "val": 10}, HASH[:16], HASH)


def array(vector: np.ndarray) -> Array:
    return Array(str(vector.dtype), vector.shape, SType.NUMPY, contract.encode_vector(vector))


def arrays(dtype: str = "float32", *, n: int = N, group: str = GROUP) -> ArrayRecord:
    return ArrayRecord({group: array(np.ones(n, dtype))})


def said(name: str, value: Any) -> ConfigRecord:
    return ConfigRecord({name: contract.to_json(value)})


def asked(kind: str = "train", **more: Any) -> Asked:
    task = Task("pretrain", 1, 2, 0, run="r", message="m")
    request = RecordDict({"arrays": arrays(), "task": said("task", task)})
    return replace(Asked.of(kind, request), **more)


def update(**records: Any) -> RecordDict:
    return RecordDict({"arrays": arrays(), "metrics": MetricRecord({"loss": 1.0, "val_loss": 2.0})} | records)


def why(
    reply: RecordDict, to: Asked, egress: Egress = SIMULATED, privacy: Privacy = OPEN, names: Names | None = None
) -> str:
    return objection(reply, to, egress, privacy, names=names) or ""
