"""2D backbones of transformers (ConvNeXt, DINOv2, ResNet) inflated to 3D: (B, 1, S, S, S) -> tokens (B, N, C)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.schema import EncoderConfig
from medmap_model.encoders.base import Encoded, Encoder, ModelError, full_precision, in_raster_order, told
from medmap_model.encoders.inflation import fold_batch_norm, inflate
from medmap_model.encoders.vit import refuse_other_size

_DOWNLOAD = (
    "run `hf download {id}` here, or `hf download {id} --local-dir FOLDER` on a machine with a network, "
    "copy FOLDER here and set model.encoder.backbone=FOLDER"
)


class InflatedResNet(Encoder):
    """ResNet without its BatchNorms, which are folded into the convolutions: as fine-tuning with frozen ones."""

    def __init__(self, config: EncoderConfig, flat: Any) -> None:
        super().__init__()
        self.checkpointing, self.channels_last = config.checkpointing, config.channels_last
        self.embedder, self.stages = flat.embedder, flat.encoder.stages
        fold_batch_norm(self)
        inflate(self, self.embedder.embedder.convolution, rule=config.inflation)
        self.channels, self.stem_channels = flat.config.hidden_sizes[-1], flat.config.embedding_size

    def forward(self, volume: Tensor, modality: Tensor | None = None) -> Encoded:
        """(B, 1, D, H, W) -> tokens (B, N, C) at 1/32, pooled (B, C): their mean."""
        stem = self.embedder.embedder
        h = told(stem.convolution(self._laid_out(volume)), modality)
        h = self.embedder.pooler(stem.activation(h))
        for stage in self.stages:
            for block in stage.layers:
                h = self._run(block, h)
        tokens = in_raster_order(h)
        return Encoded(tokens, full_precision(tokens).mean(1))


class InflatedConvNeXt(Encoder):
    """ConvNeXt (Liu et al. 2022, arXiv 2201.03545) with depthwise kernels of 7^3."""

    def __init__(self, config: EncoderConfig, flat: Any) -> None:
        super().__init__()
        if config.size < 32:
            raise ModelError(f"data.volumes.size={config.size}: an inflated ConvNeXt needs 32 voxels or more")
        self.checkpointing, self.channels_last = config.checkpointing, config.channels_last
        self.embeddings, self.stages, self.layernorm = flat.embeddings, flat.encoder.stages, flat.layernorm
        inflate(self, self.embeddings.patch_embeddings, rule=config.inflation)
        self.channels, self.stem_channels = flat.config.hidden_sizes[-1], flat.config.hidden_sizes[0]

    def forward(self, volume: Tensor, modality: Tensor | None = None) -> Encoded:
        """(B, 1, D, H, W) -> tokens (B, N, C) at 1/32, pooled (B, C): their mean, then ConvNeXt's own last norm."""
        h = told(self.embeddings.patch_embeddings(self._laid_out(volume)), modality)
        h = _over_channels(self.embeddings.layernorm, h)
        for stage in self.stages:
            for norm, convolution in [stage.downsampling_layer] if len(stage.downsampling_layer) else []:
                h = convolution(_over_channels(norm, h))
            for layer in stage.layers:
                h = self._run(lambda x, layer=layer: _convnext_layer(layer, x), h)  # type: ignore[misc]
        tokens = in_raster_order(h)
        return Encoded(tokens, self.layernorm(full_precision(tokens).mean(1)))


class InflatedDinov2(Encoder):
    """DINOv2 (Oquab et al. 2024, arXiv 2304.07193) on cubic patches.

    Position(row, column, depth) = the pre-trained 2D embedding of (row, column) + a learned one of the depth, which starts
    at zero. Every layer of patches has its own class token: with one for all, the class token would weigh less the
    deeper the volume, and a volume that does not change along its depth would not give the image's activation.
    """

    def __init__(self, config: EncoderConfig, flat: Any) -> None:
        super().__init__()
        patch = flat.embeddings.patch_embeddings.patch_size[0]
        if config.size % patch:
            low = config.size // patch * patch
            sizes = f"{low} or {low + patch}" if low else f"{patch}"
            raise ModelError(
                f"data.volumes.size={config.size} is not a multiple of the backbone's patch {patch}: take {sizes}"
            )
        self.checkpointing, self.channels_last, self.size = config.checkpointing, config.channels_last, config.size
        width, self.grid = flat.config.hidden_size, config.size // patch
        with torch.no_grad():  # brought to this grid once, by transformers' own interpolation
            blank = torch.zeros(1, 1 + self.grid**2, width)
            position = flat.embeddings.interpolate_pos_encoding(blank, config.size, config.size).clone()
        self.projection, self.class_token = flat.embeddings.patch_embeddings.projection, flat.embeddings.cls_token
        self.position, self.depth = nn.Parameter(position), nn.Parameter(torch.zeros(self.grid, 1, width))
        self.layers, self.layernorm = flat.encoder.layer, flat.layernorm
        inflate(self, self.projection, rule=config.inflation)
        self.channels = self.stem_channels = width

    def forward(self, volume: Tensor, modality: Tensor | None = None) -> Encoded:
        """(B, 1, S, S, S) -> tokens (B, N, C), pooled (B, C): the mean of the class tokens."""
        refuse_other_size(volume, self.size)
        b, g = len(volume), self.grid
        h = told(self.projection(self._laid_out(volume)), modality)
        patches = h.permute(0, 4, 2, 3, 1).reshape(b, g, g * g, -1)
        h = torch.cat([self.class_token.expand(b, g, 1, -1), patches], 2)
        h = (h + self.position + self.depth).flatten(1, 2)
        for layer in self.layers:
            h = self._run(layer, h)
        h = self.layernorm(h).unflatten(1, (g, 1 + g * g))
        tokens = h[:, :, 1:].transpose(1, 2).flatten(1, 2)  # depth is the last axis of a volume's raster order
        return Encoded(tokens, full_precision(h[:, :, 0]).mean(1))


def _over_channels(norm: Any, h: Tensor) -> Tensor:
    """A layer norm over the channels of (B, C, H, W, D)."""
    flat = nn.functional.layer_norm(h.movedim(1, -1), norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return flat.movedim(-1, 1)


def _convnext_layer(layer: Any, x: Tensor) -> Tensor:
    """transformers' ConvNextLayer, whose own forward permutes four axes, on (B, C, H, W, D)."""
    h = layer.layernorm(layer.dwconv(x).movedim(1, -1))
    h = layer.pwconv2(layer.act(layer.pwconv1(h)))
    if layer.layer_scale_parameter is not None:
        h = layer.layer_scale_parameter * h
    return x + layer.drop_path(h.movedim(-1, 1))


_FAMILIES = {"convnext": InflatedConvNeXt, "dinov2": InflatedDinov2, "resnet": InflatedResNet}


def build_inflated(config: EncoderConfig) -> Encoder:
    """The encoder of `config.backbone`, a Hugging Face id in this machine's cache or a folder. Never downloads.

    Raises ModelError when it is not there, cannot be read, or is of another family.
    """
    if not config.backbone:
        raise ModelError(
            "model.encoder.kind=inflated needs model.encoder.backbone, such as facebook/dinov2-small: "
            + _DOWNLOAD.format(id="facebook/dinov2-small")
        )
    folder = _folder(config.backbone)
    try:
        family = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError):
        family = None
    if family not in _FAMILIES:
        raise ModelError(
            f"model.encoder.backbone={config.backbone} ({folder}) is {f'a {family}' if family else 'no model'}: "
            f"take one whose config.json says {', '.join(_FAMILIES)}"
        )
    return _FAMILIES[family](config, _load(config.backbone, folder))


def _folder(backbone: str) -> Path:
    from medmap_model.text import TextEncoderError, model_folder

    try:
        return model_folder(backbone)
    except TextEncoderError:
        raise ModelError(
            f"model.encoder.backbone={backbone} is neither a folder nor in this machine's Hugging Face cache: "
            + _DOWNLOAD.format(id=backbone)
        ) from None


def _load(backbone: str, folder: Path) -> Any:
    """The 2D model with all its weights, float32; transformers silenced meanwhile."""
    from transformers import AutoModel
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, info = AutoModel.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # OSError, ValueError, a reader's own: whatever a broken download raises
        raise ModelError(
            f"model.encoder.backbone={backbone} cannot be loaded from {folder} ({type(error).__name__}): "
            "it needs config.json and model.safetensors, whole; download them anew"
        ) from None
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    # A classifier's head may be left over; a backbone without its own weights would train from noise unnoticed.
    absent = [k for k in info["missing_keys"] if "pooler" not in k]
    if absent:
        raise ModelError(f"model.encoder.backbone={backbone}: {folder} lacks {len(absent)} weights, {absent[0]} first")
    return model
