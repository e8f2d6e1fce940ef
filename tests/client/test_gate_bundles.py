"""App bundles and who approved them: what a bundle is, what changed, and that an approval can end."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from typer.testing import CliRunner

from client.cli import app
from client.gate.bundles import BundleError, Bundles, changes, files, name, sha256

PROJECT = """\
[project]
name = "tiny"
version = "{version}"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "lab"
fab-include = ["**/*.py"]
[tool.flwr.app.components]
serverapp = "server:app"
clientapp = "client:app"
"""


def bundle(folder: Path, *, version: str = "1.0.0", **sources: str) -> bytes:
    """What Flower's own `flwr build` makes of these modules."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PROJECT.format(version=version))
    for module, text in ({"server": "app = 1\n", "client": "app = 1\n"} | sources).items():
        (folder / f"{module}.py").write_text(text)
    return build_fab_from_disk(folder)


def repacked(data: bytes, *, more: dict[str, bytes] | None = None, without: str = "") -> bytes:
    """The same zip with entries put in or left out, but not in its list of contents."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        entries = {e: old.read(e) for e in old.namelist() if e != without} | (more or {})
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as new:
        for path, content in entries.items():
            new.writestr(path, content)
    return stream.getvalue()


def test_what_flower_builds_is_a_bundle_and_the_same_twice(tmp_path):
    data = bundle(tmp_path / "app")
    assert set(files(data)) == {"pyproject.toml", "server.py", "client.py"} and name(files(data)) == "lab/tiny 1.0.0"
    assert sha256(data) == sha256(bundle(tmp_path / "app"))


@pytest.mark.parametrize(
    "harm",
    [
        lambda d: b"",
        lambda d: d[:-40],
        lambda d: repacked(d, more={"extra.py": b"import os\n"}),
        lambda d: repacked(d, more={"client.py": b"import os\n"}),
        lambda d: repacked(d, more={"../client.py": b""}),
        lambda d: repacked(d, without="server.py"),
        lambda d: repacked(d, without=".info/CONTENT"),
        lambda d: repacked(d, more={".info/CONTENT": b"a\n"}),
    ],
)
def test_what_is_no_bundle_is_approved_by_nobody(tmp_path, harm):
    bundles = Bundles(tmp_path / "gate")
    with pytest.raises(BundleError):
        bundles.approve(harm(bundle(tmp_path / "app")))
    assert bundles.approvals() == []


@pytest.mark.parametrize(
    "path", ["client.cpython-311-x86_64-linux-gnu.so", "__pycache__/client.cpython-311.pyc", "\x1b[1A\x1b[2Kclient.py"]
)
def test_code_that_a_person_cannot_read_is_no_part_of_a_bundle(tmp_path, path):
    """Python would prefer the first two to the client.py beside them."""
    content = files(data := bundle(tmp_path / "app")) | {path: b"\x7fELF"}
    listed = "\n".join(f"{p},{sha256(d)},{8 * len(d)}" for p, d in content.items())
    with pytest.raises(BundleError, match=r"which `flwr build` does not pack"):
        files(repacked(data, more={path: b"\x7fELF", ".info/CONTENT": listed.encode()}))
    listed = listed.replace(path, "more.py")
    assert "more.py" in files(repacked(data, more={"more.py": b"\x7fELF", ".info/CONTENT": listed.encode()}))


def test_a_name_cannot_hold_lines_that_look_like_ours():
    project = """project = {name = "tiny", version = "1\\nSHA-256 %s"}\ntool.flwr.app.publisher = "lab"\n"""
    with pytest.raises(BundleError, match="names no app"):
        name({"pyproject.toml": (project % ("ab" * 32)).encode()})
    assert name({"pyproject.toml": project.replace("\\nSHA-256 %s", "").encode()}) == "lab/tiny 1"


@pytest.mark.parametrize(
    ("old", "new"), [("x = 1 # \x0cevil()\n", "x = 1 # \nevil()\n"), (b"# \xe9\n", b"# \xe8\n"), ("a\u2028b", "a\nb")]
)
def test_every_change_shows_also_where_only_the_kind_of_a_line_end_differs(old, new):
    old, new = (t if isinstance(t, bytes) else t.encode() for t in (old, new))
    (change,) = changes({"client.py": old}, {"client.py": new})
    assert change.came >= 1 and change.went >= 1 and change.diff


def test_a_bundle_too_large_for_flower_is_not_kept(tmp_path):
    with pytest.raises(BundleError, match="it was not kept"):
        Bundles(tmp_path / "gate").keep_pending(bytes((10 << 20) + 1))
    assert not (tmp_path / "gate").exists()


def test_of_a_bundle_that_does_not_fit_on_the_disk_nothing_stays(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            Bundles(tmp_path / "gate").keep_pending(bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "gate" / "pending").iterdir())


def test_two_who_change_the_list_at_once_lose_nothing(tmp_path):
    data = [bundle(tmp_path / "app", version=f"1.{i}.0") for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda d: Bundles(tmp_path / "gate").approve(d), data))
    assert {a.hash for a in Bundles(tmp_path / "gate").approvals()} == set(map(sha256, data))


def test_the_gates_folder_is_for_its_owner_alone(tmp_path):
    before = os.umask(0)
    try:
        Bundles(tmp_path / "gate").approve(bundle(tmp_path / "app"))
    finally:
        os.umask(before)
    made = [tmp_path / "gate", *(tmp_path / "gate").rglob("*")]
    assert not [p for p in made if p.stat().st_mode & 0o022], "who can write to the folder can approve"


def test_nothing_is_approved_at_first_and_an_approval_ends(tmp_path):
    one, two = bundle(tmp_path / "app"), bundle(tmp_path / "app", version="1.1.0")
    bundles = Bundles(tmp_path / "gate")
    assert not bundles.approved(sha256(one)) and bundles.latest() is None
    assert bundles.approve(one).name == "lab/tiny 1.0.0"
    assert bundles.approved(sha256(one)) and not bundles.approved(sha256(two))
    bundles.approve(two)
    latest = bundles.latest()
    assert latest and latest[0].hash == sha256(two)
    with pytest.raises(BundleError, match="2 approved bundles"):
        bundles.withdraw("")
    bundles.withdraw(sha256(two)[:10])
    assert not Bundles(tmp_path / "gate").approved(sha256(two)) and bundles.approved(sha256(one))


def test_a_list_that_cannot_be_read_approves_nothing(tmp_path):
    bundles = Bundles(tmp_path / "gate")
    data = bundle(tmp_path / "app")
    bundles.approve(data)
    (tmp_path / "gate" / "approved.json").write_text('[{"hash": ')
    for ask in (bundles.approvals, lambda: bundles.approved(sha256(data))):
        with pytest.raises(BundleError, match=r"approved\.json cannot be read"):
            ask()


def test_changes_are_counted_file_by_file(tmp_path):
    old = files(bundle(tmp_path / "app", client="a\nb\nc\n", gone="x\n"))
    new = files(bundle(tmp_path / "app", client="a\nB\nc\nd\n", extra="y\nz\n"))
    found = {c.path: (c.kind, c.came, c.went) for c in changes(old, new)}
    assert found == {"client.py": ("changed", 2, 1), "extra.py": ("added", 2, 0), "gone.py": ("removed", 0, 1)}
    assert changes(old, old) == []


def test_of_what_was_refused_the_last_are_kept(tmp_path):
    bundles = Bundles(tmp_path)
    paths = [bundles.keep_pending(b"%d" % i) for i in range(25)]
    assert sum(p.is_file() for p in paths) == 20 and paths[-1].is_file()


def test_the_command_shows_asks_approves_lists_and_withdraws(tmp_path):
    (tmp_path / "site.yaml").write_text("manifest: m.csv\n")
    where = ["-s", str(tmp_path / "site.yaml")]
    first, second = tmp_path / "first.fab", tmp_path / "second.fab"
    first.write_bytes(bundle(tmp_path / "app"))
    second.write_bytes(bundle(tmp_path / "app", version="1.1.0", client="app = 2\n"))

    def run(*arguments: object, answer: str = "") -> tuple[int, str]:
        done = CliRunner().invoke(app, ["approve", *map(str, arguments), *where], input=answer)
        assert "Traceback" not in done.output
        return done.exit_code, done.output

    assert run("--list") == (0, "")
    code, said = run(first, answer="n\n")
    assert code == 1 and "nothing was approved before" in said and sha256(first.read_bytes()) in said
    assert run("--list") == (0, "")
    assert run(first, answer="y\n")[0] == 0
    code, said = run(second, "--yes")
    assert (
        code == 0
        and "changed  +1 -1  client.py" in said
        and "against lab/tiny 1.0.0" in said
        and "server.py" not in said
    )
    assert len(run("--list")[1].splitlines()) == 2
    digest = sha256(second.read_bytes())
    assert run("--withdraw", digest[:12]) == (0, f"withdrawn: {digest}\n")
    assert "+app = 2" in run(second, "--diff", answer="n\n")[1]
    second.write_bytes(bundle(tmp_path / "app", client="app = 2 # \u202e\x1b[2K\r hidden\n"))
    said = run(second, "--diff", answer="n\n")[1]
    assert "\\u202e\\x1b[2K" in said and "\x1b" not in said and "\u202e" not in said
    for wrong, words in (((), "name a bundle"), (("--withdraw", "ff00"), "0 approved bundles"), ((tmp_path / "no.fab",), "cannot be used"), ((tmp_path / "site.yaml",), "no app bundle")):  # fmt: skip
        code, said = run(*wrong)
        assert code == 2 and words in said and said.count("\n") == 1
    assert json.loads((tmp_path / "gate" / "approved.json").read_text())[0]["by"]
