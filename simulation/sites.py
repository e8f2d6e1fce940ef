"""Which virtual hospitals there are: the `sites` config in, `SiteSpec`s out. partition.py places a manifest's patients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from configs.schema import SitesConfig
from configs.setting import ConfigError
from medmap_model.vocabulary import Vocabulary
from simulation import skews
from simulation.phantom.hospitals import MIXED
from simulation.phantom.kinds import KINDS

EXTERNAL = "external"
# One scanner for all where a partition is about something else than scanners.
_SAME_SCANNER = "aster-3T"


@dataclass(frozen=True)
class OrganShare:
    """What one hospital has of one organ.

    train/val/test: patients per split, in the hospital's own label mix; common: balanced test patients.
    modalities: the slots it owns. mix: kind of patient -> probability (phantom kinds, or the vocabulary's
    abnormalities).
    """

    train: int
    val: int
    test: int
    common: int
    modalities: tuple[str, ...]
    mix: Mapping[str, float]


@dataclass(frozen=True)
class SiteSpec:
    """One virtual hospital. `external`: never trained on, all its patients are test patients."""

    name: str
    scanner: str
    organs: Mapping[str, OrganShare]
    missing_rate: float = 0.0
    unreported_rate: float = 0.0
    external: bool = False


def plan_sites(config: SitesConfig, vocabulary: Vocabulary, *, seed: int) -> list[SiteSpec]:
    """The phantom's hospitals, those trained on first, the external one last; ConfigError for an impossible plan."""
    from simulation.phantom.tissues import MODALITIES

    if config.kind in ("natural", "scanner_clusters"):
        raise ConfigError(f"sites.kind={config.kind} takes sites from a manifest: it needs data.kind=manifest")
    kinds: dict[str, tuple[str, ...]] = {}
    for organ in wanted_organs(config, vocabulary):
        lacking = set(KINDS.get(organ, {}).values()) - set(vocabulary.organs[organ].abnormalities)
        strange = set(vocabulary.organs[organ].modalities) - set(MODALITIES.get(organ, ()))
        if organ not in KINDS or lacking or strange:
            what = ", ".join(sorted(strange or lacking)) or organ
            raise ConfigError(
                f"the phantom does not fit the vocabulary's {organ} ({what}): restrict sites.organs to "
                f"{' or '.join(KINDS)}, or use data.kind=manifest"
            )
        kinds[organ] = tuple(KINDS[organ])
    specs = plan_training(config, vocabulary, kinds, seed=seed)
    if config.external_patients:
        owned = {(o, m) for spec in specs for o, share in spec.organs.items() for m in share.modalities}
        organs = {
            organ: OrganShare(
                0, 0, config.external_patients, 0,
                tuple(m for m in vocabulary.organs[organ].modalities if (organ, m) in owned), skews.even(organ, names),
            )
            for organ, names in kinds.items()
            if any(o == organ for o, _ in owned)
        }  # fmt: skip
        from simulation.phantom.scanners import EXTERNAL as SCANNER

        specs.append(SiteSpec(EXTERNAL, SCANNER, organs, external=True))
    return specs


def wanted_organs(config: SitesConfig, vocabulary: Vocabulary) -> list[str]:
    """The vocabulary's organs, or those of `sites.organs`. Raises ConfigError for an unknown one."""
    for organ in config.organs:
        if organ not in vocabulary.organs:
            raise ConfigError(f"sites.organs={organ} is not in the vocabulary: take {', '.join(vocabulary.organs)}")
    return [o for o in vocabulary.organs if not config.organs or o in config.organs]


def plan_training(config: SitesConfig, vocabulary: Vocabulary, kinds: skews.Kinds, *, seed: int) -> list[SiteSpec]:
    """The hospitals that train. kinds: organ -> what a patient of it can be. Raises ConfigError."""
    if config.external_site:
        raise ConfigError(
            f"sites.external_site={config.external_site}: sites={config.kind} has no such hospital; it holds out "
            "sites.external_patients"
        )
    if config.kind == "mixed" and _fits(vocabulary, kinds):
        return _mixed(config, vocabulary, kinds)
    skews.check(config, vocabulary, kinds)
    specs = []
    for i, size in enumerate(skews.sizes(config, seed=seed)):
        shares = {}
        for position, (organ, names) in enumerate(kinds.items()):
            if config.kind == "organ_split" and i % len(kinds) != position:
                continue
            if slots := skews.modalities(config, vocabulary, organ, i):
                mix = skews.mix(config, organ, names, site=i, seed=seed)
                shares[organ] = _share(config, size, slots, mix)
        name = f"{config.kind.replace('_', '-')}-{i + 1}"
        if not shares:
            raise ConfigError(f"hospital {name} would lack every modality: leave it one in sites.lacking")
        specs.append(SiteSpec(name, _SAME_SCANNER, shares, config.missing_rate, config.unreported_rate))
    return specs


def _mixed(config: SitesConfig, vocabulary: Vocabulary, kinds: skews.Kinds) -> list[SiteSpec]:
    """The hospitals of the table that have one of the organs, in turn; from the second turn on with another scanner."""
    fitting = [(n, s, p) for n, s, p in MIXED if any(o in kinds for o in p)]
    specs = []
    for i in range(config.count):
        name, make, parts = fitting[i % len(fitting)]
        turn = i // len(fitting) + 1
        shares = {
            organ: _share(config, part.size, part.modalities, _sum(part.mix, kinds[organ], organ))
            for organ, part in parts.items()
            if organ in kinds
        }
        suffix = (f"-{turn}", f"/{turn}") if turn > 1 else ("", "")
        specs.append(SiteSpec(name + suffix[0], make + suffix[1], shares, config.missing_rate, config.unreported_rate))
    return specs


def _fits(vocabulary: Vocabulary, kinds: skews.Kinds) -> bool:
    """Whether the table of mixed hospitals speaks of this vocabulary's organs, modalities and kinds."""
    table = [(organ, part) for _, _, parts in MIXED for organ, part in parts.items() if organ in kinds]
    return set(kinds) <= {organ for organ, _ in table} and all(
        set(part.modalities) <= set(vocabulary.organs[organ].modalities)
        and {k if k in kinds[organ] else KINDS[organ][k] for k in part.mix} <= set(kinds[organ])
        for organ, part in table
    )


def _sum(mix: Mapping[str, float], names: Iterable[str], organ: str) -> dict[str, float]:
    """A mix over phantom kinds as one over `names`: the kinds themselves, or the abnormalities they count as."""
    total = dict.fromkeys(names, 0.0)
    for kind, share in mix.items():
        total[kind if kind in total else KINDS[organ][kind]] += share
    return total


def _share(config: SitesConfig, size: float, modalities: tuple[str, ...], mix: Mapping[str, float]) -> OrganShare:
    train = max(min(2, config.patients), int(config.patients * size))  # one patient alone has nothing to contrast with
    return OrganShare(train, config.validation_patients, config.test_patients, config.common_patients, modalities, mix)
