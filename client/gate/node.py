"""A site's SuperNode with the gate in it: Flower's own program, two of whose steps go through this site's installed code.

In: a message of a run whose app bundle is not approved, or one that was answered before, never reaches the worker.
Out: a reply of the worker is never sent. What it holds is read, checked by `client.gate.egress`, and put into a message of the
gate's own, so that nothing travels but what was checked; anything else becomes a refusal with an incident id.

The two steps are private names of Flower (`_STEPS`), which is pinned; `install` refuses a Flower where they look otherwise.
"""

from __future__ import annotations

import inspect
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.object_store import ObjectStore
from flwr.supernode import start_client_internal as supernode
from flwr.supernode.nodestate import NodeState

from client.gate import GateError
from client.gate.audit import Audit, Event, plain
from client.gate.bundles import BundleError, Bundles, sha256
from client.gate.charges import uncharged
from client.gate.egress import Asked, objection
from client.gate.online import Online
from client.gate.parts import Replies, Seen, arrived, inflate, insert
from client.policy import read_site
from medmap_model import contract

log = logging.getLogger("medmap.gate")

_STEPS = {
    "_pull_and_store_message": (
        "state", "object_store", "node_config", "receive", "get_run", "get_fab", "pull_object", "confirm_message_received",
        "trusted_entities",
    ),
    "_push_messages": ("state", "object_store", "send", "push_object"),
}  # fmt: skip


class Refused(Exception):
    """A message that the worker is not to see: the code that answers it, and why, for the site's own log."""

    def __init__(self, code: str, why: str) -> None:
        super().__init__(why)
        self.code = code


@dataclass
class Open:
    """A request that is not answered yet: its message without content, what was asked, how large it was, its bundle."""

    message: Message
    bundle: str
    asked: Asked
    bytes: int = 0


class Gate:
    """The gate of one site. site: its site.yaml, read anew for each message. peer: the SuperLink's address, for the audit log.

    Raises ConfigError, AuditError.
    """

    def __init__(self, site: Path, peer: str) -> None:
        own = read_site(site)
        self.site, self.peer = site, peer
        self.bundles, self.audit = Bundles(own.gate), Audit(own.gate / "audit.jsonl")
        self.online = Online(own.gate)
        self._open: dict[str, Open] = {}
        self._leaving: dict[str, Event] = {}  # by the id of the reply

    def install(self) -> None:
        """Put the gate into Flower's SuperNode, in this process. Raises GateError where Flower is not as it should be."""
        for name, parameters in _STEPS.items():
            step = getattr(supernode, name, None)
            if step is None or tuple(inspect.signature(step).parameters) != parameters:
                raise GateError(
                    "this version of Flower is not one that the gate knows: install the versions of constraints.txt"
                )
        self._pull, self._push = supernode._pull_and_store_message, supernode._push_messages
        vars(supernode).update(_pull_and_store_message=self.pull, _push_messages=self.push)

    def pull(
        self, *, state: NodeState, object_store: ObjectStore, receive: Callable[[], Any], get_run: Callable[[int], Any],
        get_fab: Callable[[str, int], Fab], confirm_message_received: Callable[[int, str], None], **rest: Any,
    ) -> int | None:  # fmt: skip
        """Flower's step that takes a message in, for messages that may come in; others are answered here."""
        self.online.enter()  # the server has let this node in, or it would not come to this
        seen = Seen(object_store)
        taken: list[Open] = []
        runs: list[Any] = []

        def received() -> Any:
            if (pulled := receive()) is None:
                return None
            message, tree = pulled
            message.metadata.__dict__["_message_id"] = tree.object_id
            kind = message.metadata.message_type
            taken.append(Open(message, "", Asked(kind)))
            run = state.get_run(message.metadata.run_id) or get_run(message.metadata.run_id)
            runs.append(run)
            taken[0].bundle = run.fab_hash
            self._admit(message, run, get_fab)
            return pulled

        def checked_fab(digest: str, run_id: int) -> Fab:
            fab = get_fab(digest, run_id)
            if sha256(fab.content) != digest or fab.hash_str != digest:
                raise Refused("bundle", "the bundle that came is not the one that the run names")
            return fab

        def confirmed(run_id: int, message_id: str) -> None:
            one = taken[0]
            one.bytes = sum(map(len, seen.contents.values()))
            request = inflate(message_id, seen.contents)
            if request.metadata.message_type != one.asked.kind or request.metadata.run_id != run_id:
                raise ValueError("the request is of another kind or run than its envelope says")
            if request.has_content():
                one.asked = Asked.of(one.asked.kind, request.content)
            self._open[message_id] = one
            self.audit.write(self._event(one, "in", "accepted"))
            confirm_message_received(run_id, message_id)

        try:
            # The run is asked for once: a second answer could name another bundle than the one that was admitted.
            run_id = self._pull(
                state=state, object_store=seen, receive=received, get_run=lambda _: runs[0], get_fab=checked_fab,  # type: ignore[arg-type]
                confirm_message_received=confirmed, **rest,
            )  # fmt: skip
        except Refused as no:
            return self._refuse(taken[0], no, state, object_store, confirm_message_received)
        if run_id is None and taken:
            self._open.pop(taken[0].message.metadata.message_id, None)
            self.audit.write(self._event(taken[0], "in", "not received: broken off, or the run is over"))
        return run_id

    def _admit(self, message: Message, run: Any, get_fab: Callable[[str, int], Fab]) -> None:
        """Raises Refused for a message that the worker is not to see."""
        meta = message.metadata
        if run.run_id != meta.run_id:
            raise Refused("task", f"the server answers for run {run.run_id} where {meta.run_id} was asked for")
        kind, group = plain(meta.message_type), plain(meta.group_id)
        if (kind, group) != (meta.message_type, meta.group_id):
            meta.message_type, meta.group_id = kind, group  # Flower logs them as they are: they could forge lines
            raise Refused("task", "the kind or the group of the request is long or no plain text")
        try:
            if not self.bundles.approved(run.fab_hash):
                path = self.bundles.pending(run.fab_hash)
                if not path.is_file():
                    path = self.bundles.keep_pending(get_fab(run.fab_hash, run.run_id).content)
                raise Refused(
                    "bundle",
                    f"the app bundle {path.stem} is not approved; to look at it and approve it: "
                    f"medmap-client approve -s {self.site} {path}",
                )
        except (BundleError, OSError) as error:
            raise Refused("bundle", str(error)) from None
        if run.primary_task_type == TaskType.AGENT_APP:
            raise Refused("task", "the run is of an agent, not of a federation")
        if self.audit.answered(meta.message_id):
            raise Refused("replay", f"request {meta.message_id} was answered before")

    def _refuse(
        self, one: Open, no: Refused, state: NodeState, store: ObjectStore, confirm: Callable[[int, str], None]
    ) -> int:
        """Answer in the worker's place."""
        meta = one.message.metadata
        self.audit.write(self._event(one, "in", f"refused: {no.code}"))
        try:
            confirm(meta.run_id, meta.message_id)
        except Exception as error:  # it may come again, and is refused again
            log.warning("the SuperLink took no confirmation of %s (%s)", meta.message_id, type(error).__name__)
        self._open[meta.message_id] = one
        state.record_message_processing_start(meta.message_id)
        state.record_message_processing_end(meta.message_id)
        supernode._insert_message(Message(_refusal(no.code, str(no)), reply_to=one.message), state, store)
        return int(meta.run_id)

    def push(self, *, state: NodeState, object_store: ObjectStore, send: Callable[..., Any], **rest: Any) -> None:
        """Flower's step that sends replies, of replies that were checked and made anew."""
        replies: list[Message] = []
        while not replies:
            made = state.get_messages_legacy(is_reply=True)
            replies = [r for m in made if (r := self._remade(m, state, object_store)) is not None]
            if not made:
                time.sleep(0.5)

        def sent(message: Message, *more: Any) -> Any:
            event = self._leaving.pop(message.metadata.message_id)
            self.audit.write(event)
            try:
                return send(message, *more)
            except Exception:
                self.audit.write(replace(event, outcome="not taken by the SuperLink"))
                raise

        self._push(state=Replies(state, replies), object_store=object_store, send=sent, **rest)  # type: ignore[arg-type]

    def _remade(self, made: Message, state: NodeState, store: ObjectStore) -> Message | None:
        """A message of the gate's own with what may leave of this reply; None where nobody asked for one."""
        reply_id, request_id = made.metadata.message_id, made.metadata.reply_to_message_id
        one = self._open.pop(request_id, None)
        try:
            if one is None:
                log.warning("a reply to a request that is not open was dropped")
                self.audit.write(Event("out", "dropped: nobody asked", self.peer))
                return None
            content, outcome = self._checked(reply_id, one, store)
            message = Message(content, reply_to=one.message)
            one.bytes = insert(message, store)
            self._leaving[message.metadata.message_id] = self._event(one, "out", outcome, message)
            return message
        finally:
            state.delete_messages(message_ids=[reply_id])
            store.delete(reply_id)

    def _checked(self, reply_id: str, one: Open, store: ObjectStore) -> tuple[RecordDict | Error, str]:
        """The content that may leave, and what the audit log says of it."""
        why: str | None
        try:
            own = read_site(self.site)
            reply = inflate(reply_id, arrived(store, reply_id, most_bytes=own.egress.maximum_mb * 1e6))
            if reply.has_error():
                return _error(reply.error), "sent: error of the runtime"
            why = objection(
                reply.content, one.asked, own.egress, own.privacy,
                charged=lambda receipt: uncharged(own.ledger, one.asked, receipt),
            )  # fmt: skip
        except Exception as error:  # whatever is wrong with a reply or with site.yaml: it does not leave
            why = f"it cannot be checked ({type(error).__name__}: {error})"
        if why is not None:
            return _refusal("egress", why), "refused: egress"
        if refusal := reply.content.config_records.get(contract.REFUSAL):
            return reply.content, "sent: refusal " + str(refusal["code"])
        if (why := self._withdrawn(one.bundle)) is not None:
            return _refusal("bundle", why), "refused: bundle"
        return reply.content, "sent"

    def _withdrawn(self, bundle: str) -> str | None:
        """Why the work of this bundle, which was approved when the request came, may not leave any more; None when it may."""
        try:
            return None if self.bundles.approved(bundle) else f"the app bundle {bundle} was withdrawn while it worked"
        except BundleError as error:
            return str(error)

    def _event(self, one: Open, direction: str, outcome: str, reply: Message | None = None) -> Event:
        """A line of the audit log on a request, or on the reply to it."""
        meta = one.message.metadata
        incident, object_id = "", meta.message_id
        if reply is not None:
            object_id = reply.metadata.message_id
            if reply.has_content() and (refusal := reply.content.config_records.get(contract.REFUSAL)):
                incident = str(refusal["incident"])
        return Event(
            direction, outcome, self.peer, str(meta.run_id), meta.message_type, meta.group_id, one.bytes, object_id,
            meta.message_id, one.bundle, incident,
        )  # fmt: skip


def _refusal(code: str, why: str) -> RecordDict:
    """What the server is told, while the log has why."""
    incident = uuid.uuid4().hex[:12]
    log.warning("incident %s (%s): %s", incident, code, why)
    return RecordDict({contract.REFUSAL: ConfigRecord({"code": code, "incident": incident})})


def _error(error: Error) -> Error:
    """An error of Flower's runtime in the worker, in fixed words: its own are an exception's text."""
    incident = uuid.uuid4().hex[:12]
    log.warning("incident %s: the worker's runtime says %s", incident, error.reason)
    code = error.code if error.code in vars(ErrorCode).values() else ErrorCode.UNKNOWN
    return Error(code, f"the site failed; its own log has the incident {incident}")
