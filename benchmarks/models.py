"""What each model of configs/model costs: parameters, FLOPs of one study, memory of one training step.

    python -m benchmarks.models [--only paper tiny] [--device cpu]

A study is a brain with its four modalities; the step is forward and backward of stage 2's loss on `patients` of them. Every
row is measured in a process of its own. Inflated backbones have their architecture's size and random weights: none is downloaded.
Writes benchmarks/results/models.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from configs import load, load_vocabulary
from configs.schema import TextConfig
from medmap_model.batch import Batch
from medmap_model.model import MedMAP, build_model
from medmap_model.text import build_text_encoder

RESULTS = Path(__file__).parent / "results" / "models.csv"
# name -> (choice of configs/model, voxels per edge, patients per step, 2D backbone of an inflated one). Two patients, because
# a single volume takes another, more wasteful convolution on a CPU; the paper's model has hardly any convolution.
MODELS: dict[str, tuple[str, int, int, str]] = {
    "tiny": ("tiny", 24, 2, ""),
    "medmap": ("medmap", 24, 2, ""),
    "resnet10": ("resnet10", 24, 2, ""),
    "vit": ("vit", 24, 2, ""),
    "small": ("small", 48, 2, ""),
    "swin": ("swin", 48, 2, ""),
    "resnet": ("resnet", 64, 2, ""),
    "resnet50": ("resnet50", 64, 2, ""),
    "inflated ResNet-18": ("inflated", 64, 2, "resnet"),
    "inflated ConvNeXt-T": ("inflated", 64, 2, "convnext"),
    "inflated DINOv2-S": ("inflated", 56, 2, "dinov2"),
    "paper": ("paper", 96, 1, ""),
}


def write_backbone(family: str, folder: str) -> None:
    """A 2D network of the usual size with random weights, as `hf download` would leave it."""
    from transformers import ConvNextConfig, ConvNextModel, Dinov2Config, Dinov2Model, ResNetConfig, ResNetModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    if family == "resnet":
        sizes = ResNetConfig(hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic")
        ResNetModel(sizes).save_pretrained(folder)
    elif family == "convnext":
        ConvNextModel(ConvNextConfig()).save_pretrained(folder)
    else:
        Dinov2Model(
            Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14)
        ).save_pretrained(folder)


def build(choice: str, size: int, backbone: str) -> tuple[MedMAP, Any]:
    """The model and the whole configuration; texts by hashing, as wide as BiomedBERT's."""
    overrides = [f"model={choice}", f"data.volumes.size={size}"]
    with tempfile.TemporaryDirectory() as folder:
        if backbone:
            write_backbone(backbone, folder)
            overrides.append(f"model.encoder.backbone={folder}")
        config = load(overrides)
        text = build_text_encoder(TextConfig(kind="hash", dim=768))
        return build_model(config.model, load_vocabulary("medmom"), text, seed=0), config


def study(model: MedMAP, size: int, patients: int) -> Batch:
    """Brains with every modality, of noise."""
    slots, width = len(model.slots("brain")), model.texts.embedding.shape[1]
    return Batch(
        organ="brain",
        volumes=torch.randn(patients, slots, size, size, size),
        present=torch.ones(patients, slots, dtype=torch.bool),
        label=torch.arange(patients) % 2,
        report=torch.nn.functional.normalize(torch.randn(patients, width), dim=1),
        has_report=torch.ones(patients, dtype=torch.bool),
    )


def measure(name: str, device: str) -> dict[str, Any]:
    """One row; to be called in a fresh process, whose peak memory it reads."""
    from torch.utils.flop_counter import FlopCounterMode

    torch.set_num_threads(1)
    torch.manual_seed(0)
    choice, size, patients, backbone = MODELS[name]
    model, config = build(choice, size, backbone)
    model.to(device)
    batch = study(model, size, patients).to(device)
    parameters = sum(p.numel() for p in model.parameters())
    encoder = next(iter(model.encoders.values()))
    before = _resident_mb(device)
    begun = time.perf_counter()
    model.finetune_loss(batch, config.stage.finetune, progress=0.5)["loss"].backward()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begun
    step = _peak_mb(device) - before
    gradients = sum(p.grad.numel() for p in model.parameters() if p.grad is not None) * 4 / 1e6
    model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.logits(batch.rows(slice(0, 1)))
    return {
        "model": name,
        "size": size,
        "patients": patients,
        "encoders": len(model.encoders),
        "encoder_million": round(sum(p.numel() for p in encoder.parameters()) / 1e6, 3),
        "total_million": round(parameters / 1e6, 3),
        "study_gflop": round(counter.get_total_flops() / 1e9, 2),
        "step_memory_mb": round(step),
        "of_it_gradients_mb": round(gradients),
        "step_s": round(seconds, 1),
        "device": device,
    }


def _resident_mb(device: str) -> float:
    """Memory in use now, 10^6 bytes; the peak is counted from here on."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 1e6
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # building a model may have taken more than a step
    return _status_mb("VmRSS")


def _peak_mb(device: str) -> float:
    """The most that was in use since `_resident_mb`, 10^6 bytes."""
    return torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else _status_mb("VmHWM")


def _status_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--one", choices=list(MODELS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.device)))
        return
    rows = []
    for name in given.only:
        command = [sys.executable, "-m", "benchmarks.models", "--one", name, "--device", given.device]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows.append(json.loads(out.splitlines()[-1]))
        print(rows[-1], flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    if given.only != list(MODELS):  # a part of the table does not replace the whole
        return
    with RESULTS.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
