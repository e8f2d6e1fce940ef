"""The parts of a Flower message in a SuperNode's store: objects named by the SHA-256 of what they hold."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from flwr.app import Array, Message
from flwr.supercore.inflatable import inflatable_object as objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStore
from flwr.supernode.nodestate import NodeState

from client.gate.asked import SAID_BYTES

_ARRIVAL_S = 600.0  # how long the parts of a reply may take to come from the worker
_MOST = 10_000  # parts of a message: a request of 2 GB has some hundred
_ID = re.compile("[0-9a-f]{64}")


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


class Held:
    """Flower's state of a node; a request and its task are there for the worker from `release` on, and not before.

    Flower puts both there first and takes the request in afterwards.
    """

    def __init__(self, state: NodeState) -> None:
        self._state, self._task = state, dict[str, Any]()
        self._message: Message | None = None

    def create_task(self, **task: Any) -> int:
        """Kept; the number is nobody's."""
        self._task = task
        return 1

    def store_message(self, message: Message) -> str:
        """Kept."""
        self._message = message
        return str(message.metadata.message_id)

    def finish_task(self, task_id: int, **how: Any) -> bool:
        """Of a request that was not taken in: there is none."""
        return True

    def release(self) -> None:
        """The worker may have it. Raises RuntimeError where Flower has no number for its task, which it draws at random."""
        assert self._message is not None
        self._state.store_message(self._message)
        if self._state.create_task(**self._task) is None:
            raise RuntimeError("the request could not be given to the worker")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)


class Replies:
    """Flower's state of a node, with these replies and no others to send."""

    def __init__(self, state: NodeState, replies: list[Message]) -> None:
        self._state, self._messages = state, replies

    def get_messages_legacy(self, *, is_reply: bool) -> list[Message]:
        """The replies that were checked."""
        return self._messages

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)


def listed(tree: Any) -> dict[str, frozenset[str]]:
    """Part -> its children, of the tree that a server sent of a message. Raises ValueError where Flower's store could choke on
    it: a name that is no SHA-256, too many parts, or one that is said to have now these children and now others."""
    parts: dict[str, frozenset[str]] = {}
    left = [tree]
    for _ in range(_MOST):
        if not left:
            return parts
        node = left.pop()
        children = [child.object_id for child in node.children]
        if not _ID.fullmatch(node.object_id):
            raise ValueError("its tree names a part by what is no SHA-256")
        if parts.setdefault(node.object_id, frozenset(children)) != set(children) or len(set(children)) != len(
            children
        ):
            raise ValueError("its tree contradicts itself")
        left += node.children
    raise ValueError(f"it has more than {_MOST} parts")


def arrived(
    store: ObjectStore, message_id: str, *, most_bytes: float, given_up: Callable[[], bool] = lambda: False
) -> dict[str, bytes]:
    """All parts of a message that a worker is still sending, as far as they belong to it: found by what each says of itself.

    given_up: whether the worker has sent too much, and nothing more of it is taken in. Raises ValueError where the parts
    are too many or do not come.
    """
    deadline, contents, left, size = time.monotonic() + _ARRIVAL_S, dict[str, bytes](), [message_id], 0
    while left:
        if (part := left.pop()) in contents:
            continue
        while not (content := store.get(part)):
            if given_up():
                raise ValueError("the worker sent more than the reply can need")
            if content is None or time.monotonic() > deadline:
                raise ValueError("parts of the reply did not come from the worker")
            time.sleep(0.1)
        contents[part] = content
        size += len(content)
        if size > most_bytes or len(contents) > _MOST:
            raise ValueError(f"the reply is larger than the {most_bytes / 1e6:.1f} MB that it can need")
        left += _children(content)
    return contents


def inflate(
    message_id: str,
    contents: dict[str, bytes],
    *,
    most_bytes: float,
    parts: Mapping[str, Collection[str]] | None = None,
) -> Message:
    """The message; `contents` is used up. parts: its tree, as it was told. Raises ValueError, KeyError: it is none, it is not as
    the tree says, or it is larger than most_bytes when it is put together (an array may name one part any number of times).
    """
    if parts is not None and any(set(_children(contents[part])) != set(of) for part, of in parts.items()):
        raise ValueError("its parts are not those of its tree")
    _check_size(contents, most_bytes)
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


def _children(content: bytes) -> list[str]:
    return list(objects.get_object_children_ids_from_object_content(content))


def _check_size(contents: Mapping[str, bytes], most_bytes: float) -> None:
    """Raises ValueError for a message that would be larger as a whole than its parts are, or with too much that is no vector."""
    heads = {part: objects.get_object_head_values_from_object_content(c) for part, c in contents.items()}
    said = sum(len(contents[part]) for part, (kind, _, _) in heads.items() if kind != "ArrayChunk")
    if said > SAID_BYTES:
        raise ValueError(f"it has {said / 1e6:.0f} MB that are no vectors")
    whole = said
    for part, (kind, children, _) in heads.items():
        if kind == "Array":
            places = json.loads(objects.get_object_body(contents[part], Array))["arraychunk_ids"]
            whole += sum(len(contents[children[place]]) for place in places)
    if whole > most_bytes:
        raise ValueError(f"put together it has {whole / 1e6:.0f} MB, and {most_bytes / 1e6:.0f} MB are the most")
