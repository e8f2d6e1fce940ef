"""What may leave: for each rule a reply that passes, and that reply with one thing wrong, which does not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.constant import SType

from client.gate import egress as rules
from client.gate.asked import SAID_BYTES, Asked
from client.gate.charges import uncharged
from client.gate.egress import objection
from client.policy import Egress, Privacy
from client.privacy.charge import charged
from client.privacy.ledger import Key, Ledger
from medmap_model import contract
from medmap_model.accounting import Cost
from medmap_model.compression import compress
from tests.client.egress_parts import (
    CARD,
    GROUP,
    HASH,
    OPEN,
    PRIVATE,
    RECEIPT,
    SUM,
    N,
    array,
    arrays,
    asked,
    said,
    update,
    why,
)


def test_a_request_is_known_by_its_lengths_body_and_mask():
    one = asked()
    assert one.arrays == {GROUP: N} and one.body["message"] == "m" and one.secure is None
    assert Asked.of("train", RecordDict({"task": ConfigRecord({"task": "no JSON"})})).body == {}
    assert Asked.of("train", RecordDict({"secure": said("secure", SUM)})).secure == SUM
    both = RecordDict(
        {"task": said("task", {"message": "m"}), "request": said("request", {"message": "paid long ago"})}
    )
    assert Asked.of("train", both).body["message"] == "m", "a charge is looked up by what the handler reads"
    assert Asked.of("query.cohort", both).body["message"] == "paid long ago"


def test_a_plain_update_passes_and_so_does_one_without_figures():
    assert not why(update(), asked())
    assert not why(update(metrics=MetricRecord()), asked())


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ({"arrays": ArrayRecord()}, "without arrays"),
        ({"arrays": arrays(group="encoder/T1")}, "'encoder/T1' was not received"),
        ({"arrays": arrays(n=N + 1)}, f"not one vector of {N} numbers"),
        ({"arrays": ArrayRecord({GROUP: Array(np.ones((N, 1), np.float32))})}, "not one vector"),
        ({"arrays": ArrayRecord({GROUP: Array(np.ones(N))})}, "travels as 'float64'"),
        ({"arrays": arrays("uint32")}, "travels as 'uint32'"),
        ({"arrays": ArrayRecord({GROUP: Array("float32", (N,), SType.NUMPY, array(np.ones(N, np.float32)).data + b"x")})}, "not a plain .npy"),
        ({"arrays": ArrayRecord({GROUP: Array("float32", (N,), SType.NUMPY, array(np.ones(2 * N, np.float16)).data[: 128 + 4 * N])})}, "not a plain .npy"),
        ({"arrays": ArrayRecord({GROUP: Array("float32", (N,), "pickle", array(np.ones(N, np.float32)).data)})}, "not one vector"),
        ({"metrics": MetricRecord({"loss": 1.0, "age": 63})}, "figure 'age' is not one of"),
        ({"metrics": MetricRecord({"loss": [1.0, 2.0]})}, "not one number"),
        ({"more": MetricRecord({"loss": 1.0})}, "record 'more' is not declared"),
        ({"notes": ConfigRecord({"x": "y"})}, "record 'notes' is not declared"),
        ({"metrics": ConfigRecord({"loss": 1.0})}, "record 'metrics' is not declared"),
        ({"card": said("card", CARD)}, "record 'card' is not declared"),
        ({"refusal": ConfigRecord({"code": "data", "incident": ""})}, "record 'refusal' is not declared"),
        ({"scales": arrays()}, "scales belong to compressed"),
    ],
)  # fmt: skip
def test_an_update_with_one_thing_wrong_stays(records, words):
    assert words in why(update(**records), asked())


def test_figures_are_those_that_site_yaml_lists():
    one = Egress(metrics=("loss",))
    assert "'val_loss'" in why(update(), asked(), one)
    assert not why(update(metrics=MetricRecord({"loss": 1.0})), asked(), one)
    assert not why(RecordDict({"metrics": MetricRecord({"val_loss": 1.0})}), asked("evaluate"))
    assert "'arrays' is not declared" in why(update(), asked("evaluate"))


def test_no_figure_is_of_fewer_studies_than_site_yaml_lets_the_site_tell():
    figures = {"loss": 1.0, "val_loss": 2.0, "val_score": 0.5, "val_studies": 4, "steps": 7}
    reply = RecordDict({"metrics": MetricRecord(figures)})
    assert "fewer than 5 studies" in why(reply, asked("evaluate"), Egress())
    assert not why(reply, asked("evaluate"), Egress(minimum_cohort=4)) and not why(reply, asked("evaluate"))
    assert rules.told(figures, Egress(), OPEN) == {"loss": 1.0, "steps": 7}, "what the app sends instead"
    assert not why(RecordDict({"metrics": MetricRecord({"loss": 1.0, "steps": 7})}), asked("evaluate"), Egress())
    hidden = Privacy(required=False, cohort="hidden")
    many = figures | {"val_studies": 40}
    assert rules.told(many, Egress(), OPEN) == many
    assert rules.told(many, Egress(), hidden) == {"loss": 1.0, "val_loss": 2.0, "val_score": 0.5}
    assert "of a hidden cohort" in why(
        RecordDict({"metrics": MetricRecord({"steps": 7})}), asked("evaluate"), Egress(), hidden
    )


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_compressed_update_has_one_scale_for_each_block(dtype):
    numbers, scales = compress(np.ones(N, np.float32), dtype)
    small = {"arrays": ArrayRecord({GROUP: array(numbers)}), "scales": ArrayRecord({GROUP: array(scales)})}
    assert not why(update(**small), asked())
    assert "scales belong" in why(update(arrays=small["arrays"]), asked())
    assert "not one vector of 2 numbers" in why(update(**small | {"scales": arrays()}), asked())
    assert "travels as" in why(update(**small), asked(secure=SUM))


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_masked_numbers_leave_in_a_secure_sum_alone_and_nothing_else_in_one(dtype):
    masked = update(arrays=arrays(dtype))
    assert not why(masked, asked(secure=SUM))
    assert "travels as" in why(masked, asked()) and "travels as" in why(update(), asked(secure=SUM))
    only = Egress(require_secure_aggregation=True)
    assert not why(masked, asked(secure=SUM), only) and "requires secure aggregation" in why(update(), asked(), only)


def test_where_privacy_is_required_an_update_has_a_receipt_and_nothing_has_figures():
    quiet, paid = {"metrics": MetricRecord()}, {"receipt": said("receipt", RECEIPT)}
    assert not why(update(**quiet, **paid), asked(), privacy=PRIVATE)
    assert "no receipt" in why(update(**quiet), asked(), privacy=PRIVATE)
    assert "'loss'" in why(update(**paid), asked(), privacy=PRIVATE)
    figures = RecordDict({"metrics": MetricRecord({"val_loss": 1.0})})
    assert "a figure has no noise" in why(figures, asked("evaluate"), privacy=PRIVATE)
    assert not why(RecordDict({"metrics": MetricRecord()}), asked("evaluate"), privacy=PRIVATE)


@pytest.mark.parametrize(
    "wrong",
    [
        {**RECEIPT, "patients": 7}, {**RECEIPT, "seq": "3"}, {**RECEIPT, "seq": True}, {**RECEIPT, "hash": "Anna Muster"},
        {**RECEIPT, "spent": float("nan")}, {k: v for k, v in RECEIPT.items() if k != "seq"}, [1], None,
    ],
)  # fmt: skip
def test_a_receipt_holds_its_fields_and_nothing_else(wrong):
    assert "record receipt does not hold just" in why(update(receipt=said("receipt", wrong)), asked())


def test_of_the_budget_nothing_is_told_where_site_yaml_says_so():
    silent = Privacy(required=False, tell_budget=False)
    assert "tells of the budget" in why(update(receipt=said("receipt", RECEIPT)), asked(), privacy=silent)
    short = {k: RECEIPT[k] for k in ("ledger", "seq", "hash")}
    for privacy in (silent, OPEN):
        assert not why(update(receipt=said("receipt", short)), asked(), privacy=privacy)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(RECEIPT, indent=1),
        json.dumps(RECEIPT).replace('"seq": 3', '"seq": 9, "seq": 3'),
        json.dumps(RECEIPT) + " ",
        json.dumps(RECEIPT)[:-1],
        json.dumps(RECEIPT).replace("0.5", "0.50"),
        "[" * 100_000,
    ],
)
def test_json_hides_nothing(text):
    assert "record receipt" in why(update(receipt=ConfigRecord({"receipt": text})), asked())
    assert "record receipt" in why(update(receipt=ConfigRecord({"receipt": json.dumps(RECEIPT), "more": 1})), asked())


def test_a_refusal_is_a_code_and_an_incident_whatever_was_asked():
    for kind in ("train", "query", "no.such"):
        assert not why(RecordDict({"refusal": ConfigRecord({"code": "data", "incident": "0af3"})}), asked(kind))
    for wrong in (
        {"code": "patient 42"},
        {"code": "data", "incident": "Anna"},
        {"code": "data", "incident": "", "text": "x"},
    ):
        assert why(RecordDict({"refusal": ConfigRecord(wrong)}), asked()).startswith("a refusal is")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "odd",
    [
        Array(np.ones((2, 150), np.float32)), Array(np.ones(N)), Array(np.array(1, np.float32)),
        Array("float32", (10**9,), SType.NUMPY, contract.encode_vector(np.ones(N, np.float32))),
        Array("float32", (-N,), SType.NUMPY, contract.encode_vector(np.ones(N, np.float32))),
    ],
)  # fmt: skip
def test_a_request_that_is_not_as_large_as_it_says_is_none(odd):
    with pytest.raises(ValueError, match="received module group 'encoder/FLAIR'"):
        Asked.of("train", RecordDict({"arrays": ArrayRecord({GROUP: odd})}))


def test_a_reply_can_take_what_its_request_and_site_yaml_leave_it():
    large, none = replace(asked(), arrays={GROUP: 10**8}), Asked("query")
    assert large.most_bytes(Egress(maximum_mb=100)) == 100e6 + SAID_BYTES
    assert 4e8 < large.most_bytes(Egress()) - SAID_BYTES < 4.1e8 and none.most_bytes(Egress()) == SAID_BYTES
    numbers, scales = compress(np.ones(N, np.float32), "float16")
    for record in (arrays(), arrays("uint32"), ArrayRecord({GROUP: array(numbers), "scales": array(scales)})):
        assert sum(len(a.data) for a in record.values()) <= asked().most_bytes(Egress()) - SAID_BYTES


def test_what_was_not_asked_in_the_contract_is_not_answered_and_size_has_a_limit():
    assert "no request of the kind 'query.files'" in why(RecordDict(), asked("query.files"))
    assert "egress.maximum_mb 0.001" in why(update(), asked(), Egress(maximum_mb=0.001))
    assert not why(update(), asked(), Egress(minimum_cohort=0, maximum_mb=0.0015))


def test_every_kind_of_request_of_the_app_has_a_rule():
    import client.app as flower

    kinds = {k.removesuffix(".default") for k in flower.app._registered_funcs}
    assert kinds == set(rules._RULES)


def test_a_receipt_is_believed_when_the_ledger_has_released_a_charge_for_this_request(tmp_path: Path):
    ledger = Ledger(tmp_path / "north.db", epsilon=8, delta=1e-5)
    with charged(ledger, Key("r", "pretrain", 1, "m"), "training", Cost(1, epsilon=0.5), None):
        early = vars(ledger.receipt())
        assert "no charge for this request" in str(uncharged(ledger.path, asked(), early)), "not marked as released yet"
    receipt = vars(ledger.receipt())
    assert uncharged(ledger.path, asked(), receipt) is None
    other = asked(body={**asked().body, "message": "another"})
    assert "no charge for this request" in str(uncharged(ledger.path, other, receipt))
    assert "an older copy" in str(uncharged(ledger.path, asked(), {**receipt, "hash": HASH}))
    assert "not the ledger" in str(uncharged(ledger.path, asked(), {**receipt, "ledger": "cd" * 16}))
    assert "is not there" in str(uncharged(tmp_path / "none.db", asked(), receipt))
    assert "KeyError" in str(uncharged(ledger.path, asked(body={}), receipt))
    release = Asked("evaluate.scores", body={"run": "r", "number": 2, "message": "v"})
    with charged(ledger, Key("r", "validation", 2, "v"), "validation", Cost(1, epsilon=0.5), None):
        pass
    assert uncharged(ledger.path, release, vars(ledger.receipt())) is None
    reply = update(metrics=MetricRecord(), receipt=said("receipt", receipt))
    assert objection(reply, asked(), Egress(), PRIVATE, charged=lambda r: uncharged(ledger.path, asked(), r)) is None
    assert objection(reply, other, Egress(), PRIVATE, charged=lambda r: uncharged(ledger.path, other, r))
