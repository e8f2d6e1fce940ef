"""The gate's way to the SuperLink: Flower's own client, with an end to what an answer may do.

An answer is read as far as one of its kind can be long and no further, is never unpacked (a megabyte of gzip is a gigabyte), and
sends the gate nowhere else: a redirection could lead to another machine of the hospital's network.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.supernode.fleet_http_client import FleetHttpClient

MB = 1 << 20
# By the last word of the path. A part of a message is 5 MB, a bundle 10 MB at most; the others are short.
_MOST = {"pull-object": 64 * MB, "get-fab": 11 * MB, "get-run": MB}
_OTHERS = 4 * MB


class Link(FleetHttpClient):
    """Takes the place of Flower's client. An answer that is not as it should be is a ValueError."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._client.follow_redirects = False
        self._client.headers["accept-encoding"] = "identity"
        self._client.event_hooks = {"response": [_bound]}

    def SendNodeHeartbeat(self, request: SendNodeHeartbeatRequest) -> SendNodeHeartbeatResponse:
        """As Flower's; an answer that would end its thread, and leave the site offline for good, is as none: it tries again."""
        try:
            response = super().SendNodeHeartbeat(request)
        except httpx.TransportError:
            raise
        except Exception as error:
            if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == httpx.codes.UNAUTHORIZED:
                raise  # shut out: the gate ends
            raise httpx.RemoteProtocolError(type(error).__name__) from None
        if not response.success:
            raise httpx.RemoteProtocolError("the SuperLink does not know this node at present")
        return response


class _Bounded(httpx.SyncByteStream):
    """An answer's body, up to so many bytes."""

    def __init__(self, body: httpx.SyncByteStream, most: int) -> None:
        self._body, self._most = body, most

    def __iter__(self) -> Iterator[bytes]:
        """Raises ValueError for one byte more."""
        size = 0
        for piece in self._body:
            size += len(piece)
            if size > self._most:
                raise ValueError(f"an answer of the server is larger than {self._most / MB:g} MB")
            yield piece

    def close(self) -> None:
        """Of the answer."""
        self._body.close()


def _bound(response: httpx.Response) -> None:
    """Called with the head of each answer, before its body is read. Raises ValueError for one that is packed."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise ValueError("an answer of the server is packed")
    assert isinstance(response.stream, httpx.SyncByteStream)
    most = _MOST.get(response.request.url.path.rpartition("/")[2], _OTHERS)
    response.stream = _Bounded(response.stream, most)
