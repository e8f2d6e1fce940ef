"""A request as far as a reply is held against it: its kind, the vectors that came with it, and its JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from client.policy import Egress
from medmap_model import contract
from medmap_model.compression import blocks

SAID_BYTES = 16 << 20  # room for everything in a message that is no vector: JSON, figures, Flower's heads and lists


class Records(Protocol):
    """The records of a message by kind and name, as in Flower's RecordDict."""

    @property
    def array_records(self) -> Mapping[str, Mapping[Any, Any]]:
        """Name -> module group -> array."""

    @property
    def metric_records(self) -> Mapping[str, Mapping[str, Any]]:
        """Name -> figures."""

    @property
    def config_records(self) -> Mapping[str, Mapping[str, Any]]:
        """Name -> fields."""


@dataclass(frozen=True)
class Asked:
    """kind: Flower's message type. arrays: module group -> length of the float32 vector received. body: the JSON that the
    request's handler reads. secure: of an update that is to be a part of a secure sum, what the site needs for it; else None.
    """

    kind: str
    arrays: Mapping[str, int] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    secure: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, kind: str, records: Records) -> Asked:
        """From the request's records. A body that is no JSON object is an empty one: the handler will refuse it.

        Raises ValueError for arrays that are no plain float32 vectors: by their length a reply's are measured.
        """
        arrays = records.array_records.get(contract.ARRAYS, {})
        for group, array in arrays.items():
            dtype_of(array, math.prod(array.shape[:1]), {"float32"}, f"received module group {shown(group)}")
        secure = _json(records, contract.SECURE) if contract.SECURE in records.config_records else None
        lengths = {str(group): int(array.shape[0]) for group, array in arrays.items()}
        return cls(kind, lengths, _json(records, _BODIES.get(kind, contract.TASK)), secure)

    def most_bytes(self, egress: Egress) -> float:
        """What the parts of a reply can take: what site.yaml allows, and no more than the vectors received can need."""
        vectors = sum(4 * (n + blocks(n)) + 2 * len(contract.npy_header(n)) for n in self.arrays.values())
        return min(egress.maximum_mb * 1e6, vectors) + SAID_BYTES


_BODIES = {
    "evaluate.scores": contract.REQUEST,
    "query.cohort": contract.REQUEST,
    **{f"query.{step}": contract.SECURE for step in contract.SECURE_STEPS},
}


def dtype_of(array: Any, length: int, dtypes: set[str], what: str) -> str:
    """The dtype of an array that is one vector of this length and one of these dtypes, and not a byte more. Raises ValueError."""
    if array.dtype not in dtypes:
        raise ValueError(f"{what} travels as {shown(array.dtype)}, not as {', '.join(sorted(dtypes))}")
    if array.stype != "numpy.ndarray" or tuple(array.shape) != (length,):
        raise ValueError(f"{what} is not one vector of {length} numbers")
    header = contract.npy_header(length, np.dtype(array.dtype).str)
    if len(array.data) != len(header) + length * np.dtype(array.dtype).itemsize or array.data[: len(header)] != header:
        raise ValueError(f"the bytes of {what} are not a plain .npy of {length} numbers")
    return str(array.dtype)


def shown(name: Any) -> str:
    """A name that the run's code wrote, short and on one line."""
    return repr(str(name)[:40])


def _json(records: Records, name: str) -> Mapping[str, Any]:
    try:
        body = json.loads(str(records.config_records[name][name]))
    except (KeyError, ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}
