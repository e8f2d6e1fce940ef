"""Checks of the kit: which one it is, where its server is, and whether seal, key and certificate hold."""

from __future__ import annotations

import os
import re
from pathlib import Path

from client.preflight.rows import Row, Subject
from configs.kits import MANIFEST, NODE_CERTIFICATE, NODE_KEY, KitError, common_name, read_certificate
from configs.setting import ConfigError

NO_KIT = "site.yaml is not in a kit's folder, and no --kit was given"


def find_kit(site_yaml: Path, given: Path | None) -> Path | None:
    """The kit's folder: the one given, else that of site.yaml where it is one. Raises KitError for a folder that is none."""
    if given is not None and not (given / MANIFEST).is_file():
        raise KitError(f"{given} is no kit (no {MANIFEST}): give the folder that you unpacked")
    folder = (given or site_yaml.parent).absolute()  # so that a message can be cleared of it
    return folder if (folder / MANIFEST).is_file() else None


def superlink(kit: Path) -> tuple[str, int]:
    """(host, port) of the federation's server, as the kit's scripts find it: the environment's SUPERLINK, else settings.sh."""
    try:
        settings = (kit / "settings.sh").read_text(encoding="utf-8")
    except OSError as error:
        raise KitError(f"{kit / 'settings.sh'} cannot be read ({error.strerror}): unpack the kit again") from None
    said = re.search(r"SUPERLINK:=([^}\s]+)", settings)
    address = os.environ.get("SUPERLINK") or (said[1] if said else "")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise KitError(f"{kit / 'settings.sh'} names no server as SUPERLINK=host:port: unpack the kit again")
    return host.strip("[]"), int(port)


def certificate(subject: Subject) -> Row:
    """The kit's seal, the authority, this site's key and its certificate (client.verify)."""
    from client.verify import verify

    kit = subject.kit
    if kit is None:
        return Row("skipped", NO_KIT)
    try:
        verified = verify(kit)
    except (KitError, ConfigError) as error:
        return Row("failed", _inside(kit, str(error)), "Do what it says, or see docs/deployment.md")
    if not (kit / NODE_KEY).is_file():
        return Row("failed", f"There is no {NODE_KEY}", f"medmap-client request {subject.site.name}, and send the .csr")
    if not (kit / NODE_CERTIFICATE).is_file():
        remedy = f"Put the {NODE_CERTIFICATE} that the coordinator sends into the kit's folder"
        return Row("warning", f"{NODE_KEY} has no certificate yet: the server lets this site in once it has", remedy)
    signed = read_certificate(kit / NODE_CERTIFICATE)
    name, until = common_name(signed.subject), f"{signed.not_valid_after_utc:%Y-%m-%d}"
    if name != subject.site.name:
        remedy = f"Write `name: {name}` into site.yaml, or ask whose kit this is"
        return Row("failed", f"{NODE_CERTIFICATE} is for {name}, site.yaml is of {subject.site.name}", remedy)
    if verified.warnings:
        return Row("warning", _inside(kit, "; ".join(verified.warnings)), "Ask the coordinator for a new one in time")
    return Row("ok", f"As sealed; {NODE_CERTIFICATE} holds until {until}", details=(verified.fingerprint,))


def bundle(subject: Subject) -> Row:
    """Whether any code of a run is approved (client.gate.bundles); without, the gate refuses every run."""
    from client.gate import GateError
    from client.gate.bundles import Bundles

    try:
        approved = Bundles(subject.site.gate).approvals()
    except GateError as error:
        return Row(
            "failed", "The list of approved bundles cannot be read", "Move it away and approve anew", (str(error),)
        )
    if not approved:
        remedy = "medmap-client approve BUNDLE.fab, once the coordinator has sent it"
        return Row("warning", "No run's code is approved yet: every run is refused", remedy)
    return Row("ok", f"Approved: {', '.join(f'{a.name} ({a.hash[:12]})' for a in approved)}")


def _inside(kit: Path, text: str) -> str:
    """A message without the kit's place on this machine."""
    return text.replace(f"{kit}{os.sep}", "").replace(str(kit), "the kit")
