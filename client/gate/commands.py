"""The commands of `medmap-client` that run and look at a site's gate. Heavy packages load in them."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

_SITE = Path("site.yaml")


def node(
    site: Annotated[Path, typer.Argument(metavar="SITE.YAML", help="What this hospital demands.")],
    superlink: Annotated[str, typer.Option(help="The server, as host:port.")],
    root_certificates: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The authority's, PEM.")],
    key: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="This site's node.key.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="For the worker, on this machine's loopback.")] = 9094,
    worker_secret: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A file that the worker proves to have, too.")
    ] = None,
) -> None:
    """Be this site's gate to the federation: Flower's SuperNode, with a check of all that comes and leaves.

    Training happens in another process, the worker, that has no key and no way out:
    flower-superexec --insecure --runtime-api-address 127.0.0.1:PORT. The kit's start.sh
    starts both.

    Example: medmap-client node site.yaml --superlink fl.example.org:443 --root-certificates ca.crt --key node.key
    """
    import logging

    with _sentences():
        from flwr.supercore.exit.exit_handler import trigger_exit_handlers
        from flwr.supernode.cli import flower_supernode

        from client.gate.node import Ended, Gate
        from client.gate.words import one_line

        _check_port(port)
        _check_clock(superlink, root_certificates)
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger("medmap").addHandler(handler)
        for name in ("medmap.gate", "flwr", "uvicorn.error"):  # what they log, others may have written
            logging.getLogger(name).addFilter(one_line)
        gate = Gate(site.absolute(), superlink)
        gate.install()
        _wait(gate.online.wait_s())
        sys.argv = [
            "flower-supernode", "--superlink", superlink, "--root-certificates", str(root_certificates),
            "--auth-supernode-private-key", str(key), "--isolation", "process", "--host", "127.0.0.1", "--port", str(port),
            "--node-config", f'site-file="{site.absolute()}"',
            *(["--superexec-auth-secret-file", str(worker_secret)] if worker_secret else []),
        ]  # fmt: skip
    try:
        flower_supernode()
        _fail("the connection to the server ended; the lines above say why")
    except Ended as error:  # the audit log cannot be written
        _fail(str(error))
    finally:
        gate.online.leave()
        trigger_exit_handlers(
            run_before_force_exit=False
        )  # the worker's door has a thread that would keep this process


def approve(
    bundle: Annotated[Path | None, typer.Argument(metavar="[BUNDLE.FAB]", help="What `flwr build` wrote.")] = None,
    site: Annotated[Path, typer.Option("--site", "-s", help="The site.yaml.")] = _SITE,
    diff: Annotated[bool, typer.Option("--diff", help="Show every line that changed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    show: Annotated[bool, typer.Option("--list", help="Show what is approved.")] = False,
    withdraw: Annotated[str | None, typer.Option(metavar="HASH", help="End the approval of this bundle.")] = None,
) -> None:
    """Look at the code that a run would bring here, against what was approved last; approve it, or end an approval.

    Only approved bundles run at this site. Approval counts from the next message on.

    Exit code: 0 done, 1 not approved, 2 wrong usage.

    Example: medmap-client approve gate/pending/4f1c...e2.fab --diff
    """
    with _sentences():
        from client.gate.bundles import Bundles
        from client.policy import read_site

        bundles = Bundles(read_site(site).gate)
        if show:
            for a in bundles.approvals():
                print(f"{a.hash}  {a.name}  {a.when}  by {a.by}")
        elif withdraw is not None:
            print(f"withdrawn: {bundles.withdraw(withdraw).hash}")
        elif bundle is None:
            _fail("name a bundle: `flwr build` writes one, and what was refused is in the gate's folder, in pending")
        else:
            data = _look_at(bundle, bundles, diff=diff)
            if not yes and not typer.confirm("Is this code to run on this hospital's data?"):
                raise typer.Exit(1)
            print(f"approved: {bundles.approve(data).hash}")


def audit(
    log: Annotated[Path, typer.Argument(metavar="AUDIT.JSONL", help="The gate's log.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the lines as they are.")] = False,
) -> None:
    """Show what came and left, and check that no line was changed, taken out or put in.

    Exit code: 0 all is well, 1 the chain is broken; the line is named.

    Example: medmap-client audit gate/audit.jsonl
    """
    import json

    from client.gate.audit import AuditError, read

    head, lines = "", 0
    try:
        for line in read(log):
            lines, head = lines + 1, line["hash"]
            if as_json:
                print(json.dumps(line))
            else:
                what = f"{line['kind'] or '-':<20} {line['group'] or '-':<14} {line['bytes']:>11,} bytes"
                print(f"{line['time']}  {line['direction']:<3} {what}  {line['outcome']}  {line['incident']}".rstrip())
    except AuditError as error:
        print(f"medmap-client: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    if not as_json:
        print(f"{lines} lines, the chain is whole; the newest hash: {head or '-'}")


ALL: tuple[Callable[..., None], ...] = (node, approve, audit)


def _check_port(port: int) -> None:
    """Flower's own words for a port that is taken are a traceback."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError as error:
            _fail(f"port {port} of this machine cannot be used ({error.strerror}): RUNTIME_PORT=another ./start.sh")


def _wait(seconds: float) -> None:
    if seconds:
        print(
            f"this site did not leave properly a short while ago, and the server takes it for online: waiting {seconds:.0f} s, "
            "until it is let in again",
            flush=True,
        )
        time.sleep(seconds)


def _check_clock(superlink: str, authority: Path) -> None:
    """Raises GateError where the server would refuse what is signed by this clock: Flower ends without a word then."""
    from client.gate import GateError
    from client.preflight.network import AHEAD_S, BEHIND_S, Unreachable, ask

    host, _, port = superlink.rpartition(":")
    try:
        told = ask(host.strip("[]"), int(port), authority)
    except (Unreachable, ValueError):
        return  # Flower says what is wrong with the way or the address
    ahead = told.ahead_s or 0.0
    if ahead - told.error_s > AHEAD_S or ahead + told.error_s < -BEHIND_S:
        way = "ahead of" if ahead > 0 else "behind"
        raise GateError(
            f"this machine's clock is {abs(ahead):.0f} s {way} the server's, which therefore refuses what it signs: "
            "set up NTP (timedatectl)"
        )


def _look_at(path: Path, bundles: object, *, diff: bool) -> bytes:
    """Print what a bundle is and what differs from the one approved last; its bytes."""
    from client.gate.bundles import Bundles, changes, files, name, sha256
    from client.gate.words import visible

    assert isinstance(bundles, Bundles)
    data = path.read_bytes()
    new, latest = files(data), bundles.latest()
    print(f"{name(new)}\nSHA-256 {sha256(data)}")
    if latest is None:
        print(f"nothing was approved before: {len(new)} files, all new")
    else:
        print(f"against {latest[0].name} {latest[0].hash[:12]}, approved {latest[0].when} by {latest[0].by}:")
    found = changes(latest[1] if latest else {}, new)
    for change in found:
        print(f"  {change.kind:<8} +{change.came} -{change.went}  {change.path}")
        if diff:
            print(visible(change.diff, keep="\n\t"))
    if not found:
        print("  no file differs")
    return data


@contextmanager
def _sentences() -> Iterator[None]:
    """A failure that a person can mend is one sentence and exit code 2."""
    from client.gate import GateError
    from configs.setting import ConfigError

    try:
        yield
    except (GateError, ConfigError) as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'a file'} cannot be used ({error.strerror}): choose another path, or make room")


def _fail(sentence: str) -> None:
    print(f"medmap-client: {sentence}", file=sys.stderr)
    raise typer.Exit(2)
