"""The commands of `medmap-server` that run a federation: up, run, status, stop, resume, logs. Heavy packages load in them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.console import fail, sentences

if TYPE_CHECKING:
    from server.running.record import Record

_Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The run's folder.")]
_Retries = Annotated[
    int,
    typer.Option("--resume-on-failure", min=0, help="Go on by itself after so many failures, such as of the server."),
]
_NOT_THERE = {"hung": 3, "down": 4}  # exit codes of `status`
_Beside = Annotated[bool, typer.Option(help="Though another run goes on at this SuperLink.")]


def up(
    kit: Annotated[Path, typer.Argument(metavar="KIT", help="The server's kit.")] = Path("."),
    nginx: Annotated[bool, typer.Option("--nginx", help="Start nginx in front of it as well.")] = False,
) -> None:
    """Run the server of a kit: start the SuperLink, admit the sites, and watch it until Ctrl-C or SIGTERM.

    The kit's start.sh and its systemd unit call this. Under systemd (Type=notify) a server that hangs is started again.
    Exit code: 0 it was ended, 1 the SuperLink ended by itself or could not be started.

    Example: medmap-server up kits/server
    """
    with _sentences():
        from server.running.supervise import up as serve

        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        raise typer.Exit(serve(kit, nginx=nginx))


def run(
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder for the run, on this machine.")],
    settings: Annotated[list[str] | None, typer.Argument(help="The run's settings, as for medmap-sim.")] = None,
    kit: Annotated[Path | None, typer.Option(help="The server's kit, whose SuperLink runs on this machine.")] = None,
    superlink: Annotated[str | None, typer.Option(help="Or: name of a SuperLink in Flower's config.toml.")] = None,
    app: Annotated[Path, typer.Option(help="The MedMAP-FL checkout that Flower bundles.")] = Path("."),
    sites: Annotated[
        int,
        typer.Option(min=0, help="How many are to take part; 0: those that the kit has admitted, or whoever is there."),
    ] = 0,
    sites_file: Annotated[Path | None, typer.Option(help="Simulated sites: what `medmap-sim phantom` wrote.")] = None,
    detach: Annotated[bool, typer.Option(help="Submit it and return; `status` tells how it goes.")] = False,
    beside: _Beside = False,
    retries: _Retries = 0,
) -> None:
    """Run a federation: check the settings, submit it to the SuperLink, and follow it to its end.

    Ctrl-C stops following, not the run. Exit code: 0 complete, 1 it failed or was refused, 130 no longer followed.

    Example: medmap-server run stage=short privacy=patient_dp -o outputs/brain --kit kits/server
    """
    with _sentences():
        import json
        from dataclasses import replace

        from configs import load, to_json
        from server.running import kit as kits
        from server.running.record import FILE, Record, RunError

        if kit is not None and superlink is not None:
            raise RunError("--kit and --superlink name two SuperLinks: give one of them")
        if any((output / name).exists() for name in (FILE, "checkpoints", "summary.json")):
            raise RunError(f"{output} holds a run already: take a new folder, or `medmap-server resume {output}`")
        if not (app / "pyproject.toml").is_file():
            raise RunError(f"{app} is not a checkout of MedMAP-FL (no pyproject.toml): give one with --app")
        given = settings or []
        first = [] if any(s.startswith("experiment=") for s in given) else ["experiment=flower"]
        config = json.loads(to_json(replace(load([*first, *given]), output_dir=str(output.absolute()))))
        if kit is not None:
            kits.superlink_port(kit)
            sites = sites or kits.sites(kit)
        known = Record(
            settings=given,
            config=config,
            superlink=superlink,
            kit=str(kit.absolute()) if kit else None,
            app=str(app.absolute()),
            sites=sites,
            sites_file=str(sites_file.absolute()) if sites_file else None,
        )
        _begin(output, known, beside=beside, detach=detach, retries=retries)


def resume(
    folder: _Folder,
    detach: Annotated[bool, typer.Option(help="Submit it and return; `status` tells how it goes.")] = False,
    beside: _Beside = False,
    retries: _Retries = 0,
) -> None:
    """Go on with a run that failed, was stopped, or lost its server: same settings, same folder, from its last checkpoint.

    Refused while it goes on, or when it is complete. Exit code: as of `run`.

    Example: medmap-server resume outputs/brain
    """
    with _sentences():
        from server.running import record
        from server.running.runs import ready_to_resume

        known = record.read(folder)
        ready_to_resume(folder, known, tell=print)
        _begin(folder, known, beside=beside, detach=detach, retries=retries)


def status(
    where: Annotated[Path, typer.Argument(metavar="DIR|KIT", help="A run's folder, or the server's kit.")] = Path("."),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """How the server is, how far a run is, how long it will take, and how each site is.

    Also of a simulation's folder. Exit code: 0 all is well (a run goes on or is complete, the server serves), 1 the run
    failed, was stopped or cut off, 3 the server hangs, 4 the server is down.

    Example: medmap-server status outputs/brain
    """
    with _sentences():
        import json
        from dataclasses import asdict

        from server.running import folder as folders
        from server.running import kit, show

        if kit.is_kit(where):
            server = asdict(kit.health(where))
            told: dict[str, Any] = {"schema_version": 1, "server": server}
            text, good = [show.server_line(server)], True
        else:
            told = folders.standing(where)
            text, good = list(show.lines(told)), told["state"] in ("complete", "running", "starting")
        print(json.dumps(told, indent=1) if as_json else "\n".join(text))
        if told["server"] and told.get("state") != "complete" and told["server"]["state"] in _NOT_THERE:
            raise typer.Exit(_NOT_THERE[told["server"]["state"]])
        raise typer.Exit(0 if good else 1)


def stop(folder: _Folder) -> None:
    """End a run; its checkpoints are kept. Exit code: 0 it has ended, 1 it could not be ended.

    Example: medmap-server stop outputs/brain
    """
    with _sentences():
        from server.running import record
        from server.running.runs import stop as end

        print(end(folder, record.read(folder)))


def logs(
    folder: _Folder,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing until the run ends.")] = False,
) -> None:
    """Print what the server's side of a run wrote, as the SuperLink keeps it. Sites' logs stay at the sites.

    Example: medmap-server logs outputs/brain
    """
    with _sentences():
        from server.running import record

        known = record.read(folder)
        raise typer.Exit(1 if known.link.log(known.attempts[-1].id, follow=follow) else 0)


ALL: tuple[Callable[..., None], ...] = (up, run, resume, status, stop, logs)


def _begin(folder: Path, known: Record, *, beside: bool, detach: bool, retries: int) -> None:
    """Submit and follow, as often as retries allows; ends the command."""
    from server.running import runs

    while True:
        attempt = runs.start(folder, known, beside=beside)
        print(f"run {attempt.id} is submitted; app bundle {attempt.bundle}", flush=True)
        if detach:
            print(f"watch it with `medmap-server status {folder}`")
            return
        try:
            ended = runs.follow(folder, known, tell=_tell)
        except KeyboardInterrupt:
            print(
                f"\nmedmap-server: no longer followed; the run goes on: watch it with `medmap-server status {folder}`, end it "
                f"with `medmap-server stop {folder}`",
                file=sys.stderr,
            )
            raise typer.Exit(130) from None
        code, sentence = runs.verdict(folder, ended)
        if not code:
            print(sentence)
            return
        if ended.status == "finished:stopped" or not retries:
            fail(sentence)
        print(f"{sentence}; going on by itself, {retries} more times at most", flush=True)
        retries -= 1
        runs.wait_for(known.link, tell=_tell)


def _tell(text: str) -> None:
    print(text, flush=True)


def _sentences() -> AbstractContextManager[None]:
    from configs.kits import KitError
    from configs.setting import ConfigError
    from server.flower import FlowerError
    from server.running.record import RunError

    return sentences(KitError, ConfigError, FlowerError, RunError)
