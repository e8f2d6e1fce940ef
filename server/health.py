"""How a SuperLink is: it serves, is slow, hangs, or is down; asked from its own machine, with a deadline.

Two questions are put at once, because either alone is answered by a server that is of no use. The gRPC health service is
a thread of its own: it still answers where the HTTP side, by which every site and run speaks, is stuck. And an HTTP
answer alone would not tell a process that is there and stopped from one that is behind a broken network. The HTTP question
(the newest run of the Control API) goes through the event loop, a worker thread and the database.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SLOW_S, DEADLINE_S = 3.0, 15.0
# Which is the newest run? The body is flwr.proto.ListRunsRequest(limit=1), as protobuf writes it.
_QUESTION = (
    b"POST /v1/control/list-runs HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: close\r\n"
    b"Content-Type: application/protobuf\r\nContent-Length: 2\r\n\r\n\x10\x01"
)
_Answer = Literal["yes", "late", "refused", "wrong"]


@dataclass(frozen=True)
class Health:
    """state: serving | slow (answers after SLOW_S) | hung (is there, gives no answer in time) | down (nobody listens)."""

    state: Literal["serving", "slow", "hung", "down"]
    detail: str
    seconds: float

    @property
    def alive(self) -> bool:
        """Whether it does its work, however slowly."""
        return self.state in ("serving", "slow")


def check(
    port: int, health_port: int, authority: Path, *, slow_s: float = SLOW_S, deadline_s: float = DEADLINE_S
) -> Health:
    """Ask the SuperLink at 127.0.0.1:port (TLS by `authority`) and its gRPC health service. Takes deadline_s at most."""
    import grpc_health.v1.health_pb2_grpc  # noqa: F401  on a busy machine longer than an answer takes: not on the clock

    context = ssl.create_default_context(cafile=str(authority))
    begun = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        lives = pool.submit(_ask_grpc, health_port, deadline_s)
        works = pool.submit(lambda: asyncio.run(_ask_http(port, context, deadline_s)))
        grpc, http = lives.result(), works.result()
    took = time.monotonic() - begun
    if "late" in (grpc, http):
        who = " and ".join(name for name, told in (("gRPC health", grpc), ("HTTP", http)) if told == "late")
        return Health("hung", f"{who}: no answer in {deadline_s:g} s", took)
    if "wrong" in (grpc, http):
        return Health("hung", "something answers there, and not as a SuperLink does", took)
    if "refused" in (grpc, http):
        return Health("down", f"nobody listens at port {port if http == 'refused' else health_port}", took)
    if took > slow_s:
        return Health("slow", f"answered after {took:.1f} s", took)
    return Health("serving", f"answered in {took:.2f} s", took)


def _ask_grpc(port: int, deadline_s: float) -> _Answer:
    import grpc
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
    from grpc_health.v1.health_pb2_grpc import HealthStub

    # No proxy of the environment stands between this machine and itself.
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            told = HealthStub(channel).Check(HealthCheckRequest(), timeout=deadline_s)
        except grpc.RpcError as error:
            code = error.code() if isinstance(error, grpc.Call) else None
            if code == grpc.StatusCode.DEADLINE_EXCEEDED:
                return "late"
            return "refused" if code == grpc.StatusCode.UNAVAILABLE else "wrong"
    return "yes" if told.status == HealthCheckResponse.SERVING else "wrong"


async def _ask_http(port: int, context: ssl.SSLContext, deadline_s: float) -> _Answer:
    """One deadline for all steps: a server that lets its answer trickle gives none."""
    try:
        async with asyncio.timeout(deadline_s):
            try:
                return "yes" if await _status(port, context) == b"200" else "wrong"
            except ConnectionRefusedError:
                return "refused"
            except (OSError, ValueError):  # cut off in the middle: it is ending, or is no SuperLink
                return "refused" if await _shut(port) else "wrong"
    except TimeoutError:
        return "late"


async def _status(port: int, context: ssl.SSLContext) -> bytes:
    """The HTTP status of the answer; anything else where it is none. Raises OSError, ValueError."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        writer.write(_QUESTION % port)
        if not (line := await reader.readline()):
            raise ConnectionResetError
        return [*line.split(), b"", b""][1]
    finally:
        writer.transport.abort()


async def _shut(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return True
    writer.transport.abort()
    return False
