"""federation.yaml: who takes part, and where the server is. `medmap-server provision` makes kits of it.

name: brain-2027
address: fl.example.org            # what sites connect to
package: medmap_fl-0.1.0-py3-none-any.whl   # what each host installs: a wheel beside this file, or any pip requirement
sites:
  - name: north
    contact: it@north.example
  - name: south
    key: coordinator               # its key is made here and travels in its kit
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from configs.documents import read_document
from configs.kits import NAME
from configs.setting import ConfigError, setting


@dataclass(frozen=True)
class FederationSite:
    """A hospital that is to take part."""

    name: str = field(
        metadata={
            "help": "small letters, digits and hyphens, at most 32, and not `server`",
            "pattern": rf"(?!server$){NAME}",
        }
    )
    contact: str | None = setting(None, "whom to write to; for the coordinator's eyes only")
    key: str = setting(
        "site",
        "who makes the key: site (it never travels) or coordinator (it travels in the kit)",
        choices=("site", "coordinator"),
    )


@dataclass(frozen=True)
class ValidDays:
    """How long certificates hold, in days."""

    authority: int = setting(
        3650, "the certificate authority; after it all kits are made anew", minimum=1, maximum=7300
    )
    server: int = setting(365, "the server's certificate", minimum=1, maximum=825)
    site: int = setting(365, "a site's certificate: its admission ends with it", minimum=1, maximum=825)


@dataclass(frozen=True)
class Federation:
    """A coordinator's federation.yaml: the server, the sites, and what each host installs."""

    name: str = field(metadata={"help": "small letters, digits and hyphens, at most 32", "pattern": NAME})
    address: str = field(
        metadata={
            "help": "the server's DNS name or IPv4 address, as sites reach it",
            "pattern": r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?",
        }
    )
    package: str = field(
        metadata={
            "help": "what pip installs at each host: a requirement, a URL, or the path of a wheel relative to this file",
            "pattern": r"[A-Za-z0-9./_~=+:@#-]+",
        }
    )
    sites: tuple[FederationSite, ...] = field(metadata={"help": "the hospitals", "unique": "name"})
    port: int = setting(443, "the public port, served by nginx", minimum=1, maximum=65535)
    superlink_port: int = setting(
        8443, "the SuperLink's own port, on the server's loopback only", minimum=1, maximum=65535
    )
    valid_days: ValidDays = field(default_factory=ValidDays)

    def site(self, name: str) -> FederationSite:
        """Raises ConfigError naming the sites that there are."""
        for site in self.sites:
            if site.name == name:
                return site
        raise ConfigError(
            f"there is no site '{name}' in federation.yaml, there are {', '.join(s.name for s in self.sites)}"
        )


def read_federation(path: Path) -> Federation:
    """Raises ConfigError: file, line, setting, what to do."""
    federation = read_document(path, Federation)
    if not federation.sites:
        raise ConfigError(f"{path} has no sites: name at least one below `sites:`, as `- name: north`")
    if federation.port == federation.superlink_port:
        raise ConfigError(
            f"{path}: port and superlink_port are both {federation.port}: choose another superlink_port, as the "
            "SuperLink's must not be reached from outside"
        )
    wheel = path.parent / federation.package
    if federation.package.endswith(".whl") and "://" not in federation.package and not wheel.is_file():
        raise ConfigError(
            f"{path}: package names {wheel}, which is not there: `pip wheel --no-deps -w . CHECKOUT` makes it"
        )
    return federation
