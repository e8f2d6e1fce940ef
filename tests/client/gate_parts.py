"""A SuperLink and a worker, played around Flower's own two steps of a SuperNode, its own store and state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import fleet_http_connection as links
from flwr.supernode import main
from flwr.supernode import start_client_internal as supernode
from flwr.supernode.nodestate import NodeStateFactory

from client.gate.bundles import sha256
from client.gate.node import Gate
from tests.client.test_gate_bundles import bundle

STEPS = {name: getattr(supernode, name) for name in ("_pull_and_store_message", "_push_messages")}
WAYS = [(main, "create_app", main.create_app), (links, "FleetHttpClient", links.FleetHttpClient)]


class Link:
    """A SuperLink with one run: hands out requests, takes replies and keeps all that it was sent."""

    def __init__(self, fab: bytes) -> None:
        self.fab, self.run = Fab(sha256(fab), fab, {}), Run.create_empty(7)
        self.run.fab_hash = sha256(fab)
        self.queue: list[Message] = []
        self.parts: dict[str, bytes] = {}
        self.sent: list[Message] = []
        self.objects: dict[str, bytes] = {}
        self.rename = ""  # the group that the envelope names, where it is another

    def ask(self, kind: str, content: RecordDict, *, envelope: str = "") -> Message:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 7, 1, 1
        message = Message(content, dst_node_id=2, message_type=kind, group_id="pretrain-1")
        message.metadata.__dict__["_message_id"] = message.object_id
        self.parts |= {i: o.deflate() for i, o in get_all_nested_objects(message).items()}
        self.queue.append(message)
        self.envelope = envelope
        return message

    def get_run(self, run_id: int) -> Run:
        return self.run

    def get_fab(self, digest: str, run_id: int) -> Fab:
        return self.fab

    def receive(self) -> Any:
        if not self.queue:
            return None
        message = self.queue.pop()
        head = inflate_object_from_contents(message.object_id, dict(self.parts))
        assert isinstance(head, Message)
        head.metadata.__dict__["_message_id"] = message.object_id
        head.metadata.message_type = self.envelope or head.metadata.message_type
        head.metadata.group_id = self.rename or head.metadata.group_id
        return head, get_object_tree(message)

    def pull_object(self, run_id: int, object_id: str) -> bytes:
        return self.parts[object_id]

    def send(self, message: Message, tree: Any, runtime: float) -> tuple[set[str], str]:
        self.sent.append(message)
        self.tree = tree
        ids, stack = set(), [tree]
        while stack:
            ids.add((node := stack.pop()).object_id)
            stack += node.children
        return ids, "session"

    def push_object(self, run_id: int, session: str, object_id: str, content: bytes) -> None:
        self.objects[object_id] = content

    def reply(self) -> Message:
        """The last reply, made of what was really sent."""
        message = inflate_object_from_contents(self.sent[-1].metadata.message_id, dict(self.objects))
        assert isinstance(message, Message)
        return message


class Node:
    """A SuperNode's state and store with the gate in, and its main loop a step at a time."""

    def __init__(self, link: Link, site: Path) -> None:
        self.link = link
        factory = ObjectStoreFactory()
        self.store, self.state = factory.store(), NodeStateFactory(factory).state()
        self.state.set_node_id(2)
        vars(supernode).update(STEPS)  # as in a new process
        self.gate = Gate(site, "fl.example.org:443")
        self.gate.install()

    def pull(self) -> int | None:
        return supernode._pull_and_store_message(
            state=self.state, object_store=self.store, node_config={}, receive=self.link.receive,
            get_run=self.link.get_run, get_fab=self.link.get_fab,
            pull_object=self.link.pull_object, confirm_message_received=lambda run, message: None,
            trusted_entities=None,
        )  # fmt: skip

    def push(self) -> None:
        supernode._push_messages(
            state=self.state, object_store=self.store, send=self.link.send, push_object=self.link.push_object
        )

    def work(self, handle: Callable[[Message], Message], *, hidden: bytes = b"") -> Message | None:
        """What a worker does with a request that waits for it; None when there is none. hidden: smuggled into the reply."""
        waiting = self.state.get_messages_legacy(is_reply=False)
        if not waiting:
            return None
        request_id = waiting[0].metadata.message_id
        ids = [n.object_id for n in _flat(self.store.get_object_tree(request_id))]
        request = inflate_object_from_contents(request_id, {i: self.store.get(i) or b"" for i in ids})
        assert isinstance(request, Message)
        request.metadata.__dict__["_message_id"] = request_id
        self.store.delete(request_id)
        reply = handle(request)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        tree = get_object_tree(reply)
        parts = {i: o.deflate() for i, o in get_all_nested_objects(reply).items()}
        if hidden:
            tree.children.add(object_id=sha256(hidden))
            parts = {sha256(hidden): hidden} | parts
        self.store.preregister(7, tree)
        for object_id, content in parts.items():
            self.store.put(object_id, content)
        self.state.store_message(reply)
        return reply

    def round(self, handle: Callable[[Message], Message], **more: Any) -> Message | None:
        """A request in, its reply out; what the worker made of it."""
        assert self.pull() == 7
        made = self.work(handle, **more)
        self.push()
        return made


def node_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """A site `north` in this folder, which has approved the bundle of the SuperLink's run."""
    for name, step in STEPS.items():
        monkeypatch.setattr(supernode, name, step)  # put back after the test
    for module, name, way in WAYS:
        monkeypatch.setattr(module, name, way)
    (folder / "site.yaml").write_text("manifest: data/m.csv\nname: north\n")
    node = Node(Link(bundle(folder / "app")), folder / "site.yaml")
    node.gate.bundles.approve(node.link.fab.content)
    return node


def _flat(tree: Any) -> list[Any]:
    return [tree, *(n for c in tree.children for n in _flat(c))]
