"""`make e2e`: two hospitals and the server as separate processes, TLS through nginx, a private run, validation."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.federation import processes

ROOT = Path(__file__).resolve().parents[2]
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


@pytest.mark.slow
@pytest.mark.skipif(NGINX is None, reason="no nginx: scripts/install_packages.sh")
def test_the_whole_story_goes_as_it_is_told(tmp_path):
    told = subprocess.run(
        [sys.executable, ROOT / "scripts" / "e2e.py", "--keep", tmp_path / "story"],
        cwd=tmp_path, capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout[-6000:] + told.stderr
    assert processes(tmp_path) == {}
    log = "".join(p.read_text(errors="replace") for p in (tmp_path / "story" / "kits").glob("*/*.log"))
    assert "iid-1-brain" not in log  # no patient's name in any log
