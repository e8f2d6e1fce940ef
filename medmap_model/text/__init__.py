"""The frozen, shared text side: encoders of text, and the public texts that a vocabulary gives."""

from medmap_model.text.encoder import (
    PACKAGED,
    HashEncoder,
    TextEncoder,
    TextEncoderError,
    TransformerEncoder,
    build_text_encoder,
    model_folder,
)
from medmap_model.text.table import TextTable

__all__ = [
    "PACKAGED",
    "HashEncoder",
    "TextEncoder",
    "TextEncoderError",
    "TextTable",
    "TransformerEncoder",
    "build_text_encoder",
    "model_folder",
]
