"""A small federation for tests of provisioning: a federation.yaml, its authority and kits."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from client.request import request
from server.cli import app

PLAN = """\
name: brain
address: localhost
port: {port}
superlink_port: {superlink_port}
package: medmap-fl==0.1.0
sites:
  - name: north
  - name: south
    key: coordinator
"""


def write_plan(folder: Path, *, port: int = 9443, superlink_port: int = 18443) -> Path:
    path = folder / "federation.yaml"
    path.write_text(PLAN.format(port=port, superlink_port=superlink_port))
    return path


class Coordinator:
    """Runs medmap-server's commands in a folder with federation.yaml, authority/ and kits/."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.kits, self.authority = folder, folder / "kits", folder / "authority"
        self.plan = folder / "federation.yaml"

    def run(self, command: str, *arguments: object, fails: bool = False) -> str:
        where = ["-o", self.kits, "-a", self.authority]
        if command in ("sign", "renew"):
            where += ["-f", self.plan]
        done = CliRunner().invoke(app, [command, *map(str, [*arguments, *where])])
        assert done.exit_code == (1 if fails else 0), done.output
        if fails:
            assert done.output.count("\n") == 1 and "Traceback" not in done.output, done.output
        return done.output

    def provisioned(self) -> Coordinator:
        self.run("provision", self.plan)
        return self

    def admitted(self, site: str = "north") -> Path:
        """The site makes its key in its kit, and is signed. The kit."""
        kit = self.kits / site
        path, _ = request(site, kit)
        self.run("sign", path)
        return kit
