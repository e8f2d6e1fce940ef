"""What carries the messages of a simulation: `InProcessGrid` (default) or Flower's Ray engine, under one client function.

Both call the same ClientApp with the same contexts; the deployment (SuperLink and SuperNodes) is the third engine.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.task_identity import TaskIdentity

from configs.setting import ConfigError
from medmap_model import contract

RUN_ID = 1
SERVER_NODE = 1


class InProcessGrid(Grid):
    """A Grid whose sites are calls of one ClientApp in this process: no Ray, no sockets.

    A message waits until it is pulled; `pull_messages` runs one site and returns its reply, so that replies stream in.
    """

    immediate = True

    def __init__(self, client_app: ClientApp, sites: int, run_config: Mapping[str, Any]) -> None:
        self._app = client_app
        # Flower stamps messages with the identity of the running task; outside its runtime we are that task.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, SERVER_NODE, 1
        self._contexts = {
            SERVER_NODE + 1 + i: Context(
                run_id=RUN_ID,
                node_id=SERVER_NODE + 1 + i,
                node_config={"partition-id": i, "num-partitions": sites},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for i in range(sites)
        }
        self._waiting: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        """Nothing to set: there is one run."""

    @property
    def run(self) -> Any:
        """There is no Flower run behind this grid. Raises RuntimeError."""
        raise RuntimeError("an in-process grid belongs to no Flower run")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message, as Grid wants it."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Every site is always there."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages; the ids to pull by."""
        ids = []
        for message in messages:
            key = uuid.uuid4().hex
            message.metadata.__dict__.update(_message_id=key, _run_id=RUN_ID, _src_node_id=SERVER_NODE)
            self._waiting[key] = message
            ids.append(key)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Run the first of these sites that waits, and return its reply."""
        for key in message_ids:
            if (message := self._waiting.pop(key, None)) is not None:
                return [self._answer(message)]
        return []

    def _answer(self, message: Message) -> Message:
        try:
            return self._app(message, self._contexts[message.metadata.dst_node_id])
        except Exception:  # as Flower's runtime does, but for the text
            logging.getLogger("medmap.engine").exception("a site failed outside its own guard")
            return Message(Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION), reply_to=message)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """All replies at once."""
        return [self._answer(self._waiting.pop(key)) for key in self.push_messages(messages)]


def run_ray(
    client_app: ClientApp,
    sites: int,
    run_config: Mapping[str, Any],
    serve: Callable[[Grid], None],
    *,
    cpus_per_site: float = 1,
    gpus_per_site: float = 0.0,
) -> None:
    """Run `serve(grid)` against sites in Flower's Ray simulation. Raises whatever `serve` raised, ConfigError without Ray."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "engine=ray: Ray is not installed; run `pip install 'medmap-fl[sim]'` or take engine=inprocess"
        )
    failure: list[BaseException] = []
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            serve(grid)
        except BaseException as error:  # Flower would end the process: hand it to the caller instead
            failure.append(error)

    with _quiet_flower():
        from flwr.simulation import run_simulation

        run_simulation(
            server_app=server_app,
            client_app=with_run_config(client_app, run_config),
            num_supernodes=sites,
            backend_config={"client_resources": {"num_cpus": cpus_per_site, "num_gpus": gpus_per_site}},
        )
    if failure:
        raise failure[0]


def with_run_config(client_app: ClientApp, run_config: Mapping[str, Any]) -> ClientApp:
    """The same ClientApp, given a run config: Flower's Python simulation hands out an empty one."""
    wrapped, values = ClientApp(), dict(run_config)

    def forward(message: Message, context: Context) -> Message:
        given = Context(
            run_id=context.run_id,
            node_id=context.node_id,
            node_config=context.node_config,
            state=context.state,
            run_config={**context.run_config, **values},
        )
        return client_app(message, given)

    for register in (wrapped.query, wrapped.train, wrapped.evaluate):
        register()(forward)
    wrapped.query("cohort")(forward)
    wrapped.evaluate("scores")(forward)
    for step in contract.SECURE_STEPS:
        wrapped.query(step)(forward)
    return wrapped


@contextlib.contextmanager
def _quiet_flower() -> Iterator[None]:
    """Flower's log at warning level, its telemetry off, for as long as this lasts."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
