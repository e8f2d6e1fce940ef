"""In what the hospitals of a partition differ: their sizes, their modalities and their label mixes, one function each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from configs.schema import SitesConfig
from configs.setting import ConfigError
from medmap_model.vocabulary import Vocabulary
from simulation.phantom.kinds import KINDS

Kinds = Mapping[str, Sequence[str]]  # organ -> what a patient of it can be: phantom kinds, or abnormalities


def check(config: SitesConfig, vocabulary: Vocabulary, kinds: Kinds) -> None:
    """Raise ConfigError for a partition that these organs do not allow."""
    if config.kind == "organ_split" and config.count < len(kinds):
        raise ConfigError(
            f"sites.count={config.count} cannot give each of {len(kinds)} organs ({', '.join(kinds)}) a hospital: "
            f"take {len(kinds)} or more, or restrict sites.organs"
        )
    for organ, names in kinds.items():
        most, classes = len(vocabulary.organs[organ].modalities), len(_classes(organ, names))
        if config.kind == "modality_skew" and config.modalities_per_site > most:
            raise ConfigError(
                f"sites.modalities_per_site={config.modalities_per_site}: {organ} has only {most} modalities"
            )
        if config.kind == "shards" and config.classes_per_site > classes:
            raise ConfigError(f"sites.classes_per_site={config.classes_per_site}: {organ} has only {classes}")
        if config.kind == "shards" and config.count * config.classes_per_site < classes:
            raise ConfigError(
                f"{config.count} hospitals with {config.classes_per_site} abnormalities each leave some of {organ}'s "
                f"{classes} without one: take a larger sites.count or sites.classes_per_site"
            )


def sizes(config: SitesConfig, *, seed: int) -> list[float]:
    """Each hospital's size relative to `sites.patients`; their mean is 1."""
    if config.kind != "quantity_skew":
        return [1.0] * config.count
    return [config.count * share for share in _dirichlet(config.alpha, config.count, [seed, *b"sizes"])]


def modalities(config: SitesConfig, vocabulary: Vocabulary, organ: str, site: int) -> tuple[str, ...]:
    """What a hospital acquires of an organ, in the vocabulary's order; may be nothing. Raises ConfigError."""
    slots = vocabulary.organs[organ].modalities
    if config.kind in ("modality_skew", "mixed"):
        size = config.modalities_per_site if config.kind == "modality_skew" else (len(slots) + 1) // 2
        own = {(site * size + j) % len(slots) for j in range(size)}
        return tuple(m for j, m in enumerate(slots) if j in own)
    if config.kind != "phase_availability":
        return slots
    if not config.lacking:
        return tuple(m for j, m in enumerate(slots) if len(slots) == 1 or j != site % len(slots))
    joined = config.lacking[site % len(config.lacking)]
    try:
        lacking = vocabulary.modalities_in(joined)
    except ValueError as error:
        raise ConfigError(f"sites.lacking={joined}: {error}") from None
    return tuple(m for m in slots if m not in lacking)


def mix(config: SitesConfig, organ: str, names: Sequence[str], *, site: int, seed: int) -> dict[str, float]:
    """A hospital's label mix: each of `names` -> its share; the shares add up to 1."""
    if config.kind in ("label_skew", "mixed"):
        shares = _dirichlet(config.alpha, len(names), [seed, site, *organ.encode()])
        return dict(zip(names, shares, strict=True))
    if config.kind == "shards":
        return _shard(config, organ, names, site=site, seed=seed)
    return even(organ, names)


def even(organ: str, names: Iterable[str]) -> dict[str, float]:
    """Every abnormality equally often: a brain is normal as often as it has a tumour of any kind."""
    counts_as = _counts_as(organ, names)
    groups = Counter(counts_as.values())
    return {name: 1 / (len(groups) * groups[abnormality]) for name, abnormality in counts_as.items()}


def _shard(config: SitesConfig, organ: str, names: Sequence[str], *, site: int, seed: int) -> dict[str, float]:
    """The abnormalities in a random order, dealt in turn: each hospital has different ones, each is dealt as often."""
    import numpy as np

    classes = _classes(organ, names)
    order = np.random.default_rng([seed, *organ.encode()]).permutation(len(classes))
    first = site * config.classes_per_site
    own = {classes[order[(first + j) % len(classes)]] for j in range(config.classes_per_site)}
    counts_as = _counts_as(organ, names)
    return dict.fromkeys(names, 0.0) | even(organ, [name for name in names if counts_as[name] in own])


def _counts_as(organ: str, names: Iterable[str]) -> dict[str, str]:
    """Each name's abnormality: of a phantom kind another, of an abnormality itself."""
    return {name: KINDS.get(organ, {}).get(name, name) for name in names}


def _classes(organ: str, names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(_counts_as(organ, names).values()))


def _dirichlet(alpha: float, parts: int, seed: Sequence[int]) -> list[float]:
    """Random shares that add up to 1; the smaller alpha, the more uneven."""
    import numpy as np

    rng = np.random.default_rng(seed)
    draw = rng.dirichlet([alpha] * parts)
    if not np.isfinite(draw).all():  # a tiny alpha underflows: everything falls on one part
        draw = np.eye(parts)[rng.integers(parts)]
    return [float(share) for share in draw]
