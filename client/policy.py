"""What a hospital itself demands, whatever a run's settings say: its site.yaml.

name: north
manifest: /data/mri/manifest.csv
cache_dir: /data/medmap-cache
privacy:
  required: true          # no update and no figure without noise; so it is where there is a privacy section at all
  ledger: /data/north.db  # charged for everything that leaves
  epsilon: 8              # the ledger's budget, over its life
  delta: 1e-5
  cohort: hidden          # the numbers of patients and volumes are told with noise, once
  cohort_epsilon: 0.5
egress:
  metrics: [loss, val_loss]
  minimum_cohort: 5       # take part with no fewer patients behind a number
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from client.problems import SiteError
from configs.documents import read_document
from configs.federated import PrivacyConfig, StrategyConfig
from configs.setting import setting
from medmap_model.contract import METRICS


@dataclass(frozen=True)
class Privacy:
    """The privacy section; a run's settings have no say in any of it."""

    required: bool = setting(True, "take part in no run without privacy; false: updates may leave without noise")
    ledger: Path | None = setting(None, "the ledger's file; none: NAME.db beside the manifest")
    epsilon: float = setting(
        PrivacyConfig.epsilon, "the ledger's budget, over its whole life", minimum=1e-6, maximum=1000
    )
    delta: float = setting(PrivacyConfig.delta, "of the guarantee; below 1 / patients", minimum=1e-12, maximum=0.1)
    cohort: str = setting(
        "public",
        "the site's numbers of patients and volumes: told as they are, or (hidden) with noise, charged once",
        choices=("public", "hidden"),
    )
    cohort_epsilon: float = setting(0.5, "what a hidden cohort costs", minimum=1e-6, maximum=1000)
    tell_budget: bool = setting(True, "tell the coordinator, with each private reply, what of the budget is spent")

    def over(self, run: PrivacyConfig) -> PrivacyConfig:
        """The run's settings with the site's own budget and ledger in their place, and noise from the keystream."""
        return replace(run, epsilon=self.epsilon, delta=self.delta, ledger_dir=None, secure_noise=True)


@dataclass(frozen=True)
class Egress:
    """The egress section: what a reply may hold (`client.gate.egress`)."""

    metrics: tuple[str, ...] = setting(
        tuple(METRICS), "figures that may leave, where privacy lets any", choices=tuple(METRICS)
    )
    minimum_cohort: int = setting(
        5,
        "tell no number with fewer patients behind it (0 is told), so take no part; no figure of fewer studies",
        minimum=0,
    )
    maximum_mb: float = setting(1000, "no reply is larger, megabytes", minimum=1e-3)
    maximum_request_mb: float = setting(2000, "no request is larger; one that is stops on its way in", minimum=1e-3)
    require_secure_aggregation: bool = setting(False, "no update leaves but masked, in a secure sum")
    secure_minimum: int = setting(3, "take part in no secure sum over fewer sites, this one included", minimum=2)
    vocabulary: Path | None = setting(
        None, "a YAML with the modalities and organs that a reply may name; none: the installed package's own"
    )
    folder: Path | None = setting(
        None, "what the gate keeps: approved bundles and the audit log; none: gate, beside this file"
    )

    def too_few(self, what: str) -> str:
        """The sentence for a number with fewer than `minimum_cohort` patients behind it."""
        return (
            f"{what}, and site.yaml has egress.minimum_cohort {self.minimum_cohort}: leave these rows out of the manifest, have "
            "more, or lower it"
        )

    def check_cohort(self, patients: Mapping[str, int]) -> None:
        """Raises SiteError (`egress`) for a number with few patients behind it. patients: the number in words -> so many.

        The site asks it: a card, which is all that the gate sees, has the volumes of a modality, not its patients.
        """
        for what, n in patients.items():
            if n < self.minimum_cohort:
                raise SiteError("egress", self.too_few(f"{what}: {n} patients"))

    def check_sum(self, run: StrategyConfig) -> None:
        """Raises SiteError (`policy`) for a run that could have this site's update summed with too few others."""
        if run.secure_aggregation and run.secure_min < self.secure_minimum:
            raise SiteError(
                "policy",
                f"the run sums {run.secure_min} sites or more (strategy.secure_min), and site.yaml has egress.secure_minimum "
                f"{self.secure_minimum}: ask the coordinator for that many",
            )


# Of a site without a site.yaml (simulated, or `manifest=` in the node config): what the contract allows.
SIMULATED = Egress(minimum_cohort=0, secure_minimum=2)


@dataclass(frozen=True)
class SiteSettings:
    """A hospital's site.yaml: where its data are, and what it demands of every run."""

    manifest: Path = field(metadata={"help": "the CSV with a row per volume"})
    name: str | None = setting(None, "the hospital's name in the federation; none: the name of the manifest's folder")
    cache_dir: Path | None = setting(None, "where prepared volumes are kept; none: .medmap-cache beside the manifest")
    cache_gb: float = setting(0.0, "most that they take on the disk; those used longest ago go; 0: no bound", minimum=0)
    privacy: Privacy = field(default_factory=lambda: Privacy(required=False))  # no section: as the run says
    egress: Egress = field(default_factory=Egress)


@dataclass(frozen=True)
class SiteFile:
    """A site.yaml, read and checked. gate: the folder of the gate."""

    manifest: Path
    name: str
    cache_dir: Path
    cache_gb: float
    privacy: Privacy
    egress: Egress
    gate: Path

    @property
    def ledger(self) -> Path:
        """The ledger's file, whether or not it is there yet."""
        return self.privacy.ledger or self.manifest.parent / f"{self.name}.db"


def read_site(path: Path) -> SiteFile:
    """Raises ConfigError: file, line, setting, what to do. Paths are relative to the file."""
    said = read_document(path, SiteSettings)
    folder = said.manifest.parent
    cache = said.cache_dir or folder / ".medmap-cache"
    gate = said.egress.folder or path.parent / "gate"
    return SiteFile(said.manifest, said.name or folder.name, cache, said.cache_gb, said.privacy, said.egress, gate)
