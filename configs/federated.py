"""Settings of what passes between server and sites: how updates become a model, and how private they are."""

from __future__ import annotations

from dataclasses import dataclass

from configs.setting import ConfigError, setting


@dataclass
class StrategyConfig:
    """How updates become the next global model."""

    kind: str = setting(
        "modality_aware",
        "aggregate per module group over its owners, or (naive) everything over everyone",
        choices=("modality_aware", "naive"),
    )
    proximal_mu: float = setting(0.0, "FedProx: weight of the distance to the global model; 0: FedAvg", minimum=0)
    quorum: float = setting(
        0.5, "share of the sites that must return an update, or the round is void", minimum=0, maximum=1
    )
    round_timeout_s: float = setting(3600, "a round waits no longer than this", minimum=1)
    group_quorum: float = setting(
        0.0,
        "share of a module group's owners that must return it for it to change; 0: one is enough",
        minimum=0,
        maximum=1,
    )
    site_timeout_s: dict[str, float] = setting(
        {}, "site -> a round waits for it no longer than this, if less than round_timeout_s"
    )
    straggler_factor: float = setting(
        0.0,
        "with a quorum in, a round waits for the rest no longer than this times the slowest so far; 0: off",
        minimum=0,
    )
    join_timeout_s: float = setting(
        600, "how long to wait for sites, then for cards, at the start; and below quorum", minimum=0
    )
    card_timeout_s: float = setting(
        30, "how long a round's start waits for a new site, which else joins later", minimum=1
    )
    retries: int = setting(2, "void rounds that are tried again before the run stops", minimum=0)
    secure_aggregation: bool = setting(False, "the server learns sums over sites, no site's own update")
    secure_min: int = setting(
        3, "fewest sites whose updates may be summed; a module group with fewer owners is not trained", minimum=2
    )
    secure_clip: float = setting(
        1.0, "largest change of a parameter in a round; what is beyond is cut", minimum=1e-6, maximum=1e6
    )
    secure_bits: int = setting(
        32, "of a masked number: 32, or 16 for half the traffic and a coarser sum", choices=(16, 32)
    )
    secure_timeout_s: float = setting(120, "an exchange of keys or shares waits no longer than this", minimum=1)
    site_clip: float = setting(
        0.0, "largest norm of a site's whole update, sites weighing alike; the server sees to it; 0: off", minimum=0
    )
    site_noise_multiplier: float = setting(
        0.0, "noise over site_clip that the server adds to the sum of updates; 0: off", minimum=0, maximum=1000
    )
    robust: str = setting(
        "none",
        "what takes the place of the mean, so that a few bad sites cannot steer it; sites weigh alike",
        choices=("none", "trimmed_mean", "median", "krum"),
    )
    robust_faulty: int = setting(
        1, "bad sites that robust is to stand; a module group then needs 2 f + 1 sites, for krum 2 f + 3", minimum=1
    )
    alarm_ratio: float = setting(
        10.0,
        "an update so many times as far from the model as the others' is told as an alarm; 0: no alarms",
        minimum=0,
    )
    update_dtype: str = setting(
        "float32",
        "an update travels whole, or as its change in half (float16) or a quarter (int8) of the bytes",
        choices=("float32", "float16", "int8"),
    )

    def __post_init__(self) -> None:
        if 0 < self.straggler_factor < 1:
            raise ConfigError(
                f"strategy.straggler_factor={self.straggler_factor:g} would cut off sites that are no slower than the rest: "
                "take 1 or more, or 0 for off"
            )
        if 0 < self.alarm_ratio <= 1:
            raise ConfigError(
                f"strategy.alarm_ratio={self.alarm_ratio:g} would raise an alarm for every other site: take more than 1, or 0 "
                "for off"
            )
        for site, wait_s in self.site_timeout_s.items():
            if wait_s <= 0:
                raise ConfigError(f"strategy.site_timeout_s: {site} has {wait_s:g} s, take more than 0")
        needs_single_updates = {"site_clip": self.site_clip > 0, "robust": self.robust != "none"}
        for name, wanted in needs_single_updates.items():
            if wanted and self.secure_aggregation:
                raise ConfigError(
                    f"strategy.{name}={_said(getattr(self, name))} needs each site's own update, which "
                    "strategy.secure_aggregation=true hides: take one of the two"
                )
        if self.secure_aggregation and self.update_dtype != "float32":
            raise ConfigError(
                f"strategy.update_dtype={self.update_dtype} does not go with strategy.secure_aggregation=true, whose masked "
                "numbers have strategy.secure_bits: take update_dtype=float32"
            )
        if self.robust != "none" and self.site_clip:
            raise ConfigError(
                f"strategy.robust={self.robust} takes the place of the mean that strategy.site_clip={self.site_clip:g} and "
                "its noise are made for: take one of the two"
            )
        if self.robust != "none" and self.kind == "naive":
            raise ConfigError(
                f"strategy.robust={self.robust} with strategy.kind=naive would outvote the owners of a module group by those "
                "who send it back unchanged: take kind=modality_aware"
            )
        if self.site_noise_multiplier and not self.site_clip:
            raise ConfigError(
                f"strategy.site_noise_multiplier={self.site_noise_multiplier:g} is measured in strategy.site_clip, "
                "which is off: take a site_clip above 0"
            )


def _said(value: float | str) -> str:
    """A value as a person would write it."""
    return value if isinstance(value, str) else f"{value:g}"


@dataclass
class PrivacyConfig:
    """Patient-level differential privacy of every update that leaves a site; docs/privacy.md has the guarantee."""

    kind: str = setting(
        "none", "none: updates are not private; patient_dp: noise at the site, a ledger", choices=("none", "patient_dp")
    )
    epsilon: float = setting(8.0, "budget of a site's ledger over its whole life", minimum=0.01, maximum=1000)
    delta: float = setting(1e-5, "of the guarantee; less than 1 / patients", minimum=1e-12, maximum=0.1)
    noise_multiplier: float = setting(
        0.0, "noise over clip_norm; 0: solved, so that the planned rounds use the budget up", minimum=0, maximum=1000
    )
    clip_norm: float = setting(0.5, "largest norm of one patient's gradient", minimum=1e-6, maximum=1e6)
    sample_rate: float = setting(
        0.5, "chance of each patient to be in a step (Poisson sampling)", minimum=1e-6, maximum=1
    )
    steps: int = setting(3, "noisy steps per round", minimum=1, maximum=100_000)
    optimizer: str = setting(
        "sgd",
        "what steps on the noisy gradients, afresh each round; adam: a rate around 0.003",
        choices=("sgd", "adam"),
    )
    lr: float = setting(1.0, "its peak learning rate", minimum=1e-8, maximum=1000)
    trainable: str = setting(
        "all",
        "what trains under privacy: fewer parameters, less noise",
        choices=("all", "projections_heads", "adapters", "norms"),
    )
    adapter_rank: int = setting(4, "trainable=adapters: rank of a layer's change in a round", minimum=1, maximum=256)
    engine: str = setting(
        "auto",
        "gradients per patient layer by layer, by vmap, a loop, or Opacus' hooks; auto: the quickest of the first three",
        choices=("auto", "layers", "vmap", "loop", "hooks"),
    )
    chunk: int = setting(
        0, "patients computed at once: memory against time; 0: 8 by layers, 2 by vmap or hooks", minimum=0, maximum=4096
    )
    secure_noise: bool = setting(True, "noise from a ChaCha20 keystream; false: from torch, faster")
    ledger_dir: str | None = setting(None, "folder of the site's ledger, SITE.db; None: beside its manifest")
    statistics_epsilon: float = setting(
        0.0, "spent before training on noisy statistics of the cohort; 0: none are asked for", minimum=0, maximum=1000
    )
    shift_epsilon: float = setting(
        0.0, "spent before training on noisy moments of image features, which show how far sites are apart; 0: none",
        minimum=0, maximum=1000,
    )  # fmt: skip
    landmarks_epsilon: float = setting(
        0.0, "spent before training on noisy landmarks, of which a common intensity scale is made; 0: none",
        minimum=0, maximum=1000,
    )  # fmt: skip
    validations: int = setting(
        0,
        "models that sites validate at the end by a noisy histogram: the federated one, then the baselines",
        minimum=0,
    )
    validation_epsilon: float = setting(1.0, "spent on each of them", minimum=0.001, maximum=1000)
    validation_bins: int = setting(8, "score bins of the histogram", minimum=2, maximum=256)
    validation_split: str = setting("test", "whose scores", choices=("train", "val", "test", "common"))
