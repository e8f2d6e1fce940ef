"""Vision encoders: one interface (`base.Encoder`), one file per architecture, `build_encoder` from a named config."""

from __future__ import annotations

from configs.schema import EncoderConfig
from medmap_model.encoders.base import Encoded, Encoder, ModelError, full_precision, refuse_running_statistics, summary

__all__ = [
    "Encoded",
    "Encoder",
    "ModelError",
    "build_encoder",
    "full_precision",
    "refuse_running_statistics",
    "summary",
]


def build_encoder(config: EncoderConfig) -> Encoder:
    """The encoder that a configuration names. Raises ModelError for settings that cannot be built."""
    if config.kind == "swin_unetr":
        from medmap_model.encoders.swin import SwinEncoder

        return SwinEncoder(config)
    if config.kind == "conv":
        from medmap_model.encoders.conv import ConvEncoder

        return ConvEncoder(config)
    raise ModelError(f"model.encoder.kind={config.kind} is not built yet")
