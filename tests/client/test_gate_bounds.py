"""Messages that are too large, never end or contradict themselves, from a server or from the worker; played as in `test_gate`."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_id, get_object_tree

from client.gate.audit import read
from client.gate.parts import inflate, listed
from tests.client.gate_parts import Node, node_at
from tests.client.test_egress import array
from tests.client.test_gate import code, good, train

MANY = 10**6


@pytest.fixture
def node(tmp_path, monkeypatch) -> Node:
    return node_at(tmp_path, monkeypatch)


def nothing_stays(node: Node) -> bool:
    return len(node.store) == 0 and not node.state.get_messages_legacy()


def leaf(number: int, *children: ObjectTree) -> ObjectTree:
    return ObjectTree(object_id=get_object_id(b"%d" % number), children=children)


def bad_trees(root: str) -> dict[str, ObjectTree]:
    return {
        "no SHA-256": ObjectTree(object_id=root, children=[ObjectTree(object_id="../approved.json")]),
        "a SHA-256 to Flower": ObjectTree(object_id=root, children=[ObjectTree(object_id="\n" + "0_" * 31 + "0")]),
        "itself no SHA-256": ObjectTree(object_id="x" * 10_000),
        "now these and now those": ObjectTree(object_id=root, children=[leaf(1, leaf(2)), leaf(1, leaf(3))]),
        "one twice": ObjectTree(object_id=root, children=[leaf(1), leaf(1)]),
        "endless": ObjectTree(object_id=root, children=[leaf(i) for i in range(10_000)]),
        "parts that never come": deep(root),
    }


def deep(root: str) -> ObjectTree:
    tree = leaf(0)
    for i in range(1, 60):
        tree = leaf(i, tree)
    return ObjectTree(object_id=root, children=[tree, leaf(10**6)])


@pytest.mark.parametrize("kind", list(bad_trees("")))
def test_a_malformed_tree_of_a_server_neither_ends_the_gate_nor_stays(node, kind, caplog):
    """Before, the ValueError of Flower's store went through its main loop, and the gate was gone."""
    request = node.link.ask("train", train())
    send, tree = node.link.receive, bad_trees(request.object_id)[kind]
    node.link.receive = lambda: (send()[0], tree)
    assert node.pull() is None and node.work(good) is None and nothing_stays(node) and not node.link.sent
    last = list(read(node.gate.audit.path))[-1]["outcome"]
    if kind == "parts that never come":  # which Flower sees
        assert last.startswith("not received: broken off")
    else:
        assert last == "not received: malformed (ValueError)"
        assert "an answer of the server cannot be used (ValueError: " in caplog.text
    node.link.receive = send
    node.link.ask("train", train())
    assert node.round(good) is not None and nothing_stays(node), "it goes on as before"


def test_a_tree_with_more_in_it_than_the_message_has_is_refused(node, caplog):
    request = node.link.ask("train", train())
    send, tree = node.link.receive, get_object_tree(request)
    tree.children.add(object_id=tree.children[0].children[0].object_id)
    tree.children[-1].CopyFrom(tree.children[0].children[0])
    node.link.receive = lambda: (send()[0], tree)
    assert node.round(good) is None and code(node.link.reply()) == "task"
    assert "its parts are not those of its tree" in caplog.text and nothing_stays(node)


def test_a_tree_as_flower_makes_it_is_good():
    listing = listed(deep("0" * 64))
    assert len(listing) == 62 and listing["0" * 64] == {leaf(59).object_id, leaf(10**6).object_id}


@pytest.mark.parametrize(
    "wrong", [RuntimeError("boom"), IndexError(), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"), KeyError("run")]
)
@pytest.mark.parametrize("call", ["receive", "get_run", "get_fab"])
def test_whatever_an_answer_does_to_flower_the_gate_goes_on(node, call, wrong, caplog):
    def fails(*_: Any) -> Any:
        raise wrong

    node.link.ask("train", train())
    real = getattr(node.link, call)
    setattr(node.link, call, fails)
    assert node.pull() is None and node.work(good) is None
    assert type(wrong).__name__ in list(read(node.gate.audit.path))[-1]["outcome"]
    setattr(node.link, call, real)
    node.link.ask("train", train())
    assert node.round(good) is not None


@pytest.mark.parametrize(("name", "value"), [("ttl", float("nan")), ("ttl", -1e300), ("created_at", float("inf"))])
def test_times_that_are_none_leave_the_gate_where_it_is(node, name, value):
    request = node.link.ask("train", train())
    send = node.link.receive

    def late() -> Any:
        message, tree = send()
        assert f"_{name}" in message.metadata.__dict__
        message.metadata.__dict__[f"_{name}"] = value
        return message, tree

    node.link.receive = late
    assert node.pull() == 7 and node.work(good)
    node.push()
    node.link.receive = send
    assert request.object_id != node.link.ask("train", train()).object_id
    assert node.round(good) is not None


def test_a_request_larger_than_site_yaml_allows_stops_on_its_way_in(node, tmp_path, caplog):
    vectors = {f"encoder/{i}": array(np.full(10**6, i, np.float32)) for i in range(10)}
    (tmp_path / "site.yaml").write_text("manifest: m.csv\nname: north\negress: {maximum_request_mb: 13}\n")
    asked = []

    def pulled(run_id: int, object_id: str) -> bytes:
        asked.append(object_id)
        return node.link.parts[object_id]

    node.link.pull_object = pulled
    node.link.ask("train", train(arrays=ArrayRecord(vectors)))
    assert node.round(good) is None and code(node.link.reply()) == "task"
    assert "larger than site.yaml's egress.maximum_request_mb" in caplog.text
    assert sum(len(node.link.parts[i]) for i in asked) < 22e6 and nothing_stays(node), "the rest was never asked for"
    assert [r["outcome"] for r in read(node.gate.audit.path)] == ["refused: task", "sent: refusal task"]
    node.link.ask("train", train(arrays=ArrayRecord(dict(list(vectors.items())[:3]))))
    assert node.round(good) is not None and "refusal" not in node.link.reply().content


def folded(parts: dict[str, bytes], root: str, times: int) -> tuple[ObjectTree, dict[str, bytes]]:
    """The message with each array naming its one part so many times; all hashes anew, and its tree."""
    made: dict[str, bytes] = {}

    def of(object_id: str) -> ObjectTree:
        head, _, body = parts[object_id].partition(b"\x00")
        kind, children, _ = head.decode().split(" ")
        trees = [of(child) for child in children.split(",") if child]
        for old, tree in zip(children.split(","), trees, strict=False):
            body = body.replace(old.encode(), tree.object_id.encode())
        if kind == "Array":
            body = json.dumps(json.loads(body) | {"arraychunk_ids": [0] * times}).encode()
        content = f"{kind} {','.join(t.object_id for t in trees)} {len(body)}".encode() + b"\x00" + body
        made[get_object_id(content)] = content
        return ObjectTree(object_id=get_object_id(content), children=trees)

    return of(root), made


def test_folding_as_the_next_tests_do_it_is_what_flower_unfolds(node):
    request = node.link.ask("train", train())
    tree, parts = folded(node.link.parts, request.object_id, 3)
    whole = inflate(tree.object_id, dict(parts), most_bytes=1e9, parts=listed(tree))
    assert len(whole.content["arrays"]["encoder/FLAIR"].data) == 3 * (128 + 4 * 300)
    with pytest.raises(ValueError, match="put together it has"):
        inflate(tree.object_id, dict(parts), most_bytes=3000, parts=listed(tree))


def test_a_request_that_unfolds_to_gigabytes_is_not_put_together(node, caplog):
    """A megabyte of JSON that names one part of 4 MB a million times: 4 TB, in the gate and in the worker."""
    request = node.link.ask("train", train(arrays=ArrayRecord({"fusion": array(np.ones(10**6, np.float32))})))
    tree, parts = folded(node.link.parts, request.object_id, MANY)
    node.link.parts |= parts
    send = node.link.receive

    def received() -> Any:
        message, _ = send()
        message.metadata.__dict__["_message_id"] = tree.object_id
        return message, tree

    node.link.receive = received
    assert node.round(good) is None and code(node.link.reply()) == "task"
    assert "put together it has 4000" in caplog.text and nothing_stays(node)


def smuggle(node: Node, reply: Message, times: int) -> None:
    """A worker's reply whose arrays unfold so many times."""
    parts = {i: o.deflate() for i, o in get_all_nested_objects(reply).items()}
    tree, made = folded(parts, reply.object_id, times)
    reply.metadata.__dict__["_message_id"] = tree.object_id
    node.store.preregister(7, tree)
    for object_id, content in made.items():
        node.store.put(object_id, content)
    node.state.store_message(reply)


def test_a_reply_that_unfolds_to_gigabytes_is_not_put_together(node, caplog):
    node.link.ask("train", train(arrays=ArrayRecord({"fusion": array(np.ones(10**6, np.float32))})))
    assert node.pull() == 7
    request = node.work(lambda message: message)  # takes it
    assert request
    node.state.delete_messages(message_ids=[request.metadata.message_id])
    node.store.clear()
    smuggle(node, good(request), MANY)
    node.push()
    assert code(node.link.reply()) == "egress" and "put together it has 4000" in caplog.text and nothing_stays(node)


def test_a_reply_larger_than_its_request_can_need_is_not_read_to_its_end(node, caplog):
    """300 numbers were asked for: a reply of 40 MB is cut off, whatever egress.maximum_mb leaves it."""
    node.link.ask("train", train())

    def vast(request: Message) -> Message:
        reply = good(request)
        for i in range(10):
            reply.content[f"more{i}"] = ArrayRecord({"fusion": array(np.full(10**6, i, np.float32))})
        return reply

    node.round(vast)
    assert code(node.link.reply()) == "egress" and re.search(r"larger than the 16\.8 MB that it can need", caplog.text)
    assert nothing_stays(node)


def test_much_that_is_no_vector_is_no_message():
    """Of JSON Python makes twenty times as much."""
    size = 17 << 20
    with pytest.raises(ValueError, match="it has 18 MB that are no vectors"):
        inflate("x", {"x": b"ConfigRecord  %d\x00" % size + b"[" * size}, most_bytes=1e9)


def test_the_worker_sees_nothing_of_a_request_before_the_gate_has_read_it_whole(node):
    """Flower shows it the request first, and takes the parts in afterwards."""
    seen = []

    def pulled(run_id: int, object_id: str) -> bytes:
        seen.append((node.state.get_tasks(), node.state.get_messages_legacy(is_reply=False)))
        return node.link.parts[object_id]

    node.link.pull_object = pulled
    node.link.ask("train", train())
    assert node.pull() == 7 and seen and all(not tasks and not waiting for tasks, waiting in seen)
    assert len(node.state.get_tasks()) == 1 and node.work(good) is not None


def test_a_tree_without_end_that_a_worker_left_does_not_hold_the_gate_up(node):
    """Each part has the next one twice: 60 parts, and a walk over the tree of 2**60."""
    node.link.ask("train", train())
    assert node.pull() == 7
    for i in range(60):
        node.store.preregister(7, leaf(59 - i, *[leaf(60 - i)] * 2))

    def below(request: Message) -> Message:
        reply = good(request)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        node.store.preregister(
            7, ObjectTree(object_id=reply.object_id, children=[leaf(0), *get_object_tree(reply).children])
        )
        return reply

    node.work(below)
    node.push()
    assert "refusal" not in node.link.reply().content, "by the walk it would not be there yet when the sun goes out"
    node.store.preregister(7, leaf(10**7))
    node.state.store_message(node.link.ask("train", train()))  # as if from the worker
    node.link.queue.clear()
    node.pull()
    assert nothing_stays(node), "what belongs to no open request is cleared away"


def test_a_reply_of_another_run_is_nobodys(node, caplog):
    node.link.ask("train", train())
    assert node.pull() == 7

    def other(request: Message) -> Message:
        reply = good(request)
        reply.metadata.__dict__["_run_id"] = 8
        return reply

    node.work(other)
    request_id = next(iter(node.gate._open))
    waits = iter([None])
    real = node.state.get_messages_legacy

    def once(**more: Any) -> Any:
        made = real(**more)
        if not made and next(waits, 1):
            raise RuntimeError("enough")
        return made

    node.state.get_messages_legacy = once
    node.push()
    assert not node.link.sent and "was dropped" in caplog.text and request_id not in node.gate._open
