"""The round loop over Flower's own link state: nodes that go offline there, messages that run out there."""

from __future__ import annotations

import time
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid.inmemory_grid import InMemoryGrid

from server import exchange
from tests.server.roaming import Story, quick_looks
from tests.server.test_rounds import Hospitals

__all__ = ["quick_looks"]


class Linked(InMemoryGrid):
    """Flower's grid and link state; hospitals that are awake take their next message at each look of the server.

    taken: (hospital, group) of each message handed out.
    """

    def __init__(self, hospitals: Hospitals) -> None:
        factory = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory())
        super().__init__(factory)
        run = Run.create_empty(1)
        run.primary_task_id, run.federation_id = 1, NOOP_FEDERATION_ID
        self.state.run_ids[1], self.state.task_store[1] = RunRecord(run=run), Task(task_id=1, run_id=1)
        self.set_run(run)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.app, self.asleep, self.taken = hospitals.app, set[int](), list[tuple[int, str]]()
        self.nodes = [
            self.state.create_node("aid", "name", bytes([i]), heartbeat_interval=1e6)
            for i in range(len(hospitals.volumes))
        ]
        for i in range(len(self.nodes)):
            self.switch(i, on=True)

    def switch(self, i: int, *, on: bool) -> None:
        if on:
            self.state.acknowledge_node_heartbeat(self.nodes[i], heartbeat_interval=1e6)
        else:
            self.state.deactivate_node(self.nodes[i])

    def pull_messages(self, message_ids: Any) -> Any:
        for i, node in enumerate(self.nodes):
            if i in self.asleep or node not in self.get_node_ids():
                continue
            for message in self.state.get_message_ins(node, limit=1):
                self.taken.append((i, message.metadata.group_id))
                context = Context(1, node, {"partition-id": i}, RecordDict(), {})
                reply = self.app(message, context)
                reply.metadata.__dict__["_message_id"] = f"reply-{message.metadata.message_id}"
                self.state.store_message_res(reply)
        return super().pull_messages(message_ids)


def story(folder, *overrides: str) -> Story:
    rounds = ("stage.pretrain.rounds=4", "stage.finetune.rounds=0")
    return Story(folder, *rounds, *overrides, make_grid=Linked)


def test_flowers_nodes_leave_and_come_back(tmp_path):
    told = story(tmp_path)
    told.at |= {
        ("pretrain", 1): lambda: told.grid.switch(2, on=False),
        ("pretrain", 2): lambda: told.grid.switch(2, on=True),
    }
    told.run()
    assert [(x["missing"], x["absent"]) for x in told.lines] == [([], []), (["h2"], []), ([], ["h2"]), ([], [])]
    assert told.said("h2: went offline") == told.said("h2 is back") == 1


@pytest.mark.parametrize("dies", [True, False])
def test_a_task_whose_round_is_over_is_never_handed_out(tmp_path, monkeypatch, dies):
    monkeypatch.setattr(exchange, "_GRACE_S", 0.0 if dies else 1000.0)
    told = story(tmp_path, "strategy.site_timeout_s={h2: 0.1}")

    def wakes() -> None:
        time.sleep(0.2)  # its task is as old as that by now
        told.grid.asleep.clear()

    told.grid.asleep = set()
    told.at |= {("pretrain", 0): lambda: told.grid.asleep.add(2), ("pretrain", 2): wakes}
    told.run()
    assert [x["missing"] for x in told.lines] == [["h2"], ["h2"], ["h2"], []]
    after = ["pretrain-3"] if dies else ["pretrain-0", "pretrain-3"]  # the second is what would else be done in vain
    assert [group for i, group in told.grid.taken if i == 2] == ["join", *after, "pretrain-4"]
