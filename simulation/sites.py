"""Which virtual hospitals there are: the `sites` config in; `SiteSpec`s, or a manifest's rows per site, out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from configs.schema import SitesConfig
from configs.setting import ConfigError
from medmap_model.vocabulary import Vocabulary
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

    if config.kind == "natural":
        raise ConfigError("sites.kind=natural takes sites from a manifest: it needs data.kind=manifest")
    kinds: dict[str, tuple[str, ...]] = {}
    for organ in _organs(config, vocabulary):
        lacking = set(KINDS.get(organ, {}).values()) - set(vocabulary.organs[organ].abnormalities)
        strange = set(vocabulary.organs[organ].modalities) - set(MODALITIES.get(organ, ()))
        if organ not in KINDS or lacking or strange:
            what = ", ".join(sorted(strange or lacking)) or organ
            raise ConfigError(
                f"the phantom does not fit the vocabulary's {organ} ({what}): restrict sites.organs to "
                f"{' or '.join(KINDS)}, or use data.kind=manifest"
            )
        kinds[organ] = tuple(KINDS[organ])
    specs = _plan(config, vocabulary, kinds, seed)
    if config.external_patients:
        owned = {(o, m) for spec in specs for o, share in spec.organs.items() for m in share.modalities}
        organs = {
            organ: OrganShare(
                0, 0, config.external_patients, 0,
                tuple(m for m in vocabulary.organs[organ].modalities if (organ, m) in owned), _even(organ, names),
            )
            for organ, names in kinds.items()
            if any(o == organ for o, _ in owned)
        }  # fmt: skip
        from simulation.phantom.scanners import EXTERNAL as SCANNER

        specs.append(SiteSpec(EXTERNAL, SCANNER, organs, external=True))
    return specs


def _organs(config: SitesConfig, vocabulary: Vocabulary) -> list[str]:
    for organ in config.organs:
        if organ not in vocabulary.organs:
            raise ConfigError(f"sites.organs={organ} is not in the vocabulary: take {', '.join(vocabulary.organs)}")
    return [o for o in vocabulary.organs if not config.organs or o in config.organs]


def _plan(
    config: SitesConfig, vocabulary: Vocabulary, kinds: Mapping[str, tuple[str, ...]], seed: int
) -> list[SiteSpec]:
    """The hospitals that train. `kinds`: organ -> what a patient of it can be."""
    organs = list(kinds)
    if config.kind == "mixed" and _fits(vocabulary, kinds):
        return _mixed(config, vocabulary, kinds)
    if config.kind == "organ_split" and config.count < len(organs):
        raise ConfigError(
            f"sites.count={config.count} cannot give each of {len(organs)} organs ({', '.join(organs)}) a hospital: "
            f"take {len(organs)} or more, or restrict sites.organs"
        )
    if config.kind == "modality_skew":
        for organ in organs:
            most = len(vocabulary.organs[organ].modalities)
            if config.modalities_per_site > most:
                raise ConfigError(
                    f"sites.modalities_per_site={config.modalities_per_site}: {organ} has only {most} modalities"
                )
    specs = []
    for i in range(config.count):
        shares = {}
        for position, organ in enumerate(organs):
            if config.kind == "organ_split" and i % len(organs) != position:
                continue
            slots = vocabulary.organs[organ].modalities
            if config.kind in ("modality_skew", "mixed"):
                size = config.modalities_per_site if config.kind == "modality_skew" else (len(slots) + 1) // 2
                own = {(i * size + j) % len(slots) for j in range(size)}
                slots = tuple(m for j, m in enumerate(slots) if j in own)
            skewed = config.kind in ("label_skew", "mixed")
            mix = _skewed(kinds[organ], config.alpha, seed, i, organ) if skewed else _even(organ, kinds[organ])
            shares[organ] = _share(config, 1.0, slots, mix)
        name = f"{config.kind.replace('_', '-')}-{i + 1}"
        specs.append(SiteSpec(name, _SAME_SCANNER, shares, config.missing_rate, config.unreported_rate))
    return specs


def _mixed(config: SitesConfig, vocabulary: Vocabulary, kinds: Mapping[str, tuple[str, ...]]) -> list[SiteSpec]:
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


def _fits(vocabulary: Vocabulary, kinds: Mapping[str, tuple[str, ...]]) -> bool:
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
    train = max(1, int(config.patients * size))
    return OrganShare(train, config.validation_patients, config.test_patients, config.common_patients, modalities, mix)


def _even(organ: str, names: Iterable[str]) -> dict[str, float]:
    """Every abnormality equally often: a brain is normal as often as it has a tumour of any kind."""
    counts_as = {name: KINDS.get(organ, {}).get(name, name) for name in names}
    sizes = Counter(counts_as.values())
    return {name: 1 / (len(sizes) * sizes[abnormality]) for name, abnormality in counts_as.items()}


def _skewed(names: Iterable[str], alpha: float, seed: int, site: int, organ: str) -> dict[str, float]:
    """A Dirichlet draw of label shares."""
    import numpy as np

    names = list(names)
    rng = np.random.default_rng([seed, site, *organ.encode()])
    draw = rng.dirichlet([alpha] * len(names))
    if not np.isfinite(draw).all():  # a tiny alpha underflows: everything falls on one label
        draw = np.eye(len(names))[rng.integers(len(names))]
    return {n: float(p) for n, p in zip(names, draw, strict=True)}


def partition_manifest(
    rows: list[dict[str, str]], config: SitesConfig, vocabulary: Vocabulary, *, seed: int
) -> dict[str, list[dict[str, str]]]:
    """A manifest's rows per site, the external site last; every row says its `site` and `split`.

    natural: by `config.column`. Otherwise patients, never volumes, go to the sites of the plan in the proportions
    of the sites' label mixes; rows of modalities that a site does not own are dropped. A `split` that is given
    stays; else a hash of the patient id decides (70/10/20). The external site (`config.external_site`, or a
    random share) has test patients only. Rows are copied. Raises ConfigError where a site would be empty or
    a column is missing.
    """
    if config.kind == "natural":
        groups = _by_column(rows, config)
    else:
        groups = _by_plan(rows, config, vocabulary, seed)
    external = (config.external_site if config.kind == "natural" else None) or EXTERNAL
    placed = {}
    for name, mine in sorted(groups.items(), key=lambda item: item[0] == external):
        if not mine:
            raise ConfigError(
                f"no patient of the manifest falls to site {name}: take a smaller sites.count, a larger sites.alpha, "
                "or more patients"
            )
        placed[name] = [
            {**row, "site": name, "split": "test" if name == external else row.get("split") or _split(row)}
            for row in mine
        ]
    return placed


def _split(row: Mapping[str, str]) -> str:
    from client.manifest import split_of

    return split_of(row["patient_id"])


def _by_column(rows: list[dict[str, str]], config: SitesConfig) -> dict[str, list[dict[str, str]]]:
    groups: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        if config.column not in row:
            raise ConfigError(f"sites.column={config.column}: the manifest's columns are {', '.join(row)}")
        name = (row[config.column] or "").strip()
        if not name:
            raise ConfigError(f"sites.column={config.column} is empty for patient {row['patient_id']}: fill it in")
        groups.setdefault(name, []).append(row)
    if config.external_site and config.external_site not in groups:
        raise ConfigError(f"sites.external_site={config.external_site} is not one of {', '.join(groups)}")
    if config.external_site and len(groups) == 1:
        raise ConfigError(f"sites.external_site={config.external_site} is the only site: none is left to train")
    return groups


def _by_plan(
    rows: list[dict[str, str]], config: SitesConfig, vocabulary: Vocabulary, seed: int
) -> dict[str, list[dict[str, str]]]:
    """Patients to the planned sites, label by label: mixes come as near the plan's as whole patients allow."""
    import numpy as np

    wanted = _organs(config, vocabulary)
    owner = {m: organ for organ in reversed(wanted) for m in vocabulary.organs[organ].modalities}
    patients: dict[str, tuple[str, str]] = {}  # patient -> organ, abnormality
    for row in rows:
        organ = row.get("organ") or owner.get(row["modality"], "")
        if organ in wanted and not patients.get(row["patient_id"], ("", ""))[1]:
            patients[row["patient_id"]] = (organ, row.get("abnormality") or "")
    names = {o: vocabulary.organs[o].abnormalities for o in wanted if o in {p[0] for p in patients.values()}}
    specs = _plan(config, vocabulary, names, seed)
    home: dict[str, str] = {}
    for group in sorted(set(patients.values())):
        organ, label = group
        members = sorted(p for p, key in patients.items() if key == group)
        rng = np.random.default_rng([seed, *f"{organ}/{label}".encode()])
        members = [members[i] for i in rng.permutation(len(members))]
        if config.external_patients:
            share = min(
                config.external_patients / sum(o == organ for o, _ in patients.values()), 1 / (config.count + 1)
            )
            cut = int(len(members) * share + rng.random())
            home.update(dict.fromkeys(members[:cut], EXTERNAL))
            members = members[cut:]
        having = [s for s in specs if organ in s.organs]
        weights = np.array(
            [s.organs[organ].train * (s.organs[organ].mix[label] if label else 1.0) for s in having], float
        )
        edges = np.cumsum(weights if weights.sum() > 0 else np.ones(len(having)))
        points = (np.arange(len(members)) + rng.random()) / max(len(members), 1)
        for member, place in zip(members, np.searchsorted(edges / edges[-1], points), strict=True):
            home[member] = having[min(int(place), len(having) - 1)].name
    slots = {s.name: {m for share in s.organs.values() for m in share.modalities} for s in specs}
    owned = set().union(*slots.values())
    if config.external_patients:
        slots[EXTERNAL] = owned
    groups: dict[str, list[dict[str, str]]] = {name: [] for name in slots}
    for row in rows:
        name = home.get(row["patient_id"])
        if name and row["modality"] in slots[name]:
            groups[name].append(row)
    return groups
