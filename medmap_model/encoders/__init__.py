"""Vision encoders: one interface (`base.Encoder`), one file per architecture, `build_encoder` from a named config.

A new one is a file here, a line in `REGISTRY`, and its name among the choices of `EncoderConfig.kind`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from configs.schema import EncoderConfig
from medmap_model.encoders.base import Encoded, Encoder, ModelError, full_precision, refuse_running_statistics, summary

__all__ = [
    "REGISTRY",
    "Encoded",
    "Encoder",
    "ModelError",
    "build_encoder",
    "full_precision",
    "refuse_running_statistics",
    "summary",
]

Factory = Callable[[EncoderConfig], Encoder]


def _lazy(module: str, name: str) -> Factory:
    """The factory of a module of this package, imported when it is first asked for: MONAI and transformers are slow."""

    def build(config: EncoderConfig) -> Encoder:
        return getattr(import_module(f"{__name__}.{module}"), name)(config)

    return build


REGISTRY: dict[str, Factory] = {
    "conv": _lazy("conv", "ConvEncoder"),
    "resnet10": _lazy("resnet", "ResNetEncoder"),
    "resnet18": _lazy("resnet", "ResNetEncoder"),
    "resnet50": _lazy("resnet", "ResNetEncoder"),
    "swin_unetr": _lazy("swin", "SwinEncoder"),
    "vit": _lazy("vit", "ViTEncoder"),
    "inflated": _lazy("inflated", "build_inflated"),
}


def build_encoder(config: EncoderConfig) -> Encoder:
    """The encoder that a configuration names. Raises ModelError for settings that cannot be built."""
    if config.kind not in REGISTRY:
        raise ModelError(f"model.encoder.kind={config.kind} is not known: take one of {', '.join(REGISTRY)}")
    return REGISTRY[config.kind](config)
