"""Kits: the folder that a site or the server works in, made of federation.yaml and the authority's folder, and sealed by it.

MANIFEST lists the SHA-256 of each file as sha256sum writes it, MANIFEST.sig is the authority's signature of that. Keys and
certificates are not in it: they change in a kit's life, and prove themselves. The same inputs give the same bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from configs.kits import (
    AUTHORITY,
    MANIFEST,
    NODE_CERTIFICATE,
    NODE_KEY,
    NODES,
    REVOKED,
    SERVER_CERTIFICATE,
    SERVER_KEY,
    SIGNATURE,
    KitError,
)
from server.provision.authority import Authority
from server.provision.federation import Federation, FederationSite

CHECKOUT = Path(__file__).resolve().parents[2]
TEMPLATES = "server/provision/templates"
_UNITS = ("medmap-superlink.service", "medmap-nginx.service", "medmap-admit.service", "medmap-admit.timer")
_SITE_UNITS = ("medmap-site-gate.service", "medmap-site-worker.service")
_OPEN, _PROGRAM, _SECRET = 0o644, 0o755, 0o600


@dataclass(frozen=True)
class File:
    """A file of a kit; sealed: it is in MANIFEST."""

    data: bytes
    mode: int = _OPEN
    sealed: bool = True


def server_kit(federation: Federation, base: Path, authority: Authority) -> dict[str, File]:
    """The server's kit by relative path. base: the folder of federation.yaml. Certificates of sites are put in by `publish`."""
    files = _common(federation, base, authority)
    for name in ("start.sh", "admit.sh", "flwr.sh"):
        files[name] = File(_template(f"server/{name}", federation), _PROGRAM)
    for name in ("settings.sh", "nginx.conf", "README.md"):
        files[name] = File(_template(f"server/{name}", federation))
    for name in _UNITS:
        files[f"systemd/{name}"] = File(_template(f"server/{name}", federation))
    files[SERVER_CERTIFICATE] = File((authority.folder / SERVER_CERTIFICATE).read_bytes(), sealed=False)
    files[SERVER_KEY] = File((authority.folder / SERVER_KEY).read_bytes(), _SECRET, sealed=False)
    return _sealed(files, authority)


def site_kit(federation: Federation, site: FederationSite, base: Path, authority: Authority) -> dict[str, File]:
    """A site's kit by relative path; it holds a secret only where the coordinator makes the key."""
    files = _common(federation, base, authority)
    step = _template(f"site/key-{site.key}.md", federation, site=site.name).decode()
    files["README.md"] = File(_template("site/README.md", federation, site=site.name, key_step=step))
    files["start.sh"] = File(_template("site/start.sh", federation, site=site.name), _PROGRAM)
    for name in ("settings.sh", "site.example.yaml"):
        files[name] = File(_template(f"site/{name}", federation, site=site.name))
    for unit in _SITE_UNITS:
        files[f"systemd/{unit}"] = File(_template(f"site/{unit}", federation, site=site.name))
    files["site.schema.json"] = File(_of_checkout("configs/schemas/site.json"))
    if site.key == "coordinator":
        files[NODE_KEY] = File((authority.folder / "sites" / f"{site.name}.key").read_bytes(), _SECRET, sealed=False)
        certificate = authority.site(site.name)
        assert certificate is not None
        files[NODE_CERTIFICATE] = File(certificate.public_bytes(Encoding.PEM), sealed=False)
    return _sealed(files, authority)


def write_kit(folder: Path, files: Mapping[str, File]) -> None:
    """Write a new kit, whole or not at all. Raises KitError where the folder holds anything."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise KitError(f"{folder} holds something already and is not overwritten: take another folder, or move it away")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True, mode=0o700)
    for name, file in files.items():
        path = part / name
        path.parent.mkdir(exist_ok=True)
        path.touch(mode=_SECRET)
        path.write_bytes(file.data)
        path.chmod(file.mode)
    if folder.exists():
        folder.rmdir()
    part.rename(folder)


def write_archive(path: Path, files: Mapping[str, File], *, root: str) -> None:
    """The kit as one file to hand over (tar.gz), readable by its owner alone; no date and no user is in it."""
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for name, file in sorted(files.items()):
            entry = tarfile.TarInfo(f"{root}/{name}")
            entry.size, entry.mode = len(file.data), file.mode
            tar.addfile(entry, io.BytesIO(file.data))
    path.unlink(missing_ok=True)
    path.touch(mode=_SECRET)
    path.write_bytes(stream.getvalue())


def publish(authority: Authority, kits: Path) -> Path:
    """Put the authority's present certificates of sites and its revocation list into the server kit's nodes/. Returns it."""
    if not (kits / "server" / MANIFEST).is_file():
        raise KitError(f"{kits} holds no server kit: give the folder that `medmap-server provision` wrote")
    nodes = kits / "server" / NODES
    nodes.mkdir(exist_ok=True)
    for path in (authority.folder / "sites").glob("*.crt"):
        (nodes / path.name).write_bytes(path.read_bytes())
    (nodes / REVOKED).write_bytes((authority.folder / REVOKED).read_bytes())
    return nodes


def _common(federation: Federation, base: Path, authority: Authority) -> dict[str, File]:
    files = {
        AUTHORITY: File((authority.folder / AUTHORITY).read_bytes()),
        "common.sh": File(_template("common.sh", federation)),
        "stop.sh": File(_template("stop.sh", federation), _PROGRAM),
        "service.sh": File(_template("service.sh", federation), _PROGRAM),
        "constraints.txt": File(_of_checkout("constraints.txt")),
    }
    package = federation.package
    if package.endswith(".whl") and "://" not in package:
        wheel = base / package
        files[wheel.name] = File(wheel.read_bytes())
        package = f"./{wheel.name}"
    files["install.sh"] = File(_template("install.sh", federation, package=package), _PROGRAM)
    return files


def _template(name: str, federation: Federation, **values: str) -> bytes:
    """A template with each @name@ replaced."""
    known = {
        "federation": federation.name,
        "address": federation.address,
        "port": str(federation.port),
        "superlink_port": str(federation.superlink_port),
        **values,
    }
    text = _of_checkout(f"{TEMPLATES}/{name}").decode()
    return re.sub(r"@([a-z_]+)@", lambda m: known[m[1]], text).encode()


def _of_checkout(name: str) -> bytes:
    try:
        return (CHECKOUT / name).read_bytes()
    except OSError:
        raise KitError(f"{name} is not beside the package: provision from a checkout of MedMAP-FL") from None


def _sealed(files: dict[str, File], authority: Authority) -> dict[str, File]:
    lines = [f"{hashlib.sha256(f.data).hexdigest()}  {name}\n" for name, f in sorted(files.items()) if f.sealed]
    manifest = "".join(lines).encode()
    return files | {MANIFEST: File(manifest), SIGNATURE: File(authority.sign(manifest))}
