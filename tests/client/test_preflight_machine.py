"""The preflight's checks of machine and kit find what they are there for, and are content where nothing is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from client.preflight.kit import bundle, certificate
from client.preflight.machine import available_bytes, disk, gpu, memory, versions
from tests.client.preflight_parts import subject, told, write_site
from tests.server.provisioned import Coordinator, write_plan


@pytest.fixture(scope="module")
def federation(tmp_path_factory) -> Coordinator:
    folder = tmp_path_factory.mktemp("federation")
    write_plan(folder)
    made = Coordinator(folder).provisioned()
    kit = made.admitted()
    shutil.copy(made.authority / "sites" / "north.crt", kit / "node.crt")
    return made


@pytest.fixture
def kit(federation, hospitals, tmp_path) -> Path:
    """A copy of north's kit with key, certificate and site.yaml."""
    folder = shutil.copytree(federation.kits / "north", tmp_path / "kit")
    write_site(folder, hospitals["east"])
    return folder


def test_versions_are_held_against_the_kit(kit):
    checked = subject(kit / "site.yaml")
    assert versions(checked).result == "ok" and "constraints.txt" in versions(checked).found
    pins = (kit / "constraints.txt").read_text()
    (kit / "constraints.txt").write_text(pins.replace("torch==", "torch==9."))
    assert told(versions(checked)).startswith("warning: Not the kit's versions: torch ")
    (kit / "constraints.txt").write_text(pins.replace("flwr==1.41", "flwr==1.42"))
    row = versions(checked)
    assert row.result == "failed" and "the server refuses another" in row.found and "install" in row.remedy
    (kit / "constraints.txt").write_text(pins.replace("flwr==1.41.0", "flwr==1.41.9"))
    assert versions(checked).result == "warning", "a patch release is no other version to Flower"


def test_the_disk_must_hold_what_is_yet_to_be_prepared(hospitals, tmp_path):
    checked = subject(write_site(tmp_path, hospitals["east"]))
    assert disk(checked).result == "ok" and checked.cube_bytes == 56 * 16**3 * 2
    free = shutil.disk_usage(tmp_path).free
    checked.__dict__["volumes"] = 2 * free // (16**3 * 2)
    assert disk(checked).result == "failed" and "another disk" in disk(checked).remedy
    cubes = checked.site.cache_dir / "cubes" / "ab"
    cubes.mkdir(parents=True)
    with (cubes / "cube").open("wb") as sparse:
        sparse.truncate(2 * free)
    assert disk(checked).result == "ok", "what is prepared already needs no more"


def test_memory_is_what_linux_and_a_container_leave(hospitals, tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    8000 kB\n")
    assert available_bytes(tmp_path / "meminfo", tmp_path) == 8000 * 1024
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert available_bytes(tmp_path / "meminfo", tmp_path) == 2_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(tmp_path / "meminfo", tmp_path) == 8000 * 1024
    assert available_bytes(tmp_path / "nowhere", tmp_path) is None
    checked = subject(write_site(tmp_path, hospitals["east"]))
    assert memory(checked).result == "ok"
    checked = subject(write_site(tmp_path, hospitals["east"]), "data.volumes.memory_mb=100000000")
    checked.__dict__["volumes"] = 10**12
    row = memory(checked)
    assert row.result == "failed" and "8 copies" in row.details[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")
def test_a_gpu_that_the_settings_ask_for_and_that_is_not_there(hospitals, tmp_path):
    path = write_site(tmp_path, hospitals["east"])
    assert told(gpu(subject(path))).startswith("ok: none: trains on the CPU")
    assert gpu(subject(path, "engine.device=cuda")).result == "failed"


def test_a_kit_in_order_and_its_faults_each_by_its_name(kit):
    row = certificate(subject(kit / "site.yaml"))
    assert row.result == "ok" and "node.crt holds until" in row.found
    name = (kit / "site.yaml").read_text()
    (kit / "site.yaml").write_text(name.replace("north", "south"))
    row = certificate(subject(kit / "site.yaml"))
    assert row.result == "failed" and "is for north, site.yaml is of south" in row.found
    (kit / "site.yaml").write_text(name)
    (kit / "node.key").chmod(0o644)
    assert "can be read by others" in certificate(subject(kit / "site.yaml")).found
    (kit / "node.key").chmod(0o600)
    (kit / "node.crt").unlink()
    assert certificate(subject(kit / "site.yaml")).result == "warning"
    (kit / "node.key").unlink()
    row = certificate(subject(kit / "site.yaml"))
    assert row.result == "failed" and row.remedy.startswith("medmap-client request north")
    (kit / "start.sh").write_text("#!/bin/sh\n")
    row = certificate(subject(kit / "site.yaml"))
    assert row.result == "failed" and "start.sh was changed" in row.found and str(kit) not in told(row)


def test_messages_are_the_same_from_within_the_kits_folder(kit, monkeypatch):
    monkeypatch.chdir(kit)
    Path("start.sh").write_text("#!/bin/sh\n")
    row = certificate(subject(Path("site.yaml")))
    assert row.found.startswith("start.sh was changed since the kit was made: unpack the kit again")


def test_no_approved_bundle_is_a_warning_and_a_broken_list_a_failure(kit):
    checked = subject(kit / "site.yaml")
    assert bundle(checked).result == "warning" and "approve" in bundle(checked).remedy
    checked.site.gate.mkdir(exist_ok=True)
    (checked.site.gate / "approved.json").write_text("[{")
    assert bundle(checked).result == "failed"
