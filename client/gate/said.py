"""The JSON of a reply: cards, releases, steps of a secure sum, receipts. Each holds what the contract declares and site.yaml lets
a site tell, of names those that are known here, and is written as `contract.to_json` writes it, so that nothing hides in it (a
key said twice, blanks)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from client.gate.asked import Asked, Records, shown
from client.gate.names import Names
from client.gate.shapes import DIGITS, Check, count, counts, fields, hexadecimal, number, table, text, whole
from client.manifest import SPLITS
from client.policy import Egress, Privacy
from medmap_model import contract
from medmap_model.releases import COHORT, SCALES, SHIFT

Charged = Callable[[Mapping[str, Any]], str | None]
_HASH, _KEY, _SEALED = hexadecimal(64), hexadecimal(256), hexadecimal(1 << 20)
_BUDGET: dict[str, Check] = {"spent": number, "budget": number}
_RECEIPT: dict[str, Check] = {"ledger": _HASH, "seq": whole, "hash": _HASH} | _BUDGET
_CARD = fields(
    {
        "site": text, "volumes": table(count), "studies": table(count), "splits": table(count),
        "vocabulary_hash": text, "text_hash": text, "version": count,
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
_RELEASE = {"evaluate.scores": table(counts(3)), "query.cohort": table(table(counts(1, 2)))}
RELEASES, STEPS = tuple(_RELEASE), tuple(_SECURE)
_TABLES = {*COHORT, *SHIFT, *SCALES}


class Objection(ValueError):
    """Why a reply may not leave; for the site's own log."""


def only(reply: Records, *declared: str) -> None:
    """No other records than these, and each of the kind that the contract says."""
    kinds = {
        contract.ARRAYS: reply.array_records,
        contract.SCALES: reply.array_records,
        contract.METRICS_RECORD: reply.metric_records,
    }
    for name in names_of(reply):
        if name not in declared or name not in kinds.get(name, reply.config_records):
            raise Objection(f"record {shown(name)} is not declared for this reply")


def names_of(reply: Records) -> list[str]:
    """Of all records."""
    return [*map(str, reply.array_records), *map(str, reply.metric_records), *map(str, reply.config_records)]


def refusal(reply: Records) -> None:
    """A code of the contract and an incident, nothing else."""
    if not _REFUSAL(dict(reply.config_records.get(contract.REFUSAL, {}))):
        raise Objection("a refusal is a code of the contract and an incident")


def card(reply: Records, asked: Asked, egress: Egress, privacy: Privacy, names: Names | None) -> None:
    """What the site says of itself, under its own name. names: None of a simulated site, whose names are the run's."""
    only(reply, contract.CARD)
    said = _json(reply, contract.CARD, _CARD)
    if names is not None:
        if said["site"] != names.site:
            raise Objection(f"the card is of {shown(said['site'])}, and site.yaml has name: {names.site}")
        known = {"splits": SPLITS, "studies": tuple(names.vocabulary.organs), "volumes": names.vocabulary.modalities}
        for what, allowed in known.items():
            _known(said[what], allowed, f"{what} of")
        if not (_HASH(said["vocabulary_hash"]) and _HASH(said["text_hash"])):
            raise Objection("a hash on the card is none")
    if privacy.cohort == "hidden":
        return  # what is told of it is noise
    for what in ("splits", "studies", "volumes"):
        for name, number_of in said[what].items():
            if 0 < number_of < egress.minimum_cohort:
                raise Objection(egress.too_few(f"{what} of {shown(name)}: {number_of}"))


def release(reply: Records, asked: Asked, egress: Egress, privacy: Privacy, names: Names | None) -> None:
    """Noisy tables of the organs that were asked for, of the shapes that there are, with a receipt of their charge."""
    only(reply, contract.RELEASE, contract.RECEIPT)
    said = _json(reply, contract.RELEASE, _RELEASE[asked.kind])
    if not set(said) <= set(asked.body.get("organs") or ()):
        raise Objection("a release of an organ that was not asked for")
    bins = asked.body.get("bins") if asked.kind == "evaluate.scores" else None
    if names is not None:
        _known(said, names.vocabulary.organs, "a release of organ")
    for organ, told in said.items():
        tables: dict[str, Any] = told if bins is None else {"scores": told}
        if bins is None:
            _known(tables, _TABLES, "of a cohort there is no table")
        elif any(len(of_class) != bins or any(len(cell) != 2 for cell in of_class) for of_class in told):
            raise Objection(f"a histogram that has not the {bins} bins that were asked for")
        shapes = names.tables(organ, bins=bins) if names is not None else {}
        for name in tables.keys() & shapes.keys():
            if not _has_shape(tables[name], shapes[name]):
                raise Objection(f"table {shown(name)} of {shown(organ)} has not the shape {shapes[name]}")
    if contract.RECEIPT not in reply.config_records:
        raise Objection("a release without a receipt of its charge")


def _has_shape(table: Any, shape: tuple[int, ...]) -> bool:
    try:
        return np.array(table).shape == shape
    except ValueError:  # rows of different lengths
        return False


def secure(reply: Records, asked: Asked, egress: Egress, privacy: Privacy, names: Names | None) -> None:
    """A step of a secure sum, and of no sum over too few sites."""
    only(reply, contract.SECURE)
    said = _json(reply, contract.SECURE, _SECURE[asked.kind])
    if asked.kind == "query.secure_shares":
        sites = _object(asked.body, "keys")
        for owners in _object(asked.body, "groups").values():
            enough({str(owner) for owner in owners} & sites.keys(), egress)
        _known(said["sealed"], sites.keys(), "shares for site")
    elif asked.kind == "query.secure_unmask":
        returned = {str(site) for site in asked.body.get("returned") or ()}
        enough(returned, egress)
        seeds = Counter(group for of in said["shares"].values() for group in of.get("seeds", {}))
        for group, sites_of in seeds.items():
            enough(range(sites_of), egress)
            if names is not None and not names.is_group(group):
                raise Objection(f"there is no module group {shown(group)}")
        if odd := [s for s, of in said["shares"].items() if ("seeds" in of) != (s in returned)]:
            raise Objection(f"shares of site {odd[0]} that the sum does not need")


def enough(sites: Iterable[Any], egress: Egress) -> None:
    """Raises Objection for a sum over fewer sites than site.yaml allows."""
    if (number_of := len(set(sites))) < egress.secure_minimum:
        raise Objection(
            f"a secure sum over {number_of} sites, and site.yaml has egress.secure_minimum {egress.secure_minimum}"
        )


def receipt(reply: Records, asked: Asked, privacy: Privacy, charged: Charged | None) -> None:
    """A receipt where one is due, of a charge that the ledger bears out."""
    if contract.RECEIPT not in reply.config_records:
        if privacy.required and asked.kind == "train":
            raise Objection("site.yaml requires privacy, and this update has no receipt of a charge")
        return
    said = _json(reply, contract.RECEIPT, fields(_RECEIPT, optional=frozenset(_BUDGET)))
    if not privacy.tell_budget and _BUDGET.keys() & said.keys():
        raise Objection("the receipt tells of the budget, and site.yaml has privacy.tell_budget: false")
    if charged is not None and (why := charged(said)) is not None:
        raise Objection(why)


def _known(said: Iterable[str], allowed: Iterable[str], what: str) -> None:
    if odd := sorted(set(said) - set(allowed)):
        raise Objection(f"{what} {shown(odd[0])}: no such name is known at this site")


def _object(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of the request that must be an object."""
    value = body.get(name)
    if not isinstance(value, dict):
        raise Objection(f"the request has no {name}")
    return value


def _json(reply: Records, name: str, check: Check) -> Any:
    """The JSON in a record's one field, which must pass the check."""
    record = dict(reply.config_records.get(name, {}))
    said = record.get(name)
    if set(record) != {name} or not isinstance(said, str):
        raise Objection(f"record {name} is not there, or is not one text of JSON")
    try:
        value = json.loads(said)
    except (ValueError, RecursionError):
        raise Objection(f"record {name} is not JSON") from None
    if not check(value) or contract.to_json(value) != said:
        raise Objection(f"record {name} does not hold just what the contract declares, written as it writes it")
    return value
