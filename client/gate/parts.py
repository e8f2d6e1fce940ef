"""The parts of a Flower message in a SuperNode's store: objects named by the SHA-256 of what they hold."""

from __future__ import annotations

import time
from typing import Any

from flwr.app import Message
from flwr.supercore.inflatable import inflatable_object as objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStore
from flwr.supernode.nodestate import NodeState

_ARRIVAL_S = 600.0  # how long the parts of a reply may take to come from the worker


class Seen:
    """Flower's object store; what is put into it, or found in it, for one message is at hand in `contents` as well."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.contents: dict[str, bytes] = {}

    def preregister(self, run_id: int, tree: Any) -> list[str]:
        """As the store does; what it has already is looked up."""
        missing = self._store.preregister(run_id, tree)
        for node in objects.iterate_object_tree(tree):
            if node.object_id not in missing:
                self.contents[node.object_id] = self._store.get(node.object_id) or b""
        return missing

    def put(self, object_id: str, content: bytes) -> None:
        """As the store does, which checks the hash first."""
        self._store.put(object_id, content)
        self.contents[object_id] = content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class Replies:
    """Flower's state of a node, with these replies and no others to send."""

    def __init__(self, state: NodeState, replies: list[Message]) -> None:
        self._state, self._messages = state, replies

    def get_messages_legacy(self, *, is_reply: bool) -> list[Message]:
        """The replies that were checked."""
        return self._messages

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)


def arrived(store: ObjectStore, message_id: str, *, most_bytes: float) -> dict[str, bytes]:
    """All parts of a message that a worker is still sending. Raises ValueError where they are too many or do not come."""
    deadline, contents, size = time.monotonic() + _ARRIVAL_S, {}, 0
    for node in objects.iterate_object_tree(store.get_object_tree(message_id)):
        while not (content := store.get(node.object_id)):
            if content is None or time.monotonic() > deadline:
                raise ValueError("parts of the reply did not come from the worker")
            time.sleep(0.1)
        contents[node.object_id] = content
        size += len(content)
        if size > 1.1 * most_bytes + 1e6:  # with Flower's own heads and lists; the exact limit is the egress check's
            raise ValueError(f"the reply is larger than egress.maximum_mb {most_bytes / 1e6:g}")
    return contents


def inflate(message_id: str, contents: dict[str, bytes]) -> Message:
    """The message; `contents` is used up. Raises ValueError, KeyError."""
    message = inflate_object_from_contents(message_id, contents)
    if not isinstance(message, Message):
        raise ValueError("it is no message")
    return message


def insert(message: Message, store: ObjectStore) -> int:
    """Name a message by its hash and put its parts where Flower sends them from; how many bytes they have."""
    size = 0
    with objects.no_object_id_recompute():
        message.metadata.__dict__["_message_id"] = message.object_id
        store.preregister(message.metadata.run_id, objects.get_object_tree(message))
        for object_id, part in objects.get_all_nested_objects(message).items():
            content = part.deflate()
            store.put(object_id, content)
            size += len(content)
    return size
