"""`provision`: an authority where there is none yet, and the kits of a federation.yaml."""

from __future__ import annotations

from pathlib import Path

from configs.kits import MANIFEST, SERVER_CERTIFICATE, KitError
from server.provision.authority import Authority
from server.provision.federation import read_federation
from server.provision.kits import publish, server_kit, site_kit, write_archive, write_kit


def provision(plan: Path, out: Path, folder: Path, *, only: list[str] | None = None) -> tuple[Authority, list[Path]]:
    """Write the kits of the federation.yaml `plan` into out/; the authority in `folder` is made where there is none.

    only: the sites (or `server`) whose kits are wanted; None: all. Refused before anything is written where a kit is there
    already. Raises ConfigError and KitError.
    """
    federation = read_federation(plan)
    names = only or ["server", *(s.name for s in federation.sites)]
    sites = [federation.site(name) for name in names if name != "server"]
    for name in names:
        if (out / name).exists() and any((out / name).iterdir()):
            raise KitError(
                f"{out / name} holds a kit already and is not overwritten: take another folder, or --only NAME"
            )
    authority = open_or_create(folder, federation.name, days=federation.valid_days.authority)
    if not (folder / SERVER_CERTIFICATE).is_file():
        authority.server(federation.address, days=federation.valid_days.server)
    written = []
    if "server" in names:
        write_kit(out / "server", server_kit(federation, plan.parent, authority))
        written.append(out / "server")
    for site in sites:
        if site.key == "coordinator":
            _admit_own(authority, site.name, days=federation.valid_days.site)
        files = site_kit(federation, site, plan.parent, authority)
        write_kit(out / site.name, files)
        write_archive(out / f"{site.name}.tar.gz", files, root=f"{federation.name}-{site.name}")
        written.append(out / f"{site.name}.tar.gz")
    if (out / "server" / MANIFEST).is_file():
        publish(authority, out)
    return authority, written


def _admit_own(authority: Authority, name: str, *, days: int) -> None:
    """See to it that the key made here for a site has a certificate that holds."""
    key, present = authority.site_key(name).public_key(), authority.site(name)
    if present is None or present.public_key() != key or not authority.valid(present):
        authority.admit(name, key, days=days)


def open_or_create(folder: Path, name: str, *, days: int) -> Authority:
    """The authority in the folder. Raises KitError for a folder that holds something else."""
    if folder.exists() and any(folder.iterdir()):
        return Authority(folder)
    return Authority.create(folder, name, days=days)
