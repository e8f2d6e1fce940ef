"""A site to check: a real hospital, its site.yaml, and a server of its federation on the loopback."""

from __future__ import annotations

import io
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from rich.console import Console

from client.policy import read_site
from client.preflight.kit import find_kit
from client.preflight.rows import Row, Subject
from client.preflight.run import run_settings
from tests.conftest import SMALL


def write_site(folder: Path, manifest: Path, more: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "site.yaml"
    path.write_text(f"name: north\nmanifest: {manifest}\ncache_dir: cache\negress: {{minimum_cohort: 4}}\n{more}")
    return path


def subject(site_yaml: Path, *settings: str, kit: Path | None = None, headers_only: bool = False) -> Subject:
    site = read_site(site_yaml)
    config = run_settings(site, [*SMALL, *settings])
    return Subject(site_yaml, site, find_kit(site_yaml, kit), config, Console(file=io.StringIO()), headers_only)


def told(row: Row) -> str:
    """What of a row may be sent on."""
    return f"{row.result}: {row.found} | {row.remedy}"


class Server:
    """What the door of a federation answers: a status, and a Date that is `late_s` behind this clock; None: no Date."""

    def __init__(self) -> None:
        self.status, self.late_s, self.asked = 405, 0.0, list[str]()
        self.port = 0


@contextmanager
def https_server(certificate: Path | None, key: Path | None, *, host: str = "127.0.0.1") -> Iterator[Server]:
    """On a free port of the loopback; without a certificate it speaks plain HTTP."""
    import email.utils
    import time

    told = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told.asked.append(self.path)
            self.send_response_only(told.status)
            if told.late_s is not None:
                self.send_header("Date", email.utils.formatdate(time.time() - told.late_s, usegmt=True))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that leaves in the handshake

    server = Quiet((host, 0), Handler)
    if certificate and key:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    told.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
