"""Messages between server and sites: contract objects in and out of Flower's records, and bounded collection of replies."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode, SType
from flwr.serverapp import Grid

from medmap_model import contract
from medmap_model.contract import Card, Task

_POLL_S = 0.5  # between two looks for replies; none where the grid runs a site when it is asked
# A message lives this much longer than its reply is waited for. Whether that is late is judged here alone, and a site's clock
# may be ahead: Flower lets in one of 5 s, and drops a reply whose message has run out by the site's clock.
_GRACE_S = 10.0
_UNANSWERED = {ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE}
_LARGEST_COUNT = 1 << 29  # float64 sums of float32 times a number below it are exact (`aggregation`)
_RECEIPT = {"ledger", "seq", "hash"}  # what a site wants back of its receipt


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
        self,
        node: int,
        kind: str,
        groups: Iterable[str],
        task: Task,
        secure: Mapping[str, Any] | None = None,
        *,
        wait_s: float,
    ) -> Message:
        """A `train` or `evaluate` message with those module groups. secure: how to mask the update, if it is to be masked.
        wait_s: how long its reply is waited for; Flower hands it to no site much later.
        """
        content = RecordDict(
            {
                contract.ARRAYS: self.arrays(groups),
                contract.TASK: record(contract.TASK, task),
            }
        )
        if secure is not None:
            content[contract.SECURE] = record(contract.SECURE, secure)
        group = f"{task.stage}-{task.round}"
        return Message(content, dst_node_id=node, message_type=kind, group_id=group, ttl=ttl_s(wait_s))


def record(name: str, value: Any) -> ConfigRecord:
    """A value as JSON, in the one field of a record; both have that name."""
    return ConfigRecord({name: contract.to_json(value)})


def ttl_s(wait_s: float) -> float:
    """How long Flower may keep a message whose reply is waited for so long: a site is to do no task whose round is over."""
    return wait_s + _GRACE_S


def query(node: int, *, wait_s: float) -> Message:
    """Ask a site for its card."""
    return Message(RecordDict(), dst_node_id=node, message_type="query", group_id="join", ttl=ttl_s(wait_s))


def collect(
    grid: Grid,
    messages: Iterable[Message],
    *,
    timeout_s: float,
    own_s: Mapping[int, float] | None = None,
    cut_s: Callable[[], float] | None = None,
    late: dict[int, str] | None = None,
) -> Iterator[tuple[int, Message]]:
    """Send, then yield (node, reply) as each arrives, until all have or the time is up. A late reply is left behind.

    Seconds count from the sending. own_s: nodes that are waited for less than `timeout_s`. cut_s: asked at each look, after
    how long nobody is waited for any more. late: takes node -> message id of each that is left behind at work. Where the grid
    runs a site when it is asked, no site is slower than another, and `timeout_s` alone counts.
    """
    messages, begun = list(messages), time.monotonic()
    nodes = [m.metadata.dst_node_id for m in messages]
    pushed = zip(grid.push_messages(messages), nodes, strict=True)
    waiting = {key: node for key, node in pushed if key}  # no key: the node has been shut out meanwhile
    immediate = getattr(grid, "immediate", False)
    while waiting:
        looked_s = time.monotonic() - begun  # an answer that came while others were taken in is not late
        replies = list(grid.pull_messages(list(waiting)))
        for reply in replies:
            # An error reply of the runtime carries the server's own node id: the message it answers tells the site.
            node = waiting.pop(reply.metadata.reply_to_message_id, None)
            if node is not None:
                yield node, reply
        if immediate and time.monotonic() - begun > timeout_s:
            return
        for key, node in list(waiting.items()) if not immediate else ():
            if looked_s > min(timeout_s, (own_s or {}).get(node, timeout_s), cut_s() if cut_s else timeout_s):
                del waiting[key]
                if late is not None:
                    late[node] = key
        if waiting and not replies:
            time.sleep(0.0 if immediate else _POLL_S)


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
            ttl=ttl_s(timeout_s),
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


def unanswered(reply: Message) -> bool:
    """Whether the runtime itself says that there will be no reply: the site went offline, or the message ran out."""
    return reply.has_error() and reply.error.code in _UNANSWERED


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
    """The card in a reply to `query`. Raises ValueError when it is not one, or has counts that nobody can weigh by."""
    try:
        found = Card(**json.loads(str(reply.content[contract.CARD][contract.CARD])))
        counts = [*found.volumes.values(), *found.studies.values(), *found.splits.values()]
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"the reply holds no card ({type(error).__name__})") from None
    if not (isinstance(found.site, str) and found.site):
        raise ValueError("its card has no name")
    if not all(type(n) is int and 0 <= n < _LARGEST_COUNT for n in counts):
        raise ValueError("its card counts patients or volumes in something else than whole numbers from 0 to 2^29")
    return found


def update(reply: Message) -> dict[str, np.ndarray]:
    """The vectors in a reply to `train`. Raises ValueError when they cannot be read."""
    record = reply.content.get(contract.ARRAYS)
    if not isinstance(record, ArrayRecord):
        raise ValueError("the reply holds no arrays")
    return _vectors(record)


def scales(reply: Message) -> dict[str, np.ndarray]:
    """The scales of a compressed update; none where there are none. Raises ValueError when they cannot be read."""
    record = reply.content.get(contract.SCALES)
    return _vectors(record) if isinstance(record, ArrayRecord) else {}


def _vectors(record: ArrayRecord) -> dict[str, np.ndarray]:
    try:
        return {str(k): contract.decode_vector(v.data) for k, v in record.items()}
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"its arrays cannot be read ({type(error).__name__})") from None


def receipt(reply: Message) -> dict[str, Any] | None:
    """The receipt of a private reply: where the site's ledger stands and, if the site tells it, `spent` of which `budget`.
    None when there is none that can be read.
    """
    record: Any = reply.content.get(contract.RECEIPT) or {}
    try:
        found = json.loads(str(record[contract.RECEIPT]))
        told = {"ledger": str(found["ledger"])[:64], "seq": int(found["seq"]), "hash": str(found["hash"])[:64]}
        budget = {k: float(found[k]) for k in ("spent", "budget") if found.get(k) is not None}
    except (KeyError, OverflowError, TypeError, ValueError):
        return None
    return told | {k: v for k, v in budget.items() if np.isfinite(v)}


def position(receipt: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What goes back to a site of its receipt: where its ledger stood, nothing else."""
    return {k: v for k, v in receipt.items() if k in _RECEIPT} if receipt else None


def metrics(reply: Message) -> dict[str, float]:
    """The declared figures in a reply; anything else in it is ignored."""
    record: Any = reply.content.get(contract.METRICS_RECORD) or {}
    return {
        k: float(record[k])
        for k in contract.METRICS
        if isinstance(record.get(k), int | float) and np.isfinite(record[k])
    }
