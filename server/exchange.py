"""Messages between server and sites: contract objects in and out of Flower's records, and bounded collection of replies."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import SType
from flwr.serverapp import Grid

from medmap_model import contract
from medmap_model.contract import Card, Task

_POLL_S = 0.5  # between two looks for replies; none where the grid runs a site when it is asked


class Broadcast:
    """The global model of one round, serialised once however many sites receive a part of it."""

    def __init__(self, vectors: Mapping[str, np.ndarray]) -> None:
        self._arrays = {
            group: Array("float32", vector.shape, SType.NUMPY, contract.encode_vector(vector))
            for group, vector in vectors.items()
        }

    def arrays(self, groups: Iterable[str]) -> ArrayRecord:
        """Those module groups as a record."""
        return ArrayRecord({g: self._arrays[g] for g in groups})

    def message(
        self, node: int, kind: str, groups: Iterable[str], task: Task, secure: Mapping[str, Any] | None = None
    ) -> Message:
        """A `train` or `evaluate` message with those module groups. secure: how to mask the update, if it is to be masked."""
        content = RecordDict(
            {
                contract.ARRAYS: self.arrays(groups),
                contract.TASK: record(contract.TASK, task),
            }
        )
        if secure is not None:
            content[contract.SECURE] = record(contract.SECURE, secure)
        return Message(content, dst_node_id=node, message_type=kind, group_id=f"{task.stage}-{task.round}")


def record(name: str, value: Any) -> ConfigRecord:
    """A value as JSON, in the one field of a record; both have that name."""
    return ConfigRecord({name: contract.to_json(value)})


def query(node: int) -> Message:
    """Ask a site for its card."""
    return Message(RecordDict(), dst_node_id=node, message_type="query", group_id="join")


def collect(grid: Grid, messages: Iterable[Message], *, timeout_s: float) -> Iterator[tuple[int, Message]]:
    """Send, then yield (node, reply) as each arrives, until all have or the time is up. A late reply is left behind."""
    messages = list(messages)
    nodes = [m.metadata.dst_node_id for m in messages]
    waiting = dict(zip(grid.push_messages(messages), nodes, strict=True))
    deadline = time.monotonic() + timeout_s
    while waiting:
        replies = list(grid.pull_messages(list(waiting)))
        for reply in replies:
            # An error reply of the runtime carries the server's own node id: the message it answers tells the site.
            node = waiting.pop(reply.metadata.reply_to_message_id, None)
            if node is not None:
                yield node, reply
        if time.monotonic() > deadline:
            return
        if not replies:
            time.sleep(0.0 if getattr(grid, "immediate", False) else _POLL_S)


def ask(
    grid: Grid, step: str, bodies: Mapping[int, Mapping[str, Any]], *, timeout_s: float
) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
    """One step of secure aggregation (`contract.SECURE_STEPS`): node -> its answer; and node -> why it gave none."""
    messages = [
        Message(
            RecordDict({contract.SECURE: record(contract.SECURE, body)}),
            dst_node_id=node,
            message_type=f"query.{step}",
            group_id=step,
        )
        for node, body in bodies.items()
    ]
    answers: dict[int, dict[str, Any]] = {}
    silent = dict.fromkeys(bodies, "no answer in time")
    for node, reply in collect(grid, messages, timeout_s=timeout_s):
        reason = refusal(reply)
        if reason is None:
            try:
                answers[node] = dict(json.loads(str(reply.content[contract.SECURE][contract.SECURE])))
                del silent[node]
                continue
            except (KeyError, TypeError, ValueError) as error:
                reason = f"its answer cannot be read ({type(error).__name__})"
        silent[node] = reason
    return answers, silent


def refusal(reply: Message) -> str | None:
    """Why a reply holds no result, in words of our own; None when it does. Never a text that a site wrote."""
    if reply.has_error():
        return f"no answer (code {reply.error.code} of the runtime)"
    record = reply.content.get(contract.REFUSAL)
    if record is None:
        return None
    code = str(record.get("code", "internal"))
    incident = "".join(c for c in str(record.get("incident", "")) if c in "0123456789abcdef")[:12]
    return f"{contract.REFUSALS.get(code, contract.REFUSALS['internal'])} (incident {incident or 'none'})"


def card(reply: Message) -> Card:
    """The card in a reply to `query`. Raises ValueError when it is not one."""
    try:
        return Card(**json.loads(str(reply.content[contract.CARD][contract.CARD])))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"the reply holds no card ({type(error).__name__})") from None


def update(reply: Message) -> dict[str, np.ndarray]:
    """The vectors in a reply to `train`. Raises ValueError when they cannot be read."""
    record = reply.content.get(contract.ARRAYS)
    if not isinstance(record, ArrayRecord):
        raise ValueError("the reply holds no arrays")
    try:
        return {str(k): contract.decode_vector(v.data) for k, v in record.items()}
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"its arrays cannot be read ({type(error).__name__})") from None


def receipt(reply: Message) -> dict[str, Any] | None:
    """The receipt of a private reply, as the site wrote it; None when there is none that can be read."""
    record: Any = reply.content.get(contract.RECEIPT) or {}
    try:
        found = json.loads(str(record[contract.RECEIPT]))
        return {"ledger": str(found["ledger"])[:64], "seq": int(found["seq"]), "hash": str(found["hash"])[:64]}
    except (KeyError, TypeError, ValueError):
        return None


def metrics(reply: Message) -> dict[str, float]:
    """The declared figures in a reply; anything else in it is ignored."""
    record: Any = reply.content.get(contract.METRICS_RECORD) or {}
    return {
        k: float(record[k])
        for k in contract.METRICS
        if isinstance(record.get(k), int | float) and np.isfinite(record[k])
    }
