"""Fusions: any subset of a study's modalities becomes one feature (B, D), guided by class-independent text."""

from __future__ import annotations

from torch import nn

from configs.schema import FusionConfig
from medmap_model.encoders.base import ModelError
from medmap_model.fusion.compact import CompactFusion
from medmap_model.fusion.inputs import FusionInput
from medmap_model.fusion.layers import drop_modalities
from medmap_model.fusion.medmap import MedMAPFusion

__all__ = ["CompactFusion", "FusionInput", "MedMAPFusion", "build_fusion", "drop_modalities", "token_width"]


def token_width(config: FusionConfig, *, dim: int) -> int:
    """W, the width of the tokens that a fusion wants; 0 where it takes pooled vectors alone."""
    return 0 if config.kind == "compact" else config.width or dim


def build_fusion(config: FusionConfig, *, dim: int) -> nn.Module:
    """The fusion that a configuration names: `FusionInput` -> (B, dim). Raises ModelError."""
    width = token_width(config, dim=dim) or dim
    if width % config.heads:
        key = "fusion.width" if config.kind == "medmap" and config.width else "embed_dim"
        raise ModelError(f"model.{key}={width} is not a multiple of model.fusion.heads={config.heads}")
    if config.kind == "compact":
        return CompactFusion(config, dim=dim)
    return MedMAPFusion(config, dim=dim, width=width)
