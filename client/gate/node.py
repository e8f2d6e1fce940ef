"""A site's SuperNode with the gate in it: Flower's own program, two of whose steps go through this site's installed code.

In: a message of a run whose app bundle is not approved, one that was answered before, is too large or cannot be understood
never reaches the worker (`incoming`). Out: a reply of the worker is never sent. What it holds is read, checked by
`client.gate.egress`, and put into a message of the gate's own (`replies`), so that nothing travels but what was checked.

Whatever the server sends, the gate stays; it ends where its audit log cannot be written. The two steps (`_STEPS`) and the two
ways in (`link`, `door`) are private names of Flower, which is pinned; `install` refuses a Flower where they look otherwise.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
from flwr.app import Error, Message, RecordDict
from flwr.supercore.fab import Fab
from flwr.supercore.object_store import ObjectStore
from flwr.supernode import fleet_http_connection, main
from flwr.supernode import start_client_internal as supernode
from flwr.supernode.nodestate import NodeState

from client.gate import GateError
from client.gate.audit import Audit, Event
from client.gate.bundles import BundleError, Bundles
from client.gate.charges import uncharged
from client.gate.door import Allowance, Door
from client.gate.egress import objection
from client.gate.incoming import Incoming, Refused
from client.gate.link import Link
from client.gate.names import Names
from client.gate.online import Online
from client.gate.parts import Replies, arrived, inflate, insert
from client.gate.replies import Open, outgoing, refusal, runtime_error
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
_PATIENCE, _PAUSE_S = (
    10,
    3.0,
)  # refusals in a row; from then on it waits, or a server could fill the disk with their lines


class Ended(BaseException):
    """The gate cannot go on; the message is one sentence. Not an Exception: after those Flower goes on, or hangs."""


class Gate:
    """The gate of one site. site: its site.yaml, read anew for each message. peer: the SuperLink's address, for the audit log.

    Raises ConfigError, AuditError.
    """

    def __init__(self, site: Path, peer: str) -> None:
        own = read_site(site)
        Names.of(own)  # a vocabulary that is none is told now
        self.site, self.peer = site, peer
        self.bundles, self.audit = Bundles(own.gate), Audit(own.gate / "audit.jsonl")
        self.online = Online(own.gate)
        self.allowance = Allowance()
        self._open: dict[str, Open] = {}
        self._leaving: dict[str, Event] = {}  # by the id of the reply
        self._refusals = 0

    def install(self) -> None:
        """Put the gate into Flower's SuperNode, in this process. Raises GateError where Flower is not as it should be."""
        steps: dict[str, Any] = {name: getattr(supernode, name, None) for name in _STEPS}
        looks = {name: tuple(inspect.signature(step).parameters) if step else () for name, step in steps.items()}
        makes: Any = getattr(main, "create_app", None)
        client: Any = getattr(fleet_http_connection, "FleetHttpClient", None)
        if looks != _STEPS or makes is None or client is None or not issubclass(Link, client):
            raise GateError(
                "this version of Flower is not one that the gate knows: install the versions of constraints.txt"
            )
        self._pull, self._push = steps.values()

        def with_door(*arguments: Any, **more: Any) -> Any:
            app = makes(*arguments, **more)
            app.add_middleware(Door, allowance=self.allowance)
            return app

        vars(supernode).update(_pull_and_store_message=self.pull, _push_messages=self.push)
        vars(fleet_http_connection).update(FleetHttpClient=Link)
        vars(main).update(create_app=with_door)

    def pull(self, *, state: NodeState, object_store: ObjectStore, **rest: Any) -> int | None:
        """Flower's step that takes a message in, for messages that may come in; others are answered here."""
        self.online.enter()  # the server has let this node in, or it would not come to this
        with self._staying():
            # No request is open: what is still there belongs to none, whoever has put it there.
            state.delete_messages()
            object_store.clear()
            return self._take_in(state=state, store=object_store, **rest)
        return None

    def push(self, *, state: NodeState, object_store: ObjectStore, send: Callable[..., Any], **rest: Any) -> None:
        """Flower's step that sends replies, of replies that were checked and made anew."""
        with self._staying():
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

            self._push(state=Replies(state, replies), object_store=object_store, send=sent, **rest)

    @contextmanager
    def _staying(self) -> Iterator[None]:
        """Whatever an answer of the server does to Flower or to the gate: both logs have it, and the gate goes on."""
        try:
            try:
                yield
            except GateError:
                raise
            except Exception as error:
                self._open.clear()
                log.warning("an answer of the server cannot be used (%s: %s)", type(error).__name__, error)
                if not isinstance(error, httpx.HTTPError):  # with those nothing has come
                    self.audit.write(Event("in", f"not received: malformed ({type(error).__name__})", self.peer))
        except GateError as error:
            raise Ended(str(error)) from None

    def _take_in(
        self, *, state: NodeState, store: ObjectStore, receive: Callable[[], Any], get_run: Callable[[int], Any],
        get_fab: Callable[[str, int], Fab], pull_object: Callable[[int, str], bytes],
        confirm_message_received: Callable[[int, str], None], **rest: Any,
    ) -> int | None:  # fmt: skip
        coming = Incoming(
            self.site, self.bundles, self.audit.answered, state=state, store=store, receive=receive, get_run=get_run,
            get_fab=get_fab, pull_object=pull_object,
        )  # fmt: skip

        def confirmed(run_id: int, message_id: str) -> None:
            self.allowance.renew(coming.read())
            assert coming.one is not None
            self._open[message_id] = coming.one
            self.audit.write(coming.one.event("in", "accepted", self.peer))
            confirm_message_received(run_id, message_id)
            coming.held.release()
            self._refusals = 0

        run_id: int | None = None
        with suppress(Refused):  # it is in `coming` as well
            run_id = self._pull(
                state=coming.held, object_store=coming.seen, receive=coming.receive, get_run=coming.get_run,
                get_fab=coming.get_fab, pull_object=coming.pull_object, confirm_message_received=confirmed, **rest,
            )  # fmt: skip
        if coming.one is None or run_id is not None:
            return run_id
        if coming.refused is not None:
            return self._refuse(coming.one, coming.refused, state, store, confirm_message_received)
        self._open.clear()
        self.audit.write(coming.one.event("in", "not received: broken off, or the run is over", self.peer))
        return None

    def _refuse(
        self, one: Open, no: Refused, state: NodeState, store: ObjectStore, confirm: Callable[[int, str], None]
    ) -> int:
        """Answer in the worker's place."""
        meta = one.message.metadata
        self._refusals += 1
        if self._refusals > _PATIENCE:
            time.sleep(_PAUSE_S)
        self.audit.write(one.event("in", f"refused: {no.code}", self.peer))
        try:
            confirm(meta.run_id, meta.message_id)
        except Exception as error:  # it may come again, and is refused again
            log.warning("the SuperLink took no confirmation of %s (%s)", meta.message_id, type(error).__name__)
        self._open[meta.message_id] = one
        state.record_message_processing_start(meta.message_id)
        state.record_message_processing_end(meta.message_id)
        supernode._insert_message(Message(refusal(no.code, str(no)), reply_to=one.message), state, store)
        return int(meta.run_id)

    def _remade(self, made: Message, state: NodeState, store: ObjectStore) -> Message | None:
        """A message of the gate's own with what may leave of this reply; None where nobody asked for one."""
        reply_id, request_id = made.metadata.message_id, made.metadata.reply_to_message_id
        one = self._open.get(request_id)
        try:
            if one is None or one.message.metadata.run_id != made.metadata.run_id:
                log.warning("a reply to a request that is not open was dropped")
                self.audit.write(Event("out", "dropped: nobody asked", self.peer))
                return None
            del self._open[request_id]
            content, outcome = self._checked(reply_id, one, store)
            message = Message(content, reply_to=one.message)
            one.bytes = insert(message, store)
            self._leaving[message.metadata.message_id] = one.event("out", outcome, self.peer, message)
            return message
        finally:
            state.delete_messages(message_ids=[reply_id])
            store.delete(reply_id)

    def _checked(self, reply_id: str, one: Open, store: ObjectStore) -> tuple[RecordDict | Error, str]:
        """The content that may leave, and what the audit log says of it."""
        why: str | None
        try:
            own = read_site(self.site)
            most = one.asked.most_bytes(own.egress)
            parts = arrived(store, reply_id, most_bytes=most, given_up=lambda: self.allowance.exceeded)
            reply = inflate(reply_id, parts, most_bytes=most)
            if reply.has_error():
                return runtime_error(reply.error), "sent: error of the runtime"
            why = objection(
                reply.content, one.asked, own.egress, own.privacy, names=Names.of(own),
                charged=lambda receipt: uncharged(own.ledger, one.asked, receipt),
            )  # fmt: skip
        except Exception as error:  # whatever is wrong with a reply or with site.yaml: it does not leave
            why = f"it cannot be checked ({type(error).__name__}: {error})"
        if why is not None:
            return refusal("egress", why), "refused: egress"
        if told := reply.content.config_records.get(contract.REFUSAL):
            return outgoing(reply.content), "sent: refusal " + str(told["code"])
        if (why := self._withdrawn(one.bundle)) is not None:
            return refusal("bundle", why), "refused: bundle"
        return outgoing(reply.content), "sent"

    def _withdrawn(self, bundle: str) -> str | None:
        """Why the work of this bundle, which was approved when the request came, may not leave any more; None when it may."""
        try:
            return None if self.bundles.approved(bundle) else f"the app bundle {bundle} was withdrawn while it worked"
        except BundleError as error:
            return str(error)
