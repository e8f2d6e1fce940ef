"""Checks of the machine: versions, disk, memory, GPU."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from client.preflight.rows import GB, Row, Subject, existing

_TOLD = ("flwr", "torch", "monai", "opacus")
_FLOWER_BYTES, _LEDGER_BYTES = 1 * GB, 0.1 * GB  # bundles and models on their way; a ledger is far smaller
_PROGRAM_BYTES = 1 * GB  # the dry run of the smallest model peaks at 0.6 GB; Flower's own processes come on top
_COPIES = 8  # of float32 parameters: weights, gradients, AdamW's two moments; and about four in Flower's message


def versions(subject: Subject) -> Row:
    """Installed packages against what MedMAP-FL needs and, of a kit, against its constraints.txt."""
    from packaging.requirements import Requirement

    wrong, other = [], []
    pins = _pins(subject.kit)
    needed = [r for line in requires("medmap-fl") or [] if not (r := Requirement(line)).marker]
    for need in needed:
        try:
            have = version(need.name)
        except PackageNotFoundError:
            wrong.append(f"{need.name} is not installed")
            continue
        pin = pins.get(need.name.lower())
        if not need.specifier.contains(have, prereleases=True):
            wrong.append(f"{need.name} is {have}, needed is {need.specifier}")
        elif pin and need.name == "flwr" and have.split(".")[:2] != pin.split(".")[:2]:
            wrong.append(f"flwr is {have}, the federation's is {pin}: the server refuses another")
        elif pin and have.partition("+")[0] != pin:
            other.append(f"{need.name} {have} instead of {pin}")
    remedy = "Install again: ./install.sh in the kit's folder, or pip install -c constraints.txt"
    if wrong:
        return Row("failed", "; ".join(wrong), remedy)
    if other:
        return Row("warning", f"Not the kit's versions: {', '.join(other)}", remedy)
    told = ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in _TOLD)])
    return Row("ok", told + (", all as the kit's constraints.txt" if pins else ""))


def _pins(kit: Path | None) -> dict[str, str]:
    if kit is None or not (kit / "constraints.txt").is_file():
        return {}
    lines = (kit / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {
        name.strip().lower(): pin.strip() for name, equals, pin in (line.partition("==") for line in lines) if equals
    }


def disk(subject: Subject) -> Row:
    """Free space for the prepared volumes, the ledger and Flower's folder; those that share a disk are added up."""
    home = Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr") if subject.kit is None else subject.kit / "flower"
    cached = sum(f.stat().st_size for f in (subject.site.cache_dir / "cubes").rglob("*") if f.is_file())
    most = subject.site.cache_gb * 1e9 or subject.cube_bytes
    needs = [
        ("prepared volumes", subject.site.cache_dir, max(0, min(most, subject.cube_bytes) - cached)),
        ("ledger", subject.site.ledger.parent, _LEDGER_BYTES),
        ("Flower", home, _FLOWER_BYTES),
    ]
    disks: dict[int, tuple[list[str], float, float]] = {}
    for name, folder, need in needs:
        place = existing(folder)
        names, before, _ = disks.get(place.stat().st_dev, ([], 0.0, 0.0))
        disks[place.stat().st_dev] = ([*names, name], before + need, shutil.disk_usage(place).free)
    told = "; ".join(
        f"{', '.join(names)}: {free / GB:,.1f} GB free, {need / GB:,.1f} GB needed"
        for names, need, free in disks.values()
    )
    details = tuple(f"{name}: {folder}" for name, folder, _ in needs)
    remedy = "Free some space, or name another disk in site.yaml (cache_dir)"
    if not os.access(existing(subject.site.cache_dir), os.W_OK):
        return Row(
            "failed", "cache_dir cannot be written by this user", "Give the user the right, or name another", details
        )
    if any(free < need for _, need, free in disks.values()):
        return Row("failed", told, remedy, details)
    if any(free < 2 * need for _, need, free in disks.values()):
        return Row("warning", told, remedy, details)
    return Row("ok", told)


def memory(subject: Subject) -> Row:
    """Memory that is free against an estimate: programs, copies of the model's parameters, volumes held in memory."""
    from medmap_model.model import build_model
    from medmap_model.text import build_text_encoder

    free = available_bytes()
    if free is None:
        return Row("skipped", "this system does not say how much memory is free")
    config = subject.config
    model = build_model(config.model, subject.vocabulary, build_text_encoder(config.text), seed=0)
    parameters = sum(p.numel() for p in model.parameters())
    held = min(subject.cube_bytes, config.data.volumes.memory_mb * 1e6)
    need = _PROGRAM_BYTES + _COPIES * 4 * parameters + held
    told = f"{free / GB:,.1f} GB free, about {need / GB:,.1f} GB needed"
    details = (
        f"programs {_PROGRAM_BYTES / GB:.1f} GB + {_COPIES} copies of {parameters / 1e6:,.2f} million parameters (float32) "
        f"+ prepared volumes held in memory {held / GB:.2f} GB; what a batch takes on top, the dry run measures",
    )
    remedy = "Stop other programs, or ask the coordinator for data.volumes.memory_mb or a model that fits"
    if free < need:
        return Row("failed", told, remedy, details)
    return Row("warning", told, remedy, details) if free < 2 * need else Row("ok", told)


def available_bytes(proc: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Memory that a new program can have, bytes: what Linux says, and a container's limit; None where neither is told."""
    found = []
    with contextlib.suppress(OSError, StopIteration, ValueError):
        kib = next(line.split()[1] for line in proc.read_text().splitlines() if line.startswith("MemAvailable:"))
        found.append(int(kib) * 1024)
    with contextlib.suppress(OSError, ValueError):  # not a container, or `max`: no limit
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return min(found) if found else None


def gpu(subject: Subject) -> Row:
    """The GPU that training would use, or that there is none."""
    import torch

    if torch.cuda.is_available() and subject.config.engine.device != "cpu":
        of = torch.cuda.get_device_properties(0)
        free, _ = torch.cuda.mem_get_info(0)
        return Row("ok", f"{of.name}, {free / GB:,.1f} of {of.total_memory / GB:,.1f} GB free")
    if subject.config.engine.device == "cuda":
        remedy = "Ask the coordinator for engine.device=auto, or install a driver and a PyTorch with CUDA"
        return Row("failed", "none that PyTorch can use, and the settings ask for one (engine.device=cuda)", remedy)
    if shutil.which("nvidia-smi") and subject.config.engine.device == "auto":
        remedy = "Install a PyTorch built for this driver's CUDA version (nvidia-smi shows it)"
        return Row("warning", f"NVIDIA's driver is here, but PyTorch {torch.__version__} cannot use it: CPU", remedy)
    return Row("ok", f"none: trains on the CPU, {os.cpu_count()} cores")
