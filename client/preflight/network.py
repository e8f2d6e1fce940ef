"""Checks of the way to the server: name, TCP, TLS by the kit's authority, the Fleet API's answer, and its clock against ours."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import queue
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path

from client.preflight.kit import NO_KIT, superlink
from client.preflight.rows import Row, Subject
from configs.kits import AUTHORITY, KitError

TIMEOUT_S = 8.0  # of each step
AHEAD_S, BEHIND_S = (
    5.0,
    305.0,
)  # Flower refuses a signature from a clock that is further off (node_auth.py of Flower 1.41)
_NOTICED_S = 2.0
_FLEET = "/v1/fleet/pull-messages"  # answered to POST alone: a GET proves that it is there, and asks for nothing
_NETWORK = "Ask the network team for an outgoing TCP connection to this address and port"


class Unreachable(Exception):
    """Why there is no answer: what was found, and what to do."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(found)
        self.found, self.remedy = found, remedy


@dataclass(frozen=True)
class Answer:
    """What the server said. ahead_s: by how much this clock is ahead of its, give or take error_s; None: it told no time."""

    status: int
    ahead_s: float | None = None
    error_s: float = 0.0


def reachability(subject: Subject) -> Row:
    """Whether the Fleet API answers over a connection that the kit's authority vouches for."""
    if subject.kit is None:
        return Row("skipped", NO_KIT)
    try:
        host, port = superlink(subject.kit)
        status = answer(subject).status
    except Unreachable as error:
        return Row("failed", error.found, error.remedy)
    except KitError as error:
        return Row("failed", "The kit does not say where the server is", "Unpack the kit again", (str(error),))
    if status == http.client.METHOD_NOT_ALLOWED:
        return Row("ok", f"The Fleet API of {host}:{port} answers, over TLS by the kit's authority")
    if status in (502, 503, 504):
        return Row("failed", f"{host}:{port} is there, its SuperLink is not ({status})", "Tell the coordinator")
    found = f"{host}:{port} answers {status}, which a SuperLink of this version does not"
    return Row("failed", found, "Ask the coordinator what stands at this address")


def clock(subject: Subject) -> Row:
    """Whether this clock is kept by NTP, and how far it is from the server's: signed requests of another time are refused."""
    kept = synchronised()
    remedy = "Set up NTP: timedatectl set-ntp true, or ask for the address of the hospital's time server"
    ntp = {True: "kept by NTP", False: "not kept by NTP", None: "whether NTP keeps it is not told here"}[kept]
    try:
        told = answer(subject) if subject.kit is not None else None
    except (Unreachable, KitError):
        told = None
    if told is None or told.ahead_s is None:
        found = f"{ntp[0].upper()}{ntp[1:]}; not compared with the server's"
        return Row({True: "ok", False: "warning", None: "skipped"}[kept], found, remedy if kept is False else "")
    ahead, error = told.ahead_s, told.error_s
    way = "ahead of" if ahead > 0 else "behind"
    found = f"{abs(ahead):.0f} s {way} the server's (give or take {error:.1f} s), {ntp}"
    limit = f"The server refuses more than {AHEAD_S:.0f} s ahead or {BEHIND_S:.0f} s behind. "
    if ahead - error > AHEAD_S or ahead + error < -BEHIND_S:
        return Row("failed", found, limit + remedy)
    if abs(ahead) - error > _NOTICED_S:
        return Row("warning", found, limit + remedy)
    return Row("warning", found, remedy) if kept is False else Row("ok", found)


def synchronised() -> bool | None:
    """What systemd says of this clock; None where it says nothing."""
    if not shutil.which("timedatectl"):
        return None
    command = ["timedatectl", "show", "--property=NTPSynchronized", "--value"]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        said = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False).stdout.strip()
        return {"yes": True, "no": False}.get(said)
    return None


def answer(subject: Subject) -> Answer:
    """`ask` of the kit's server; once for all checks. Raises Unreachable and KitError."""
    assert subject.kit is not None
    if subject.answer is None:
        host, port = superlink(subject.kit)
        try:
            subject.answer = ask(host, port, subject.kit / AUTHORITY)
        except Unreachable as error:
            subject.answer = error
    if isinstance(subject.answer, Unreachable):
        raise subject.answer
    return subject.answer


def ask(host: str, port: int, authority: Path, *, timeout_s: float = TIMEOUT_S) -> Answer:
    """One GET, by the proxy that the environment names for HTTPS, if any, as Flower does. Raises Unreachable."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(authority)
    except (OSError, ssl.SSLError):
        raise Unreachable(f"{authority.name} of the kit cannot be read", "Unpack the kit again") from None
    proxy = _proxy(host)
    first = proxy[:2] if proxy else (host, port)
    where = f"the proxy {first[0]}:{first[1]}" if proxy else f"{host}:{port}"
    _resolve(*first, where, timeout_s)
    connection = http.client.HTTPSConnection(*first, timeout=timeout_s, context=context)
    if proxy:
        connection.set_tunnel(host, port, headers=proxy[2])
    try:
        connection.connect()
        begun = time.time()
        connection.request("GET", _FLEET)
        replied = connection.getresponse()
        return _timed(replied, begun, time.time())
    except ssl.SSLError as error:
        raise _tls(error, f"{host}:{port}") from None
    except ConnectionRefusedError:
        raise Unreachable(
            f"{where} refuses connections", _NETWORK + "; ask the coordinator whether the server runs"
        ) from None
    except TimeoutError:
        raise Unreachable(f"{where} does not answer within {timeout_s:.0f} s", _NETWORK) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Unreachable(f"{where} breaks the connection off ({reason})", _NETWORK) from None
    finally:
        connection.close()


def _timed(replied: http.client.HTTPResponse, begun: float, ended: float) -> Answer:
    """The Date header has whole seconds, cut off: the server's time lay up to one second after it."""
    said = email.utils.parsedate_to_datetime(date) if (date := replied.headers.get("Date")) else None
    if said is None:
        return Answer(replied.status)
    error_s = 0.5 + (ended - begun) / 2
    return Answer(replied.status, (begun + ended) / 2 - (said.timestamp() + 0.5), error_s)


def _proxy(host: str) -> tuple[str, int, dict[str, str]] | None:
    """(host, port, headers that let us in) of the proxy for this host."""
    proxies = urllib.request.getproxies()
    said = proxies.get("https") or proxies.get("all")
    if not said or urllib.request.proxy_bypass(host):
        return None
    parts = urllib.parse.urlsplit(said if "://" in said else f"http://{said}")
    if not parts.hostname:
        return None
    words = ":".join(urllib.parse.unquote(w or "") for w in (parts.username, parts.password))
    headers = {"Proxy-Authorization": f"Basic {b64encode(words.encode()).decode()}"} if parts.username else {}
    return parts.hostname, parts.port or 80, headers


def _resolve(host: str, port: int, where: str, timeout_s: float) -> None:
    """Look the name up within the time: the system's own look-up knows no limit."""
    found: queue.Queue[OSError | None] = queue.Queue()

    def look() -> None:
        try:
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.put(None)
        except OSError as error:
            found.put(error)

    threading.Thread(target=look, daemon=True).start()
    try:
        error = found.get(timeout=timeout_s)
    except queue.Empty:
        raise Unreachable(
            f"The name of {where} is not answered by DNS in {timeout_s:.0f} s", "Ask the network team"
        ) from None
    if error is not None:
        remedy = "Ask the network team whether this machine may look names up outside, or needs a proxy (HTTPS_PROXY)"
        raise Unreachable(f"The name of {where} is not known here", remedy)


def _tls(error: ssl.SSLError, where: str) -> Unreachable:
    if not isinstance(error, ssl.SSLCertVerificationError):
        return Unreachable(
            f"{where} answers, but not by TLS ({error.reason})", "Ask the coordinator for the right port"
        )
    found = f"{where} shows a certificate that does not hold ({error.verify_message.rstrip('.')})"
    if "expired" in error.verify_message or "not yet valid" in error.verify_message:
        return Unreachable(found, "Look at this machine's clock (timedatectl); if it is right, tell the coordinator")
    if "ostname" in error.verify_message or "IP address" in error.verify_message:
        return Unreachable(found, "The kit's address is not the certificate's: ask the coordinator")
    remedy = "Do not go on: another server, a kit of another authority, or a proxy that opens TLS. Ask the network team"
    return Unreachable(found, remedy)
