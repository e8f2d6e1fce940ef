"""The commands of `medmap-server` that make, renew and end a site's part in a federation. Heavy packages load in them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer

from server.console import sentences

_Plan = Annotated[Path, typer.Argument(metavar="FEDERATION.YAML", help="Who takes part, and where the server is.")]
_Kits = Annotated[Path, typer.Option("--output", "-o", help="The folder of the kits.")]
_Authority = Annotated[
    Path, typer.Option("--authority", "-a", help="The authority's folder: it holds the key to everything.")
]
_Federation = Annotated[Path, typer.Option("--federation", "-f", help="The federation.yaml.")]
_Days = Annotated[int | None, typer.Option(min=1, max=825, help="How long it holds; default: of federation.yaml.")]
_AUTHORITY, _FEDERATION, _KITS = Path("authority"), Path("federation.yaml"), Path("kits")


def provision(
    plan: _Plan,
    output: _Kits = _KITS,
    authority: _Authority = _AUTHORITY,
    only: Annotated[list[str] | None, typer.Option(help="A site, or `server`: its kit alone. May be repeated.")] = None,
) -> None:
    """Make the kits of a federation: one for the server, one for each site; and its authority, the first time.

    A kit that is there is not overwritten. A site that was added to federation.yaml later: --only SITE.

    Example: medmap-server provision federation.yaml -o kits/
    """
    with _sentences():
        from configs.kits import certificate_fingerprint
        from server.provision.make import provision as make

        made, written = make(plan, output, authority, only=only)
        for path in written:
            print(path)
        print(f"authority: {authority} (keep it off the server, and a backup of it)")
        print("fingerprint, to be read to each site by phone:")
        print(certificate_fingerprint(made.certificate))


def sign(
    request: Annotated[Path, typer.Argument(metavar="SITE.csr", help="What the site sent.")],
    federation: _Federation = _FEDERATION,
    output: _Kits = _KITS,
    authority: _Authority = _AUTHORITY,
    fingerprint: Annotated[str | None, typer.Option(help="The key's, as the site read it to you by phone.")] = None,
) -> None:
    """Admit a site's key: sign its request, put its certificate into the server kit.

    Compare the printed fingerprint with the one that the site reads to you by phone: a mail can be forged.

    Example: medmap-server sign north.csr
    """
    with _sentences():
        from configs.kits import KitError, key_fingerprint
        from server.provision.authority import Authority
        from server.provision.federation import read_federation
        from server.provision.nodes import read_request

        plan = read_federation(federation)
        name, key = read_request(request)
        plan.site(name)
        shown = key_fingerprint(key)
        if fingerprint is not None and fingerprint.strip().upper() != shown:
            raise KitError(
                f"{request} is for a key with the fingerprint {shown}, not the one given: do not sign, ask {name}"
            )
        opened = Authority(authority)
        certificate = opened.admit(name, key, days=plan.valid_days.site)
        print(f"key of {name}: {shown}")
        _tell_site(name, authority / "sites" / f"{name}.crt", certificate.not_valid_after_utc.date().isoformat())
        _publish(opened, output)


def renew(
    name: Annotated[str, typer.Argument(help="A site, or `server`.")],
    federation: _Federation = _FEDERATION,
    output: _Kits = _KITS,
    authority: _Authority = _AUTHORITY,
    days: _Days = None,
) -> None:
    """A new certificate for the same key. No key is made and none travels.

    Example: medmap-server renew north
    """
    with _sentences():
        from configs.kits import SERVER_CERTIFICATE, KitError
        from server.provision.authority import Authority
        from server.provision.federation import read_federation

        plan, opened = read_federation(federation), Authority(authority)
        if name == "server":
            certificate = opened.server(plan.address, days=days or plan.valid_days.server)
            kit = output / "server"
            if kit.is_dir():
                (kit / SERVER_CERTIFICATE).write_bytes((authority / SERVER_CERTIFICATE).read_bytes())
            print(f"holds until {certificate.not_valid_after_utc:%Y-%m-%d}: {authority / SERVER_CERTIFICATE}")
            print("copy it to the server's kit, and restart medmap-superlink and medmap-nginx")
            return
        plan.site(name)
        present = opened.site(name)
        if present is None:
            raise KitError(f"{name} has no certificate yet: `medmap-server sign {name}.csr` makes the first")
        if not opened.valid(present):
            raise KitError(
                f"{name}'s certificate has expired or was revoked, and Flower takes back no key that was shut out: "
                f"it needs a new one, by `medmap-client request {name}` at the site, and `medmap-server sign {name}.csr`"
            )
        certificate = opened.admit(name, present.public_key(), days=days or plan.valid_days.site)  # type: ignore[arg-type]
        _tell_site(name, authority / "sites" / f"{name}.crt", certificate.not_valid_after_utc.date().isoformat())
        _publish(opened, output)


def revoke(
    name: Annotated[str, typer.Argument(help="A site.")], output: _Kits = _KITS, authority: _Authority = _AUTHORITY
) -> None:
    """Shut a site out for good: its certificates go on the revocation list. It may come back with a new key.

    Takes effect when nodes/ is copied to the server and ./admit.sh has run.

    Example: medmap-server revoke north
    """
    with _sentences():
        from configs.kits import KitError
        from server.provision.authority import Authority

        if name == "server":
            raise KitError(
                "SuperNodes read no revocation list, so the server's certificate cannot be revoked: if its key was seen "
                "by others, make a new authority and new kits in other folders, and have every site replace its kit"
            )
        opened = Authority(authority)
        count = opened.revoke(name)
        print(f"{name}: {count} certificates revoked" if count else f"{name}: was revoked before")
        _publish(opened, output)


def admit(kit: Annotated[Path, typer.Argument(help="The server's kit, on the server.")] = Path(".")) -> None:
    """On the server: admit the keys whose certificates hold, shut out every other node.

    The certificates and the revocation list in the kit's nodes/ decide. Exit code: 0 done, 1 it failed.

    Example: medmap-server admit .
    """
    with _sentences():
        from server.provision.nodes import enforce

        print("\n".join(enforce(kit)))


def schema() -> None:
    """Print the JSON schema of federation.yaml, by which an editor completes it.

    Example: medmap-server schema > federation.schema.json
    """
    from configs.json_schema import schema_text
    from server.provision.federation import Federation

    print(schema_text(Federation, title="federation.yaml"), end="")


ALL: tuple[Callable[..., None], ...] = (provision, sign, renew, revoke, admit, schema)


def _tell_site(name: str, certificate: Path, until: str) -> None:
    print(f"holds until {until}: send {certificate} to {name}, which keeps it as node.crt")


def _publish(authority: object, kits: Path) -> None:
    from server.provision.authority import Authority
    from server.provision.kits import publish

    assert isinstance(authority, Authority)
    print(f"copy {publish(authority, kits)}/ to the server's kit, and run ./admit.sh there")


def _sentences() -> AbstractContextManager[None]:
    from configs.kits import KitError
    from configs.setting import ConfigError

    return sentences(KitError, ConfigError)
