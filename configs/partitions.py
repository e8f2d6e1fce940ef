"""How patients become virtual hospitals: the settings of `sites`, part of `configs.schema`; docs/partitions.md has each kind."""

from __future__ import annotations

from dataclasses import dataclass

from configs.setting import setting


@dataclass
class SitesConfig:
    """How patients become virtual hospitals."""

    kind: str = setting(
        "mixed",
        "partition",
        choices=(
            "mixed",
            "iid",
            "label_skew",
            "shards",
            "quantity_skew",
            "modality_skew",
            "phase_availability",
            "organ_split",
            "natural",
            "scanner_clusters",
        ),
    )
    count: int = setting(6, "hospitals that train", minimum=1, maximum=1000)
    patients: int = setting(80, "training patients per hospital and organ", minimum=1)
    organs: list[str] = setting([], "restrict to these organs; empty: all of the vocabulary")
    validation_patients: int = setting(16, "validation patients per hospital and organ", minimum=0)
    test_patients: int = setting(28, "test patients per hospital and organ, in the hospital's own label mix", minimum=0)
    common_patients: int = setting(
        28, "balanced test patients per hospital's scanner and modality subset, and organ", minimum=0
    )
    external_patients: int = setting(70, "balanced test patients per organ of a hospital never trained on", minimum=0)
    alpha: float = setting(0.5, "label_skew, quantity_skew: Dirichlet concentration; small is skewed", minimum=0.01)
    classes_per_site: int = setting(2, "shards: abnormalities that each hospital sees, per organ", minimum=1)
    modalities_per_site: int = setting(2, "modality_skew: modalities that each hospital owns, per organ", minimum=1)
    lacking: list[str] = setting(
        [],
        "phase_availability: what each hospital lacks, in turn, such as [T1ce+C+A, DWI, '']; empty: one modality, in turn",
    )
    missing_rate: float = setting(0.15, "training patients who lack one more modality", minimum=0, maximum=1)
    unreported_rate: float = setting(0.1, "training patients without a report", minimum=0, maximum=1)
    column: str = setting("site", "natural: the manifest's column that names the hospital")
    external_site: str | None = setting(
        None, "natural, scanner_clusters: the hospital that is never trained on (scanner-2)"
    )
