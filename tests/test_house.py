"""The house rules that imports and commands must keep."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medmap_model import contract
from tests.conftest import FIRST

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {
    "medmap_model": {"client", "server", "simulation", "flwr", "opacus"},
    "client": {"server", "simulation"},
    "server": {"client", "simulation"},
    "configs": {"client", "server", "simulation", "flwr", "torch"},
}


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_run_one_way(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    wrong = {str(f.relative_to(ROOT)): bad for f in files if (bad := imports(f) & FORBIDDEN[package])}
    wrong.pop("medmap_model/accounting.py", None)  # what both sides must agree on, and Opacus computes
    assert not wrong


def test_flower_is_imported_in_thin_layers_only():
    users = {
        str(f.relative_to(ROOT))
        for p in ("client", "server", "simulation")
        for f in (ROOT / p).rglob("*.py")
        if "flwr" in imports(f)
    }
    assert users == {
        "client/app.py",
        "client/gate/commands.py",
        "client/gate/incoming.py",
        "client/gate/link.py",
        "client/gate/node.py",
        "client/gate/online.py",
        "client/gate/parts.py",
        "client/gate/replies.py",
        "server/app.py",
        "server/exchange.py",
        "server/members.py",
        "server/releases.py",
        "server/round.py",
        "server/rounds.py",
        "simulation/engines.py",
    }


@pytest.mark.parametrize("command", ["medmap-sim", "medmap-client", "medmap-server"])
def test_help_loads_nothing_heavy(command):
    script = shutil.which(command, path=str(Path(sys.executable).parent))
    assert script, f"{command} is not installed"
    shown = subprocess.run([script, "--help"], capture_output=True, text=True, timeout=60, check=True).stdout
    assert len(shown) > 300
    module = {"medmap-sim": "simulation", "medmap-client": "client", "medmap-server": "server"}[command]
    code = f"import sys, {module}.cli\ntry: sys.argv=['x','--help']; {module}.cli.main()\nexcept SystemExit: pass\nprint([m for m in ('torch','monai','flwr','transformers') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert out.strip().endswith("[]")


def test_a_vector_travels_bit_for_bit_and_as_a_plain_npy():
    vector = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    data = contract.encode_vector(vector)
    np.testing.assert_array_equal(contract.decode_vector(data), vector)
    import io

    np.testing.assert_array_equal(np.load(io.BytesIO(data)), vector)
    with pytest.raises(ValueError, match="one float32 vector"):
        contract.encode_vector(vector.astype(np.float64))


@pytest.mark.parametrize(
    "data", [b"", b"\x93NUMPY", b"garbage" * 100, contract.encode_vector(np.zeros(9, np.float32))[:-3]]
)
def test_bytes_that_are_no_array_are_refused(data):
    with pytest.raises((ValueError, EOFError)):
        contract.decode_vector(data)


def test_a_pickle_in_an_update_is_refused():
    import io

    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        contract.decode_vector(stream.getvalue())


def test_no_path_of_a_machine_is_in_the_project():
    pattern = re.compile(r"/(home|root|Users)/[a-z]")
    files = [
        f
        for d in ("client", "server", "simulation", "medmap_model", "configs", "docs")
        for f in (ROOT / d).rglob("*")
        if f.suffix in (".py", ".md", ".yaml")
    ]
    assert not [str(f) for f in files if pattern.search(f.read_text(encoding="utf-8"))]


def test_the_files_of_tests_that_start_first_are_there():
    assert FIRST and not [name for name in FIRST if not (ROOT / "tests" / name).is_file()]
