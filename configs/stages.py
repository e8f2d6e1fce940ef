"""Settings of `stage`: how a site trains in stage 1 (align with texts) and stage 2 (detect), part of `configs.schema`."""

from __future__ import annotations

from dataclasses import dataclass, field

from configs.setting import setting


@dataclass
class OptimConfig:
    """One stage's local training."""

    rounds: int = setting(1, "communication rounds", minimum=0, maximum=100_000)
    epochs: int = setting(2, "passes over a site's patients per round", minimum=1, maximum=1000)
    batch_size: int = setting(8, "patients per optimiser step", minimum=2, maximum=4096)
    micro_batch: int = setting(0, "patients per forward pass, gradients accumulated; 0: the whole batch", minimum=0)
    lr: float = setting(1.5e-3, "peak learning rate of AdamW", minimum=1e-8, maximum=10)
    lr_floor: float = setting(0.1, "share of lr that the cosine over rounds ends at", minimum=0, maximum=1)
    weight_decay: float = setting(1e-3, "of AdamW", minimum=0, maximum=10)
    clip_norm: float = setting(2.0, "largest gradient norm; 0: off", minimum=0)
    patience: int = setting(
        0, "rounds without a better validation score before the stage ends early; 0: off", minimum=0
    )


@dataclass
class PretrainConfig(OptimConfig):
    """Stage 1: align every modality's encoder with the frozen text encoder."""

    objective: str = setting(
        "asymmetric",
        "asymmetric InfoNCE, SigLIP, DHN-NCE, partial optimal transport, or image->public bank alone (separable)",
        choices=("asymmetric", "siglip", "dhn_nce", "partial_ot", "bank"),
    )
    image_to_text: float = setting(0.75, "weight of image->text; text->image has the rest", minimum=0, maximum=1)
    positives: str = setting(
        "abnormality",
        "which reports say the same: the abnormality's, or texts with cosine >= same_text",
        choices=("abnormality", "text"),
    )
    same_text: float = setting(
        0.95, "positives=text: cosine from which two reports say the same", minimum=-1, maximum=1
    )
    bank: str = setting(
        "prompts",
        "public texts to align with as well: the vocabulary's prompts, its attributes per modality, both, none",
        choices=("prompts", "attributes", "both", "none"),
    )
    hard_negatives: bool = setting(False, "the own report with side or negation turned, as further negatives")
    label_weight: float = setting(0.0, "weight of the classification by class prompts beside the contrast", minimum=0)
    consistency: float = setting(0.0, "weight of agreement between the modalities of one patient", minimum=0)
    hardness: float = setting(0.5, "dhn_nce: how much harder negatives weigh more", minimum=0, maximum=10)
    ot_mass: float = setting(
        0.9,
        "partial_ot: share of the pairs to transport; at most 1 - expected share of wrong reports",
        minimum=0.05,
        maximum=1,
    )
    ot_epsilon: float = setting(0.05, "partial_ot: entropic regularisation", minimum=1e-3, maximum=10)
    ot_form: str = setting(
        "weights",
        "partial_ot: transported cost, or transported mass as weights of InfoNCE",
        choices=("weights", "cost"),
    )
    queue: int = setting(
        0, "past records per organ kept as further candidates, within a round", minimum=0, maximum=65536
    )
    temperature: float = setting(0.1, "start of the learned temperature", minimum=1e-3, maximum=10)
    temperature_bounds: list[float] = setting([0.02, 0.5], "of the learned temperature")


@dataclass
class FinetuneConfig(OptimConfig):
    """Stage 2: detect abnormalities from any subset of modalities."""

    modality_dropout: float = setting(0.25, "chance to hide a present modality in training", minimum=0, maximum=0.95)
    supervised: str = setting(
        "cross_entropy",
        "loss on the labels; mixed: 0.4 cross-entropy + 0.6 focal",
        choices=("cross_entropy", "focal", "mixed"),
    )
    focal_gamma: float = setting(2.0, "focal: how much less easy patients weigh", minimum=0, maximum=10)
    label_smoothing: float = setting(0.05, "of the cross-entropy", minimum=0, maximum=0.9)
    supervised_floor: float = setting(
        0.5,
        "the cosine ramp lowers the supervised share from 1 to this; the rest is KL alignment; 1: no KL",
        minimum=0,
        maximum=1,
    )


@dataclass
class StagesConfig:
    """Both stages."""

    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
