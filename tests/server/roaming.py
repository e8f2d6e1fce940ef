"""Hospitals that come, go and dawdle: a grid whose nodes a test switches, renames and delays, and a federation on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from server import exchange
from server.rounds import Federation
from simulation.engines import InProcessGrid
from tests.server.test_rounds import Hospitals, federation

T1 = {"T1": 10}


class Roaming(InProcessGrid):
    """online: the hospitals that are there. slow: whether a message's answer is held back now; asked: every message sent.

    Messages run out and nodes go offline as in Flower: an error of the runtime answers for them.
    """

    immediate = False

    def __init__(self, hospitals: Hospitals, online: set[int]) -> None:
        super().__init__(hospitals.app, len(hospitals.volumes), {})
        self.online, self.extra = set(online), dict[int, int]()
        self.asked: list[tuple[str, int, float]] = []
        self.slow: Callable[[int, str, str], bool] = lambda i, kind, group: False

    def hospital(self, node: int) -> int:
        return int(self._contexts[node].node_config["partition-id"])

    def get_node_ids(self) -> list[int]:
        return [n for n in self._contexts if self.hospital(n) in self.online and n not in self.extra.values()]

    def moves(self, i: int, *, keep_old: bool = False) -> None:
        """The hospital's next node is another."""
        old = next(n for n in self.get_node_ids() if self.hospital(n) == i)
        new = max(self._contexts) + 1
        self._contexts[new] = self._contexts[old]
        if not keep_old:
            self.extra[new] = old

    def runs_out(self, message: Message) -> Message:
        return Message(Error(code=ErrorCode.MESSAGE_UNAVAILABLE), reply_to=message)

    def push_messages(self, messages: Any) -> list[str]:
        messages = list(messages)
        self.asked += [
            (m.metadata.message_type, self.hospital(m.metadata.dst_node_id), m.metadata.ttl) for m in messages
        ]
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Any) -> list[Message]:
        found = []
        for key in message_ids:
            if (message := self._waiting.get(key)) is None:
                continue
            i = self.hospital(message.metadata.dst_node_id)
            if i not in self.online:
                del self._waiting[key]
                found.append(Message(Error(code=ErrorCode.NODE_UNAVAILABLE), reply_to=message))
            elif not self.slow(i, message.metadata.message_type, message.metadata.group_id):
                del self._waiting[key]
                found.append(self._answer(message))
        return found


class Story:
    """A federation of hospitals with T1 each, and what it told. at: (stage, round) -> what happens when hospital 0 trains."""

    def __init__(
        self,
        folder: Path,
        *overrides: str,
        sites: int = 3,
        online: set[int] | None = None,
        make_grid: Callable[[Hospitals], Any] | None = None,
    ) -> None:
        self.at: dict[tuple[str, int], Callable[[], None]] = {}
        self.refuse: Callable[[int, str, int], Any] = lambda i, stage, number: None
        self.hospitals = Hospitals(self._spoil, volumes=[dict(T1) for _ in range(sites)])
        self.grid = make_grid(self.hospitals) if make_grid else Roaming(self.hospitals, online or set(range(sites)))
        self.told: list[str] = []
        self.federation: Federation = federation(folder, self.hospitals, *overrides, grid=self.grid, sites=sites)
        self.federation.progress = lambda e: self.told.append(f"{e.site}: {e.text}" if e.site else e.text)

    def _spoil(self, i: int, stage: str, number: int, vectors: Any) -> Any:
        if i == 0 and (event := self.at.pop((stage, number), None)):
            event()
        return self.refuse(i, stage, number)

    def run(self) -> Story:
        self.federation.run()
        return self

    @property
    def lines(self) -> list[dict[str, Any]]:
        return self.federation.history

    def trained(self, i: int) -> list[tuple[str, int]]:
        """(stage, round) that a hospital has trained in."""
        return [(stage, number) for kind, stage, number, who, _ in self.hospitals.seen if kind == "train" and who == i]

    def said(self, text: str) -> int:
        return sum(text in t for t in self.told)


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks for replies and sites follow at once, so that no test waits for a poll."""
    monkeypatch.setattr(exchange, "_POLL_S", 0.01)
    monkeypatch.setattr("server.members._LOOK_S", 0.01)
