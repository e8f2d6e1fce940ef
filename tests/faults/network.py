"""A stretch of network that a test can cut and slow: a TCP forwarder on the loopback. TLS passes through it unopened."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

_PIECE = 16_384


class Network:
    """Forwards a port of its own to another one. rate: bytes per second upwards (from the site), None: as fast as it goes."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.rate: float | None = None
        self.sent = 0  # bytes passed upwards
        self._open: set[socket.socket] = set()
        self._listener = self._listen(0)
        self.port = int(self._listener.getsockname()[1])

    def cut(self) -> None:
        """Nothing passes, and nobody is told why: connections end, new ones are refused."""
        listener, self._listener = self._listener, None  # type: ignore[assignment]
        for end in [listener, *self._open]:
            self._close(end)
        self._open.clear()

    def restore(self) -> None:
        """The network is back, at the same port."""
        self._listener = self._listen(self.port)

    def close(self) -> None:
        """For good."""
        if self._listener is not None:
            self.cut()

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port), reuse_port=False)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target), timeout=10)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            self._open |= {near, far}
            threading.Thread(target=self._pump, args=(near, far, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, False), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(_PIECE):
                if up:
                    self.sent += len(piece)
                    if self.rate:
                        time.sleep(len(piece) / self.rate)
                sink.sendall(piece)
        for end in (source, sink):
            self._open.discard(end)
            self._close(end)

    @staticmethod
    def _close(end: socket.socket) -> None:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
