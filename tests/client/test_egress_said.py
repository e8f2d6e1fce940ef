"""The JSON of a reply: of each card, release and step of a secure sum one that may leave, and that with one thing wrong."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from client.gate.asked import Asked
from client.policy import SIMULATED, Egress, Privacy
from medmap_model import contract
from medmap_model.contract import Card, Request
from medmap_model.releases import cohort_tables, score_table
from tests.client.egress_parts import (
    CARD,
    GROUP,
    NORTH,
    RECEIPT,
    SUM,
    arrays,
    asked,
    said,
    update,
    why,
)


def test_a_card_is_the_contracts_and_names_no_small_number():
    reply = RecordDict({"card": said("card", CARD)})
    to = Asked("query")
    assert not why(reply, to, Egress())
    assert {f.name for f in fields(Card)} == set(json.loads(contract.to_json(CARD)))
    few = RecordDict({"card": said("card", replace(CARD, volumes={"T1": 40, "T2": 4}))})
    negative = RecordDict({"card": said("card", replace(CARD, studies={"brain": -4711}))})
    assert "record card" in why(negative, to, SIMULATED)
    assert "volumes of 'T2': 4" in why(few, to, Egress()) and not why(few, to, Egress(minimum_cohort=4))
    assert not why(few, to, Egress(), Privacy(cohort="hidden")), "what is told of a hidden cohort is noise"
    for wrong in (
        replace(CARD, site="x" * 65), replace(CARD, splits={"train": "30"}), replace(CARD, studies={"Anna\nMuster": 9}),
        replace(CARD, vocabulary_hash="x" * 65), replace(CARD, volumes={"T1": 10**9}), {**json.loads(contract.to_json(CARD)), "contact": "x"},
    ):  # fmt: skip
        assert "record card" in why(RecordDict({"card": said("card", wrong)}), to, Egress())


def test_a_release_is_noisy_counts_of_what_was_asked_and_was_paid():
    to = Asked("evaluate.scores", body=json.loads(contract.to_json(Request(["brain"], epsilon=1.0, bins=2))))
    good = {"release": said("release", {"brain": [[[1, -2], [3, 4]]]}), "receipt": said("receipt", RECEIPT)}
    assert not why(RecordDict(good), to)
    assert "not asked for" in why(RecordDict(good | {"release": said("release", {"liver": [[[1]]]})}), to)
    for tables in ({"brain": [[["Anna"]]]}, {"brain": [[[0.123456789]]]}, {"brain": [[1]]}, {"brain": {"a": [1]}}):
        assert "record release" in why(RecordDict(good | {"release": said("release", tables)}), to)
    assert "without a receipt" in why(RecordDict({"release": good["release"]}), to)
    for tables in ({"brain": [[[1, -2], [3, 4], [5, 6]]]}, {"brain": [[[1, -2, 3], [3, 4, 5]]]}):
        assert "has not the 2 bins" in why(RecordDict(good | {"release": said("release", tables)}), to)
    endless = {"brain": [[[1, 2], [3, 4]]] * 4097}
    assert "record release" in why(RecordDict(good | {"release": said("release", endless)}), to)
    cohort = replace(to, kind="query.cohort")
    tables = said("release", {"brain": {"classes": [1, 2], "intensity": [[1], [2]]}})
    assert not why(RecordDict(good | {"release": tables}), cohort)
    tables = said("release", {"brain": {"Anna Muster": [1]}})
    assert "no table 'Anna Muster'" in why(RecordDict(good | {"release": tables}), cohort)
    assert "record release" in why(RecordDict(good), cohort)


def test_a_card_is_of_this_site_and_names_what_its_vocabulary_does():
    to = Asked("query")

    def named(**more: Any) -> str:
        return why(RecordDict({"card": said("card", replace(CARD, **more))}), to, names=NORTH)

    assert not named()
    assert "the card is of 'south', and site.yaml has name: north" in named(site="south")
    assert "a hash on the card is none" in named(text_hash="Anna") and "is none" in named(vocabulary_hash="Muster")
    for what, names in (
        ("volumes", {"Anna Muster": 40}), ("volumes", {"T1": 40, "T1 ": 40}), ("studies", {"4711": 40}), ("splits", {"MTk0NS0wNA": 40}),
    ):  # fmt: skip
        assert f"{what} of '{max(names)}': no such name" in named(**{what: names})
        assert not why(RecordDict({"card": said("card", replace(CARD, **{what: names}))}), to), "of a simulated site"


def test_a_release_names_organs_of_the_vocabulary_and_has_the_shapes_that_there_are():
    brain = NORTH.vocabulary.organs["brain"]
    to = Asked("evaluate.scores", body={"organs": ["brain", "Anna"], "bins": 2})
    good = {"brain": np.ones(score_table(brain, bins=2).shape, int).tolist()}

    def told(tables: Any, asked: Asked = to) -> str:
        reply = {"release": said("release", tables), "receipt": said("receipt", RECEIPT)}
        return why(RecordDict(reply), asked, names=NORTH)

    assert not told(good)
    assert "a release of organ 'Anna': no such name" in told({"Anna": good["brain"]})
    assert "has not the shape" in told({"brain": good["brain"] * 2})
    cohort = replace(to, kind="query.cohort")
    shapes = {name: np.zeros(table.shape, int).tolist() for name, table in cohort_tables(brain).items()}
    assert not told({"brain": shapes}, cohort)
    for longer in ([*shapes["classes"], 4711], [shapes["classes"]]):
        assert "table 'classes' of 'brain' has not the shape" in told({"brain": {"classes": longer}}, cohort)
    assert "has not the shape" in told({"brain": {"intensity": [*shapes["intensity"][:-1], [1, 2]]}}, cohort), "ragged"


THREE = {"1": {}, "2": {}, "3": {}}
STEPS = {
    "secure_keys": {},
    "secure_shares": {"keys": THREE, "groups": {GROUP: [1, 2, 3]}},
    "secure_unmask": {"returned": [1, 2, 3]},
}
SEEDS = {site: {"seeds": {GROUP: "ab"}} for site in THREE}


@pytest.mark.parametrize(
    ("step", "good", "bad"),
    [
        ("secure_keys", {"cipher": "ab", "mask": "cd"}, {"cipher": "ab", "mask": "cd", "name": "ef"}),
        ("secure_shares", {"sealed": {"1": "ab"}}, {"sealed": {"one": "ab"}}),
        ("secure_unmask", {"shares": SEEDS | {"4": {"key": "cd"}}}, {"shares": SEEDS | {"4": {"key": "ab", "seeds": {}}}}),
    ],
)  # fmt: skip
def test_a_step_of_a_secure_sum_is_hexadecimal_in_its_fields(step, good, bad):
    to = Asked(f"query.{step}", body=STEPS[step])
    assert not why(RecordDict({"secure": said("secure", good)}), to, names=NORTH)
    assert "record secure" in why(RecordDict({"secure": said("secure", bad)}), to)


def test_no_secure_sum_is_over_fewer_sites_than_site_yaml_says_whatever_the_run_does():
    three, two, four = Egress(), Egress(secure_minimum=2), Egress(secure_minimum=4)
    few = "a secure sum over 2 sites, and site.yaml has egress.secure_minimum 3"

    def answered(kind: str, body: dict[str, Any], answer: dict[str, Any], egress: Egress) -> str:
        return why(RecordDict({"secure": said("secure", answer)}), Asked(f"query.{kind}", body=body), egress)

    sealed = {"sealed": {"2": "ab"}}
    keys = STEPS["secure_shares"]
    assert not answered("secure_shares", keys, sealed, three)
    assert "egress.secure_minimum 4" in answered("secure_shares", keys, sealed, four)
    for pair in (
        {"keys": {"1": {}, "2": {}}},
        {"groups": {GROUP: [1, 2]}},
        {"groups": {"fusion": [1, 2, 3], GROUP: [1, 2, 2]}},
    ):
        assert few in answered("secure_shares", keys | pair, sealed, three)
        assert not answered("secure_shares", keys | pair, sealed, two)
    assert "the request has no keys" in answered("secure_shares", {}, sealed, three)
    assert "shares for site '9'" in answered("secure_shares", keys, {"sealed": {"9": "ab"}}, three)
    pair_of = {site: SEEDS[site] for site in ("1", "2")}
    assert few in answered("secure_unmask", {"returned": [1, 2]}, {"shares": pair_of}, three)
    assert few in answered("secure_unmask", {"returned": [1, 2, 3]}, {"shares": pair_of}, three), (
        "the third has no seed"
    )
    assert not answered("secure_unmask", {"returned": [1, 2]}, {"shares": pair_of}, two)
    masked = update(arrays=arrays("uint32"))
    assert few in why(masked, asked(secure={"sealed": {"2": "ab"}}), Egress())
    assert not why(masked, asked(secure=SUM), Egress())


def test_shares_are_of_what_a_sum_needs_and_of_groups_that_there_are():
    to = Asked("query.secure_unmask", body={"returned": [1, 2, 3]})

    def told(shares: dict[str, Any]) -> str:
        return why(RecordDict({"secure": said("secure", {"shares": shares})}), to, names=NORTH)

    assert not told(SEEDS)
    assert "shares of site 3 that the sum does not need" in told(SEEDS | {"3": {"key": "ab"}}), "it has returned"
    assert "shares of site 4 that the sum does not need" in told(SEEDS | {"4": {"seeds": {}}}), "it has not"
    for good in ("fusion", "head/liver", "encoder/shared", "encoder/T1+C+A", "projection/T1", "text_projection"):
        assert not told({site: {"seeds": {good: "ab"}} for site in THREE})
    for odd in ("Anna Muster", "head/4711", "encoder/", "encoder/T1+Anna", "projection/shared", "fusion/x", "encoder"):
        assert f"there is no module group '{odd}'" in told({site: {"seeds": {odd: "ab"}} for site in THREE})
