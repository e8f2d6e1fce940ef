"""The gate's door to the worker: Flower's Runtime API, of which a worker may use what it needs, and send no more than that.

What is too much is turned away while it comes, before it is kept or understood.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Event, Receive, Send], Awaitable[None]]

MB = 1 << 20
_ROOT, _SHORT = "/v1/runtime/", MB // 16
# All that Flower's worker asks for, and the most that one request of the kind can be. What is kept of them counts against the
# allowance: a part of a reply (5 MB), its tree, and the state that is handed back between two messages (a round's keys).
_KEPT = {"push-messages": 4 * MB, "push-object": 64 * MB, "push-task-output": 16 * MB}
_ASKED = (
    "acquire-task", "send-task-heartbeat", "pull-task-input", "pull-messages", "pull-object", "confirm-message-received",
)  # fmt: skip
_MOST = _KEPT | dict.fromkeys(_ASKED, _SHORT)


class Allowance:
    """How many bytes the worker may still send: so many for each request that it is given."""

    def __init__(self) -> None:
        self._left, self._lock, self.exceeded = 0.0, threading.Lock(), False

    def renew(self, most_bytes: float) -> None:
        """For the next request."""
        with self._lock:
            self._left, self.exceeded = most_bytes, False

    def take(self, size: int) -> bool:
        """Whether so many may come; once they may not, nothing may until the next request."""
        with self._lock:
            self._left -= size
            self.exceeded = self.exceeded or self._left < 0
            return not self.exceeded


class Door:
    """ASGI around Flower's Runtime API. A path that no worker needs is not there (404); what is too large is cut off (413)."""

    def __init__(self, app: App, allowance: Allowance) -> None:
        self._app, self._allowance = app, allowance

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        """As ASGI says."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        root, _, name = str(scope["path"]).rpartition("/")
        if f"{root}/" != _ROOT or name not in _MOST:
            await _answer(send, 404)
            return
        body, more = bytearray(), True
        while more:  # Flower reads it whole as well
            event = await receive()
            if event["type"] != "http.request":
                return  # the worker has gone
            piece, more = event.get("body", b""), event.get("more_body", False)
            if len(body) + len(piece) > _MOST[name] or (name in _KEPT and not self._allowance.take(len(piece))):
                await _answer(send, 413)
                return
            body += piece
        whole = [{"type": "http.request", "body": bytes(body), "more_body": False}]
        del body

        async def again() -> Event:
            return whole.pop() if whole else await receive()

        await self._app(scope, again, send)


async def _answer(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": b"{}"})
