"""A server kit on its machine: where its SuperLink listens, and how that is."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from configs.kits import AUTHORITY, MANIFEST, SERVER_CERTIFICATE, KitError
from server.health import DEADLINE_S, Health, check

UP = Path("state") / "up.json"  # what `up` leaves for `status`: its process, the SuperLink's, and the health port


@dataclass(frozen=True)
class Up:
    """A SuperLink that `medmap-server up` has started. process: of `up` itself; superlink: of the SuperLink."""

    process: int
    superlink: int
    port: int
    health_port: int
    since: str


def is_kit(folder: Path) -> bool:
    """Whether this is the folder of a server kit."""
    return (folder / MANIFEST).is_file() and (folder / SERVER_CERTIFICATE).is_file()


def superlink_port(kit: Path) -> int:
    """The port in the kit's settings.sh; SUPERLINK_PORT of the environment wins, as in its scripts. Raises KitError."""
    if not is_kit(kit):
        raise KitError(f"{kit} is not a server kit: give the folder that `medmap-server provision` wrote as server/")
    found = re.search(r"SUPERLINK_PORT:=(\d+)", (kit / "settings.sh").read_text(encoding="utf-8"))
    port = os.environ.get("SUPERLINK_PORT") or (found[1] if found else "")
    if not port.isdecimal():
        raise KitError(f"{kit / 'settings.sh'} holds no SUPERLINK_PORT: unpack the kit again")
    return int(port)


def health(kit: Path, *, deadline_s: float = DEADLINE_S) -> Health:
    """How the SuperLink of this kit is. Raises KitError where the folder is no kit."""
    try:
        up = Up(**json.loads((kit / UP).read_text(encoding="utf-8")))
    except FileNotFoundError:
        superlink_port(kit)
        return Health("down", f"start it with {kit / 'start.sh'}", 0.0)
    except (OSError, TypeError, ValueError) as error:
        raise KitError(f"{kit / UP} cannot be read ({type(error).__name__}): start the server again") from None
    return check(up.port, up.health_port, kit / AUTHORITY, deadline_s=deadline_s)


def sites(kit: Path) -> int:
    """How many sites `admit` has admitted there."""
    file = kit / "state" / "nodes.json"
    return len(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else 0
