"""Tiny 2D backbones of transformers with random weights and BatchNorm statistics, saved as `hf download` would leave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

FAMILIES = ("convnext", "dinov2", "resnet")


def save_backbone(family: str, folder: Path, *, bottleneck: bool = False) -> Any:
    """Write config.json and model.safetensors to the folder; the 2D model in evaluation mode."""
    from transformers import ConvNextConfig, ConvNextModel, Dinov2Config, Dinov2Model, ResNetConfig, ResNetModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    model: Any
    if family == "convnext":
        # With the default layer scale of 1e-6 and deviation of 0.02 the blocks would do next to nothing.
        model = ConvNextModel(
            ConvNextConfig(
                hidden_sizes=[4, 8, 8, 12], depths=[1, 1, 2, 1], layer_scale_init_value=0.5, initializer_range=0.2
            )
        )
    elif family == "dinov2":
        model = Dinov2Model(
            Dinov2Config(
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=42,
                patch_size=14,
                initializer_range=0.2,
            )
        )
    else:
        kind = "bottleneck" if bottleneck else "basic"
        model = ResNetModel(
            ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 12, 16], depths=[1, 1, 1, 1], layer_type=kind)
        )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zero in a fresh model, and what is zero cannot be got wrong
            nn.init.normal_(parameter, std=0.5)
    model.eval().save_pretrained(folder)
    return model


def slice_features(model: Any, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 1, H, W) grey images, shown three times -> the 2D model's tokens (B, N, C) and pooled vector (B, C)."""
    with torch.no_grad():
        out = model(image.expand(-1, 3, -1, -1))
    last = out.last_hidden_state
    tokens = last.flatten(2).transpose(1, 2) if last.dim() == 4 else last[:, 1:]
    return tokens, out.pooler_output.flatten(1)
