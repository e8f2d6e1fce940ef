"""The gate at Flower's own two steps; the SuperLink and the worker are played (`gate_parts`)."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supernode import start_client_internal as supernode

from client.gate import GateError
from client.gate.audit import read
from client.gate.bundles import sha256
from client.privacy.charge import charged
from client.privacy.ledger import Key, Ledger
from medmap_model import contract
from medmap_model.accounting import Cost
from medmap_model.contract import Task
from tests.client.gate_parts import STEPS, WAYS, Link, Node, node_at
from tests.client.test_egress import array, arrays, said
from tests.client.test_gate_bundles import bundle

SECRET = "Anna Muster /data/mri/patient-4711.nii.gz"
SMUGGLED = b"ArrayChunk  %d\x00" % len(SECRET) + SECRET.encode()  # an object that belongs to no record
TASK = Task("pretrain", 1, 2, 0, run="r", message="m")


@pytest.fixture
def node(tmp_path, monkeypatch) -> Node:
    return node_at(tmp_path, monkeypatch)


def train(**records: Any) -> RecordDict:
    return RecordDict({"arrays": arrays(), "task": said("task", TASK)} | records)


def good(request: Message) -> Message:
    content = RecordDict({"arrays": request.content["arrays"], "metrics": MetricRecord({"loss": 0.5})})
    return Message(content, reply_to=request)


def code(message: Message) -> Any:
    return message.content[contract.REFUSAL]["code"]  # type: ignore[call-overload,index]


def test_a_good_reply_leaves_in_a_message_of_the_gates_own(node):
    request = node.link.ask("train", train())

    def vain(message: Message) -> Message:
        reply = good(message)
        reply.metadata.group_id = SECRET
        reply.metadata.message_type = "train.patient_4711"
        return reply

    made = node.round(vain, hidden=SMUGGLED)
    reply = node.link.reply()
    assert made and reply.metadata.message_id != made.metadata.message_id
    assert (reply.metadata.group_id, reply.metadata.message_type) == ("pretrain-1", "train")
    assert reply.metadata.reply_to_message_id == request.object_id
    np.testing.assert_array_equal(
        contract.decode_vector(reply.content["arrays"]["encoder/FLAIR"].data), np.ones(300, np.float32)
    )
    assert SECRET.encode() not in b"".join(node.link.objects.values()), "nothing travels but what was checked"
    assert len(node.store) == 0, "neither the worker's reply nor the gate's stays"


def test_without_a_gate_it_would_have_travelled(node):
    node.link.ask("train", train())
    vars(supernode).update(STEPS)
    node.round(good, hidden=SMUGGLED)
    assert SECRET.encode() in b"".join(node.link.objects.values())


def test_what_came_and_left_is_in_the_audit_log_and_no_value(node):
    request = node.link.ask("train", train())
    node.round(good)
    into, out = read(node.gate.audit.path)
    assert (into["direction"], into["outcome"], out["direction"], out["outcome"]) == ("in", "accepted", "out", "sent")
    assert into["request"] == out["request"] == into["object"] == request.object_id
    assert out["object"] == node.link.sent[-1].metadata.message_id
    assert {into["run"], into["kind"], into["group"], into["peer"]} == {
        "7",
        "train",
        "pretrain-1",
        "fl.example.org:443",
    }
    assert into["bundle"] == out["bundle"] == sha256(node.link.fab.content)
    assert 1200 < into["bytes"] < 4000 and out["bytes"] == sum(map(len, node.link.objects.values()))


def test_a_reply_that_may_not_leave_becomes_a_refusal_and_the_log_says_why(node, caplog):
    node.link.ask("train", train())

    def leak(request: Message) -> Message:
        reply = good(request)
        reply.content["notes"] = ConfigRecord({"first patient": SECRET})
        return reply

    node.round(leak)
    reply = node.link.reply()
    assert code(reply) == "egress" and "record 'notes' is not declared" in caplog.text
    assert str(reply.content[contract.REFUSAL]["incident"]) in caplog.text
    sent = b"".join(node.link.objects.values())
    assert SECRET.encode() not in sent and b"notes" not in sent
    last = list(read(node.gate.audit.path))[-1]
    assert last["outcome"] == "refused: egress" and last["incident"] == reply.content[contract.REFUSAL]["incident"]
    assert SECRET not in node.gate.audit.path.read_text()


def test_a_card_leaves_under_this_sites_name_alone(node, caplog):
    for site, names, said_by in (
        ("north", {"T1": 40}, None),
        ("south", {"T1": 40}, "egress"),
        ("north", {"Anna": 40}, "egress"),
    ):
        node.link.ask("query", RecordDict())
        card = contract.Card(site, names, {"brain": 40}, {"train": 40}, "ab", "cd")
        node.round(lambda request, card=card: Message(RecordDict({"card": said("card", card)}), reply_to=request))
        reply = node.link.reply()
        assert (code(reply) if contract.REFUSAL in reply.content else None) == said_by, (site, names)
    assert "the card is of 'south', and site.yaml has name: north" in caplog.text


def test_an_incident_that_the_worker_names_stays_and_its_log_line_is_found_by_the_gates(node, caplog):
    node.link.ask("train", train())
    mine = RecordDict({contract.REFUSAL: ConfigRecord({"code": "data", "incident": "4711beef"})})
    node.round(lambda request: Message(mine, reply_to=request))
    sent = dict(node.link.reply().content[contract.REFUSAL])  # type: ignore[call-overload]
    assert sent["code"] == "data" and b"4711beef" not in b"".join(node.link.objects.values())
    assert (
        f"incident {sent['incident']} (data): the worker refused; worker.log has it as incident 4711beef" in caplog.text
    )
    assert list(read(node.gate.audit.path))[-1]["incident"] == sent["incident"]


def test_the_order_of_names_is_not_the_workers(node):
    groups = ["encoder/T2", "fusion", "encoder/T1"]
    vectors = ArrayRecord({g: array(np.full(3, i, np.float32)) for i, g in enumerate(groups)})
    node.link.ask("train", train(arrays=vectors))

    def shuffled(request: Message) -> Message:
        figures = MetricRecord({"val_loss": 1.0, "loss": 0.5})
        return Message(RecordDict({"metrics": figures, "arrays": request.content["arrays"]}), reply_to=request)

    made = node.round(shuffled)
    reply = node.link.reply()
    assert made and list(made.content["arrays"]) == groups and list(made.content) == ["metrics", "arrays"]
    assert list(reply.content) == ["arrays", "metrics"] and list(reply.content["arrays"]) == sorted(groups)
    assert list(reply.content["metrics"]) == ["loss", "val_loss"]
    assert contract.decode_vector(reply.content["arrays"]["encoder/T1"].data)[0] == 2, "each under its own name"


def test_the_text_of_a_runtimes_error_stays(node, caplog):
    node.link.ask("train", train())
    node.round(lambda request: Message(Error(1, f"<class 'ImportError'>:<'{SECRET}'>"), reply_to=request))
    error = node.link.reply().error
    assert error.code == 1 and SECRET in caplog.text, "the site's own log has it"
    assert SECRET.encode() not in b"".join(node.link.objects.values())
    assert (
        error.reason.startswith("the site failed; its own log has the incident ") and error.reason[-12:] in caplog.text
    )


def test_a_worker_that_died_over_a_request_is_told(node):
    """What Flower's node state answers in the place of a process whose heartbeat stopped."""
    node.link.ask("train", train())
    node.pull()
    assert node.state.get_messages_legacy(is_reply=False), "the worker takes it"
    node.state._store_error_replies({7}, Error(8, "ClientApp stopped responding."))
    node.push()
    assert node.link.reply().error.code == 8
    assert list(read(node.gate.audit.path))[-1]["outcome"] == "sent: error of the runtime"


def test_a_bundle_that_is_not_approved_never_reaches_the_worker(node, caplog, tmp_path):
    other = bundle(tmp_path / "app", version="6.6.6")
    node.link = Link(other)
    node.link.ask("train", train())
    assert node.round(good) is None, "no request waited for the worker"
    assert code(node.link.reply()) == "bundle"
    pending = tmp_path / "gate" / "pending" / f"{sha256(other)}.fab"
    assert (
        pending.read_bytes() == other and f"medmap-client approve -s {tmp_path / 'site.yaml'} {pending}" in caplog.text
    )
    assert [r["outcome"] for r in read(node.gate.audit.path)] == ["refused: bundle", "sent: refusal bundle"]
    node.gate.bundles.approve(pending.read_bytes())
    node.link.ask("train", train())
    assert node.round(good) is not None and not pending.exists(), "an approval needs no restart"
    node.gate.bundles.withdraw(sha256(other))
    node.link.ask("train", train())
    assert node.round(good) is None and code(node.link.reply()) == "bundle", "and ends within a run"


def test_another_bundle_under_an_approved_name_is_refused_and_so_is_all_with_a_broken_list(node, tmp_path, caplog):
    evil = bundle(tmp_path / "app", client="import os\n")
    node.link.fab = Fab(node.link.run.fab_hash, evil, {})
    node.link.ask("train", train())
    assert node.round(good) is None and code(node.link.reply()) == "bundle"
    (tmp_path / "gate" / "approved.json").write_text("[")
    node.link.ask("train", train())
    assert node.round(good) is None and code(node.link.reply()) == "bundle"
    assert "approved.json cannot be read" in caplog.text
    node.link.run.fab_hash = "../../site"
    node.link.ask("train", train())
    assert node.round(good) is None and code(node.link.reply()) == "bundle"


def test_a_request_is_answered_once_also_after_a_restart(node, tmp_path):
    request = node.link.ask("train", train())
    assert node.round(good)
    node.link.queue.append(request)
    assert node.round(good) is None and code(node.link.reply()) == "replay"
    node.gate.audit.close()
    again = Node(node.link, tmp_path / "site.yaml")
    node.link.queue.append(request)
    assert again.round(good) is None and code(node.link.reply()) == "replay"
    node.link.ask("train", train())
    assert again.round(good), "the next one is as good as any"


def test_a_request_whose_envelope_lies_about_its_kind_is_not_taken(node, caplog):
    node.link.ask("train", train(), envelope="query")
    assert node.round(good) is None and code(node.link.reply()) == "task"
    assert "of another kind or run than its envelope says" in caplog.text
    assert [r["outcome"] for r in read(node.gate.audit.path)] == ["refused: task", "sent: refusal task"]


def test_a_second_reply_to_a_request_is_dropped(node, caplog):
    node.link.ask("train", train())
    node.pull()
    made = node.work(good)
    assert made
    twice = Message(RecordDict({"metrics": MetricRecord({"loss": 4711.0})}), reply_to=node.link.ask("train", train()))
    node.link.queue.clear()
    twice.metadata.__dict__["_message_id"] = twice.object_id
    node.store.preregister(7, get_object_tree(twice))
    node.state.store_message(twice)
    node.push()
    assert len(node.link.sent) == 1 and "was dropped" in caplog.text
    assert "dropped: nobody asked" in [r["outcome"] for r in read(node.gate.audit.path)]


def test_nothing_leaves_while_site_yaml_cannot_be_read(node, tmp_path):
    node.link.ask("train", train())
    (tmp_path / "site.yaml").write_text("manifest: m.csv\negress: {metrics: [age]}\n")
    node.round(good)
    assert code(node.link.reply()) == "egress"
    (tmp_path / "site.yaml").write_text("manifest: m.csv\negress: {metrics: [val_loss]}\n")
    node.link.ask("train", train())
    node.round(good)
    assert code(node.link.reply()) == "egress", "the figure is not listed any more"


def test_where_privacy_is_required_the_ledger_must_bear_the_reply_out(node, tmp_path):
    (tmp_path / "site.yaml").write_text("manifest: m.csv\nprivacy: {ledger: north.db}\n")
    ledger = Ledger(tmp_path / "north.db", epsilon=8, delta=1e-5)

    def paid(request: Message) -> Message:
        content = RecordDict({"arrays": request.content["arrays"], "receipt": said("receipt", vars(ledger.receipt()))})
        return Message(content, reply_to=request)

    node.link.ask("train", train())
    node.round(paid)
    assert code(node.link.reply()) == "egress"
    with charged(ledger, Key("r", "pretrain", 1, "m"), "training", Cost(1, epsilon=0.5), None):
        pass
    node.link.ask("train", train())
    node.round(paid)
    assert json.loads(str(node.link.reply().content["receipt"]["receipt"]))["seq"] == 2


def test_a_reply_larger_than_the_site_allows_stays(node, tmp_path):
    large = ArrayRecord({"encoder/FLAIR": array(np.ones(10**6, np.float32))})
    (tmp_path / "site.yaml").write_text("manifest: m.csv\negress: {maximum_mb: 4.1}\n")
    node.link.ask("train", train(arrays=large))
    node.round(good)
    assert contract.REFUSAL not in node.link.reply().content
    (tmp_path / "site.yaml").write_text("manifest: m.csv\negress: {maximum_mb: 1}\n")
    node.link.ask("train", train(arrays=large))
    node.round(good)
    assert code(node.link.reply()) == "egress"


def test_another_flower_is_refused(node, monkeypatch):
    monkeypatch.setattr(supernode, "_push_messages", lambda state, store: None)
    with pytest.raises(GateError, match="install the versions of constraints"):
        node.gate.install()
    monkeypatch.delattr(supernode, "_push_messages")
    with pytest.raises(GateError, match="not one that the gate knows"):
        node.gate.install()
    vars(supernode).update(STEPS)
    for module, name, _ in WAYS:
        with monkeypatch.context() as other:
            other.delattr(module, name)
            with pytest.raises(GateError, match="not one that the gate knows"):
                node.gate.install()
