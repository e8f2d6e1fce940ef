"""Who the patients are: a hospital's spec in; its cases out, in a fixed order, each with its kind and its slots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from medmap_model.vocabulary import Vocabulary
from simulation.phantom.grid import Rng
from simulation.phantom.kinds import KINDS, PhantomError, balanced
from simulation.phantom.lesions import RECIPES
from simulation.phantom.scanners import SCANNERS
from simulation.phantom.study import Case, random_stream
from simulation.phantom.tissues import MODALITIES
from simulation.sites import OrganShare, SiteSpec


def cases_of(site: SiteSpec, seed: int) -> Iterator[Case]:
    """Every patient of a hospital: train, val, test in its own mix; common, and all of an external one's, balanced.

    Only training patients lack modalities or a report.
    """
    for organ, share in site.organs.items():
        number = 0
        for split in ("train", "val", "test", "common"):
            count: int = getattr(share, split)
            rng = random_stream(seed, site.name, organ, split)
            even = split == "common" or site.external
            kinds = balanced(organ, count) if even else _in_mix(share.mix, count, rng)
            for i, kind in enumerate(kinds):
                patient = f"{site.name}-{organ}-{number:04d}"
                decoy = _decoy(organ, i, share.mix, rng, even=even)
                modalities, reported = share.modalities, True
                if split == "train":
                    modalities, reported = _gaps(site, share, random_stream(seed, patient, "record"))
                yield Case(patient, site.name, organ, kind, decoy, split, site.scanner, modalities, reported)
                number += 1


def single_case(
    organ: str,
    kind: str,
    name: str,
    *,
    scanner: str = "aster-3T",
    modalities: Sequence[str] | None = None,
    decoy: str | None = None,
) -> Case:
    """One patient outside any plan: for looking, measuring and testing."""
    real = next(k for k in KINDS[organ] if (organ, k) in RECIPES)
    slots = tuple(MODALITIES[organ] if modalities is None else modalities)
    return Case(name, "alone", organ, kind, decoy or real, "test", scanner, slots)


def check_specs(specs: Sequence[SiteSpec], vocabulary: Vocabulary) -> None:
    """Raise PhantomError for what the phantom cannot simulate or the vocabulary does not know."""
    names = [s.name for s in specs]
    if len(set(names)) != len(names):
        raise PhantomError(f"two sites have the same name: {', '.join(names)}")
    if not any(
        getattr(share, k) for s in specs for share in s.organs.values() for k in ("train", "val", "test", "common")
    ):
        raise PhantomError("the plan has no patients: raise sites.patients")
    for site in specs:
        if site.scanner.partition("/")[0] not in SCANNERS:
            raise PhantomError(f"{site.name}: no scanner {site.scanner}; take one of {', '.join(SCANNERS)}")
        for organ, share in site.organs.items():
            if organ not in KINDS or organ not in vocabulary.organs:
                raise PhantomError(f"{site.name}: the phantom simulates {' and '.join(KINDS)}, not '{organ}'")
            for modality in share.modalities:
                if modality not in MODALITIES[organ] or modality not in vocabulary.organs[organ].modalities:
                    known = ", ".join(MODALITIES[organ])
                    raise PhantomError(f"{site.name}: no {organ} modality '{modality}' here; known: {known}")
            strange = [k for k in share.mix if k not in KINDS[organ]]
            if strange or not sum(share.mix.values()) > 0 or not share.modalities:
                known = ", ".join(KINDS[organ])
                raise PhantomError(f"{site.name}.{organ}: needs modalities and a mix of {known}; got {dict(share.mix)}")


def _in_mix(mix: Mapping[str, float], count: int, rng: Rng) -> list[str]:
    """`count` kinds in the proportions of a mix, as nearly as whole patients allow, in random order."""
    edges = np.cumsum([mix[k] for k in mix]) / sum(mix.values())
    points = (np.arange(count) + rng.random()) / max(count, 1)
    kinds = [list(mix)[min(int(np.searchsorted(edges, p)), len(mix) - 1)] for p in points]
    return [kinds[i] for i in rng.permutation(count)]


def _decoy(organ: str, i: int, mix: Mapping[str, float], rng: Rng, *, even: bool) -> str:
    """Whose place a patient without a lesion takes: drawn as the kinds with one are, so that place tells nothing."""
    real = [k for k in KINDS[organ] if (organ, k) in RECIPES]
    if even:
        without = len(KINDS[organ]) > len(real)
        return real[(i // 2 if without else i) % len(real)]
    weights = np.array([mix.get(k, 0.0) for k in real])
    if not weights.sum() > 0:
        weights = np.ones(len(real))
    return real[int(rng.choice(len(real), p=weights / weights.sum()))]


def _gaps(site: SiteSpec, share: OrganShare, rng: Rng) -> tuple[tuple[str, ...], bool]:
    """A training patient's modalities and whether there is a report."""
    modalities = share.modalities
    lacks, silent, which = rng.random() < site.missing_rate, rng.random() < site.unreported_rate, rng.random()
    if lacks and len(modalities) > 1:
        gone = int(which * len(modalities))
        modalities = modalities[:gone] + modalities[gone + 1 :]
    return modalities, not silent
