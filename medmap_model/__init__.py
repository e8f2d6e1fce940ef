"""MedMAP: modality-aware 3D-MRI vision-language model. Knows neither Flower, nor Opacus; `load` alone reads files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medmap_model.checkpoint import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """`load` comes with torch: it is imported when first asked for, so that the commands start quickly."""
    if name == "load":
        from medmap_model.checkpoint import load

        return load
    raise AttributeError(f"module {__name__} has no attribute {name}")
