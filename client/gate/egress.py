"""What may leave a site: one reply, held against what was asked for, the contract and site.yaml, last thing before it is sent.

Everything that is not declared is an objection: records, fields of their JSON, types, names, lengths, dtypes, sizes. What
cannot be seen from here is what the numbers of an update mean: noise is added by the run's code, which a hospital approves by
its hash.

Knows neither Flower nor files; records are read by the few attributes that are named in `asked.Records`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from client.gate import said
from client.gate.asked import Asked, Records, dtype_of, shown
from client.gate.names import Names
from client.gate.said import Charged, Objection
from client.policy import Egress, Privacy
from medmap_model import contract
from medmap_model.compression import blocks

_COUNTED = {"val_studies", "steps"}
_MASKED, _COMPRESSED = {"uint16", "uint32"}, {"float16", "int8"}


def objection(
    reply: Records,
    asked: Asked,
    egress: Egress,
    privacy: Privacy,
    *,
    names: Names | None = None,
    charged: Charged | None = None,
) -> str | None:
    """Why this reply may not leave, in words for the site's own log; None when it may.

    names: those that the reply may hold; None: a simulated site's, of any choice. charged: asked of a receipt whether the
    site's ledger has a charge for this request; None: not looked at.
    """
    try:
        _size(reply, egress)
        if set(said.names_of(reply)) == {contract.REFUSAL}:
            said.refusal(reply)
            return None
        rule = _RULES.get(asked.kind)
        if rule is None:
            raise Objection(f"there is no request of the kind {shown(asked.kind)}")
        rule(reply, asked, egress, privacy, names)
        said.receipt(reply, asked, privacy, charged)
    except Objection as why:
        return str(why)
    return None


def _update(reply: Records, asked: Asked, egress: Egress, privacy: Privacy, names: Names | None) -> None:
    said.only(reply, contract.ARRAYS, contract.SCALES, contract.METRICS_RECORD, contract.RECEIPT)
    arrays, scales = (reply.array_records.get(n, {}) for n in (contract.ARRAYS, contract.SCALES))
    if not arrays:
        raise Objection("an update without arrays")
    if asked.secure is not None:
        said.enough(["this one", *(asked.secure.get("sealed") or ())], egress)
    elif egress.require_secure_aggregation:
        raise Objection("site.yaml requires secure aggregation, and this update is not masked")
    compressed = set()
    for group, array in arrays.items():
        if group not in asked.arrays:
            raise Objection(f"module group {shown(group)} was not received")
        allowed = {"float32"} | _COMPRESSED if asked.secure is None else _MASKED
        if _vector(group, array, asked.arrays[group], allowed) in _COMPRESSED:
            compressed.add(group)
    if set(scales) != compressed:
        raise Objection("scales belong to compressed module groups, one vector each")
    for group in compressed:
        _vector(group, scales[group], blocks(asked.arrays[group]), {"float32"})
    _metrics(reply, egress, privacy)


def _figures(reply: Records, asked: Asked, egress: Egress, privacy: Privacy, names: Names | None) -> None:
    said.only(reply, contract.METRICS_RECORD)
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


def _metrics(reply: Records, egress: Egress, privacy: Privacy) -> None:
    figures = reply.metric_records.get(contract.METRICS_RECORD, {})
    for name, value in figures.items():
        if privacy.required:
            raise Objection(f"figure {shown(name)}: site.yaml requires privacy, a figure has no noise")
        if name not in contract.METRICS or name not in egress.metrics:
            raise Objection(f"figure {shown(name)} is not one of site.yaml's egress.metrics")
        if type(value) not in (int, float):
            raise Objection(f"figure {shown(name)} is not one number")
    for name in figures.keys() - told(figures, egress, privacy).keys():
        raise Objection(
            f"figure {shown(name)} tells of fewer than {egress.minimum_cohort} studies, or of a hidden cohort"
        )


_RULES: dict[str, Callable[[Records, Asked, Egress, Privacy, Names | None], None]] = {
    "query": said.card,
    "train": _update,
    "evaluate": _figures,
    **dict.fromkeys(said.RELEASES, said.release),
    **dict.fromkeys(said.STEPS, said.secure),
}


def _vector(group: str, array: Any, length: int, dtypes: set[str]) -> str:
    """The dtype of an array that is one plain vector of this length and one of these dtypes."""
    try:
        return dtype_of(array, length, dtypes, f"module group {shown(group)}")
    except ValueError as why:
        raise Objection(str(why)) from None


def _size(reply: Records, egress: Egress) -> None:
    """Raises where all values together are larger than site.yaml allows."""
    arrays = sum(len(a.data) for r in reply.array_records.values() for a in r.values())
    texts = sum(len(v) for r in reply.config_records.values() for v in r.values() if isinstance(v, str | bytes | list))
    if arrays + texts > egress.maximum_mb * 1e6:
        raise Objection(f"{(arrays + texts) / 1e6:.1f} MB, and site.yaml has egress.maximum_mb {egress.maximum_mb:g}")
