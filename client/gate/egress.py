"""What may leave a site: one reply, held against what was asked for, the contract and site.yaml, last thing before it is sent.

Everything that is not declared is an objection: records, fields of their JSON, types, names, lengths, dtypes, sizes. JSON must
be written as `contract.to_json` writes it, so that nothing hides in it (a key said twice, blanks). What cannot be seen from
here is what the numbers of an update mean: noise is added by the run's code, which a hospital approves by its hash.

Knows neither Flower nor files; records are read by the few attributes that are named in `Reply`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from client.gate.shapes import DIGITS, Check, counts, fields, hexadecimal, number, table, text, whole
from client.policy import Egress, Privacy
from medmap_model import contract
from medmap_model.compression import blocks
from medmap_model.releases import COHORT, SCALES, SHIFT

Charged = Callable[[Mapping[str, Any]], str | None]
_COUNTED, _COHORT = {"val_studies", "steps"}, {*COHORT, *SHIFT, *SCALES}
_MASKED, _COMPRESSED = {"uint16", "uint32"}, {"float16", "int8"}
_HASH, _KEY, _SEALED = hexadecimal(64), hexadecimal(256), hexadecimal(1 << 20)
_BUDGET: dict[str, Check] = {"spent": number, "budget": number}
_RECEIPT: dict[str, Check] = {"ledger": _HASH, "seq": whole, "hash": _HASH} | _BUDGET
_CARD = fields(
    {
        "site": text, "volumes": table(whole), "studies": table(whole), "splits": table(whole),
        "vocabulary_hash": text, "text_hash": text, "version": whole,
    }
)  # fmt: skip
_REFUSAL = fields({"code": contract.REFUSALS.__contains__, "incident": hexadecimal(16)})
_SECURE = {
    "query.secure_keys": fields({"cipher": _KEY, "mask": _KEY}),
    "query.secure_shares": fields({"sealed": table(_SEALED, keys=DIGITS)}),
    "query.secure_unmask": fields(
        {"shares": table(fields({"seeds": table(_KEY)}), fields({"key": _KEY}), keys=DIGITS)}
    ),
}
_TABLES = {"evaluate.scores": table(counts(3)), "query.cohort": table(table(counts(1, 2)))}


class Reply(Protocol):
    """The records of a reply by kind and name, as in Flower's RecordDict."""

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
    """A request as far as a reply is held against it.

    kind: Flower's message type. arrays: module group -> length of the vector received. body: the JSON of `task` or `request`.
    masked: the update is to be a part of a secure sum.
    """

    kind: str
    arrays: Mapping[str, int] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    masked: bool = False

    @classmethod
    def of(cls, kind: str, records: Reply) -> Asked:
        """From the request's records. A body that is no JSON object is an empty one: the handler will refuse it."""
        arrays = records.array_records.get(contract.ARRAYS, {})
        name = contract.REQUEST if kind in _TABLES else contract.TASK  # the one that its handler reads
        try:
            body: Any = json.loads(str(records.config_records[name][name]))
        except (KeyError, ValueError):
            body = {}
        lengths = {str(g): math.prod(a.shape) for g, a in arrays.items()}
        return cls(kind, lengths, body if isinstance(body, dict) else {}, contract.SECURE in records.config_records)


class _Objection(ValueError):
    """Why a reply may not leave; for the site's own log."""


def objection(
    reply: Reply, asked: Asked, egress: Egress, privacy: Privacy, *, charged: Charged | None = None
) -> str | None:
    """Why this reply may not leave, in words for the site's own log; None when it may.

    charged: asked of a receipt whether the site's ledger has a charge for this request; None: not looked at.
    """
    try:
        _size(reply, egress)
        if set(_names(reply)) == {contract.REFUSAL}:
            if not _REFUSAL(dict(reply.config_records.get(contract.REFUSAL, {}))):
                raise _Objection("a refusal is a code of the contract and an incident")
            return None
        rule = _RULES.get(asked.kind)
        if rule is None:
            raise _Objection(f"there is no request of the kind {_shown(asked.kind)}")
        rule(reply, asked, egress, privacy)
        _receipt(reply, asked, privacy, charged)
    except _Objection as why:
        return str(why)
    return None


def _card(reply: Reply, asked: Asked, egress: Egress, privacy: Privacy) -> None:
    _only(reply, contract.CARD)
    card = _json(reply, contract.CARD, _CARD)
    if privacy.cohort == "hidden":
        return  # what is told of it is noise
    for what in ("splits", "studies", "volumes"):
        for name, count in card[what].items():
            if count != 0 and count < egress.minimum_cohort:
                raise _Objection(
                    f"{what} of {_shown(name)}: {count}, and site.yaml has egress.minimum_cohort {egress.minimum_cohort}: "
                    "leave these rows out of the manifest, have more, or lower it"
                )


def _update(reply: Reply, asked: Asked, egress: Egress, privacy: Privacy) -> None:
    _only(reply, contract.ARRAYS, contract.SCALES, contract.METRICS_RECORD, contract.RECEIPT)
    arrays, scales = (reply.array_records.get(n, {}) for n in (contract.ARRAYS, contract.SCALES))
    if not arrays:
        raise _Objection("an update without arrays")
    if egress.require_secure_aggregation and not asked.masked:
        raise _Objection("site.yaml requires secure aggregation, and this update is not masked")
    compressed = set()
    for group, array in arrays.items():
        if group not in asked.arrays:
            raise _Objection(f"module group {_shown(group)} was not received")
        allowed = _MASKED if asked.masked else {"float32"} | _COMPRESSED
        if _vector(group, array, asked.arrays[group], allowed) in _COMPRESSED:
            compressed.add(group)
    if set(scales) != compressed:
        raise _Objection("scales belong to compressed module groups, one vector each")
    for group in compressed:
        _vector(group, scales[group], blocks(asked.arrays[group]), {"float32"})
    _metrics(reply, egress, privacy)


def _figures(reply: Reply, asked: Asked, egress: Egress, privacy: Privacy) -> None:
    _only(reply, contract.METRICS_RECORD)
    _metrics(reply, egress, privacy)


def told(figures: Mapping[str, Any], egress: Egress, privacy: Privacy) -> dict[str, Any]:
    """Of a site's figures those that may leave: what site.yaml lists, nothing of a validation with fewer studies than
    egress.minimum_cohort behind it, and of a hidden cohort nothing that counts its patients exactly."""
    few = 0 < figures.get("val_studies", 0) < egress.minimum_cohort
    counted = _COUNTED if privacy.cohort == "hidden" else set[str]()
    return {
        name: value
        for name, value in figures.items()
        if name in egress.metrics and name not in counted and not (few and name.startswith("val_"))
    }


def _metrics(reply: Reply, egress: Egress, privacy: Privacy) -> None:
    figures = reply.metric_records.get(contract.METRICS_RECORD, {})
    for name, value in figures.items():
        if privacy.required:
            raise _Objection(f"figure {_shown(name)}: site.yaml requires privacy, a figure has no noise")
        if name not in contract.METRICS or name not in egress.metrics:
            raise _Objection(f"figure {_shown(name)} is not one of site.yaml's egress.metrics")
        if type(value) not in (int, float):
            raise _Objection(f"figure {_shown(name)} is not one number")
    for name in figures.keys() - told(figures, egress, privacy).keys():
        raise _Objection(
            f"figure {_shown(name)} tells of fewer than {egress.minimum_cohort} studies, or of a hidden cohort"
        )


def _release(reply: Reply, asked: Asked, egress: Egress, privacy: Privacy) -> None:
    _only(reply, contract.RELEASE, contract.RECEIPT)
    release = _json(reply, contract.RELEASE, _TABLES[asked.kind])
    if not set(release) <= set(asked.body.get("organs") or ()):
        raise _Objection("a release of an organ that was not asked for")
    if asked.kind == "evaluate.scores":
        bins = {len(of_class) for table in release.values() for of_class in table}
        cells = {len(cell) for table in release.values() for of_class in table for cell in of_class}
        if not bins <= {asked.body.get("bins")} or not cells <= {2}:
            raise _Objection(f"a histogram that has not the {asked.body.get('bins')} bins that were asked for")
    elif odd := {name for tables in release.values() for name in tables} - _COHORT:
        raise _Objection(f"there is no table {_shown(min(odd))} of a cohort")
    if contract.RECEIPT not in reply.config_records:
        raise _Objection("a release without a receipt of its charge")


def _secure(reply: Reply, asked: Asked, egress: Egress, privacy: Privacy) -> None:
    _only(reply, contract.SECURE)
    _json(reply, contract.SECURE, _SECURE[asked.kind])


def _receipt(reply: Reply, asked: Asked, privacy: Privacy, charged: Charged | None) -> None:
    if contract.RECEIPT not in reply.config_records:
        if privacy.required and asked.kind == "train":
            raise _Objection("site.yaml requires privacy, and this update has no receipt of a charge")
        return
    receipt = _json(reply, contract.RECEIPT, fields(_RECEIPT, optional=frozenset(_BUDGET)))
    if not privacy.tell_budget and _BUDGET.keys() & receipt.keys():
        raise _Objection("the receipt tells of the budget, and site.yaml has privacy.tell_budget: false")
    if charged is not None and (why := charged(receipt)) is not None:
        raise _Objection(why)


_RULES: dict[str, Callable[[Reply, Asked, Egress, Privacy], None]] = {
    "query": _card,
    "train": _update,
    "evaluate": _figures,
    **dict.fromkeys(_TABLES, _release),
    **dict.fromkeys(_SECURE, _secure),
}


def _names(reply: Reply) -> list[str]:
    return [*map(str, reply.array_records), *map(str, reply.metric_records), *map(str, reply.config_records)]


def _only(reply: Reply, *declared: str) -> None:
    """No other records than these, and each of the kind that the contract says."""
    kinds = {
        contract.ARRAYS: reply.array_records,
        contract.SCALES: reply.array_records,
        contract.METRICS_RECORD: reply.metric_records,
    }
    for name in _names(reply):
        if name not in declared or name not in kinds.get(name, reply.config_records):
            raise _Objection(f"record {_shown(name)} is not declared for this reply")


def _json(reply: Reply, name: str, check: Check) -> Any:
    """The JSON in a record's one field, which must pass the check."""
    record = dict(reply.config_records.get(name, {}))
    said = record.get(name)
    if set(record) != {name} or not isinstance(said, str):
        raise _Objection(f"record {name} is not there, or is not one text of JSON")
    try:
        value = json.loads(said)
    except (ValueError, RecursionError):
        raise _Objection(f"record {name} is not JSON") from None
    if not check(value) or contract.to_json(value) != said:
        raise _Objection(f"record {name} does not hold just what the contract declares, written as it writes it")
    return value


def _vector(group: str, array: Any, length: int, dtypes: set[str]) -> str:
    """The dtype of an array that is one vector of this length and one of these dtypes, and not a byte more."""
    if array.dtype not in dtypes:
        raise _Objection(
            f"module group {_shown(group)} travels as {_shown(array.dtype)}, not as {', '.join(sorted(dtypes))}"
        )
    if array.stype != "numpy.ndarray" or tuple(array.shape) != (length,):
        raise _Objection(f"module group {_shown(group)} is not one vector of {length} numbers")
    header = contract.npy_header(length, np.dtype(array.dtype).str)
    if len(array.data) != len(header) + length * np.dtype(array.dtype).itemsize or array.data[: len(header)] != header:
        raise _Objection(f"the bytes of module group {_shown(group)} are not a plain .npy of {length} numbers")
    return str(array.dtype)


def _size(reply: Reply, egress: Egress) -> None:
    """Raises where all values together are larger than site.yaml allows."""
    arrays = sum(len(a.data) for r in reply.array_records.values() for a in r.values())
    said = sum(len(v) for r in reply.config_records.values() for v in r.values() if isinstance(v, str | bytes | list))
    if arrays + said > egress.maximum_mb * 1e6:
        raise _Objection(f"{(arrays + said) / 1e6:.1f} MB, and site.yaml has egress.maximum_mb {egress.maximum_mb:g}")


def _shown(name: Any) -> str:
    """A name that the run's code wrote, short and on one line."""
    return repr(str(name)[:40])
