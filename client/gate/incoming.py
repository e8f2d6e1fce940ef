"""One request on its way in, held against what this site has approved and has room for before the worker sees anything of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.object_store import ObjectStore
from flwr.supernode.nodestate import NodeState

from client.gate.asked import SAID_BYTES, Asked
from client.gate.bundles import BundleError, Bundles, sha256
from client.gate.parts import Held, Seen, inflate, listed
from client.gate.replies import Open
from client.gate.words import plain
from client.policy import Egress, read_site
from configs.setting import ConfigError


class Refused(Exception):
    """A message that the worker is not to see: the code that answers it, and why, for the site's own log."""

    def __init__(self, code: str, why: str) -> None:
        super().__init__(why)
        self.code = code


class Incoming:
    """What Flower's step works with in the place of the SuperLink's calls, the store and the state.

    one: the request, once there is one. refused: why the worker is not to see it; Flower goes on after some refusals, so that
    they are kept here as well as raised. seen, held: the store and the state of this request.
    """

    def __init__(
        self, site: Path, bundles: Bundles, answered: Callable[[str], bool], *, state: NodeState, store: ObjectStore,
        receive: Callable[[], Any], get_run: Callable[[int], Any], get_fab: Callable[[str, int], Fab],
        pull_object: Callable[[int, str], bytes],
    ) -> None:  # fmt: skip
        """answered: whether a request of this id was answered before."""
        self._site, self._bundles, self._answered, self._state = site, bundles, answered, state
        self._receive, self._get_run, self._get_fab, self._pull_object = receive, get_run, get_fab, pull_object
        self._parts: dict[str, frozenset[str]] = {}
        self._run: Any = None
        self._room, self._lock = 0.0, threading.Lock()
        self.seen, self.held = Seen(store), Held(state)
        self.one: Open | None = None
        self.refused: Refused | None = None

    def receive(self) -> Any:
        """A request's envelope and tree, when it may come in. Raises ValueError for a tree that is none, and Refused."""
        if (pulled := self._receive()) is None:
            return None
        message, tree = pulled
        self._parts = listed(tree)
        message.metadata.__dict__["_message_id"] = tree.object_id
        self.one = Open(message, "", Asked(message.metadata.message_type))
        self._run = self._state.get_run(message.metadata.run_id) or self._get_run(message.metadata.run_id)
        self.one.bundle = self._run.fab_hash
        self._admit(message)
        self._room = self._egress().maximum_request_mb * 1e6
        return pulled

    def get_run(self, run_id: int) -> Any:
        """Asked for once: a second answer could name another bundle than the one that was admitted."""
        return self._run

    def get_fab(self, digest: str, run_id: int) -> Fab:
        """The bundle, if it is the one that the run names."""
        fab = self._get_fab(digest, run_id)
        if sha256(fab.content) != digest or fab.hash_str != digest:
            raise self._refuse("bundle", "the bundle that came is not the one that the run names")
        return fab

    def pull_object(self, run_id: int, object_id: str) -> bytes:
        """A part of the request, as long as there is room."""
        content = self._pull_object(run_id, object_id)
        with self._lock:
            self._room -= len(content)
            if self._room < 0:
                raise self._refuse("task", "the request is larger than site.yaml's egress.maximum_request_mb")
        return content

    def read(self) -> float:
        """Find out what is asked, of a request that has come whole; bytes that the worker may send then, of its reply and of what
        it keeps for itself. Raises Refused for a request that cannot be understood."""
        one, egress, contents = self._known(), self._egress(), self.seen.contents
        meta, most = one.message.metadata, egress.maximum_request_mb * 1e6 + SAID_BYTES
        one.bytes = sum(map(len, contents.values()))
        try:
            request = inflate(meta.message_id, contents, most_bytes=most, parts=self._parts)
            if (request.metadata.message_type, request.metadata.run_id) != (meta.message_type, meta.run_id):
                raise ValueError("it is of another kind or run than its envelope says")
            if request.has_content():
                one.asked = Asked.of(meta.message_type, request.content)
        except Exception as error:  # whatever a server has put together
            why = f"the request cannot be understood ({type(error).__name__}: {error})"
            raise self._refuse("task", why) from None
        return one.asked.most_bytes(egress) + SAID_BYTES

    def _admit(self, message: Message) -> None:
        meta, run = message.metadata, self._run
        if run.run_id != meta.run_id:
            raise self._refuse("task", f"the server answers for run {run.run_id} where {meta.run_id} was asked for")
        kind, group = plain(meta.message_type), plain(meta.group_id)
        if (kind, group) != (meta.message_type, meta.group_id):
            meta.message_type, meta.group_id = kind, group  # Flower logs them as they are: they could forge lines
            raise self._refuse("task", "the kind or the group of the request is long or no plain text")
        try:
            if not self._bundles.approved(run.fab_hash):
                path = self._bundles.pending(run.fab_hash)
                if not path.is_file():
                    path = self._bundles.keep_pending(self._get_fab(run.fab_hash, run.run_id).content)
                raise self._refuse(
                    "bundle",
                    f"the app bundle {path.stem} is not approved; to look at it and approve it: "
                    f"medmap-client approve -s {self._site} {path}",
                )
        except (BundleError, OSError) as error:
            raise self._refuse("bundle", str(error)) from None
        if run.primary_task_type == TaskType.AGENT_APP:
            raise self._refuse("task", "the run is of an agent, not of a federation")
        if self._answered(meta.message_id):
            raise self._refuse("replay", f"request {meta.message_id} was answered before")

    def _known(self) -> Open:
        assert self.one is not None
        return self.one

    def _egress(self) -> Egress:
        try:
            return read_site(self._site).egress
        except ConfigError as error:
            raise self._refuse("egress", str(error)) from None

    def _refuse(self, code: str, why: str) -> Refused:
        """To be raised."""
        self.refused = self.refused or Refused(code, why)
        return self.refused
