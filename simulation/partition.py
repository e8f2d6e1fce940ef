"""A manifest's patients to virtual hospitals: its rows (a dict per volume) in; rows per site with `site` and `split`, out.

Patients, never volumes, are placed. The split of a patient depends on neither the partition nor its seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from configs.schema import SitesConfig
from configs.setting import ConfigError
from medmap_model.vocabulary import Organ, Vocabulary
from simulation.clusters import COLUMN
from simulation.sites import EXTERNAL, SiteSpec, plan_training, wanted_organs

Row = dict[str, str]
_LONGEST = 80  # characters of a site's name
_TRAIN, _VAL = 0.7, 0.8  # of a stratum's patients: where training ends, and where validation ends


@dataclass(frozen=True)
class Stratum:
    """What a patient counts as: that of the first study with a label, else of the first one."""

    organ: str
    label: str


def partition_manifest(
    rows: Sequence[Row], config: SitesConfig, vocabulary: Vocabulary, *, seed: int
) -> dict[str, list[Row]]:
    """A manifest's rows per site, the external site last; every row says its `site` and `split`.

    natural: by `config.column`; scanner_clusters: by the column that `simulation.clusters` wrote. Otherwise patients go to
    the sites of the plan in the proportions of the sites' sizes and label mixes; rows of modalities that a site does not
    own are dropped, and so are patients who then have none. A `split` that a row of the patient gives stays, else `splits`
    decides. The external site has test patients only. Rows are copied. Raises ConfigError where a site would be empty or a
    column is missing.
    """
    if config.kind in ("natural", "scanner_clusters"):
        groups = _by_column(rows, replace(config, column=COLUMN) if config.kind == "scanner_clusters" else config)
    else:
        groups = _by_plan(rows, config, vocabulary, seed)
    external = external_name(config)
    split = splits(strata(rows, vocabulary, list(vocabulary.organs)))
    split |= {row["patient_id"]: row["split"] for row in rows if row.get("split")}
    placed = {}
    for name, mine in sorted(groups.items(), key=lambda item: item[0] == external):
        if not mine and name == EXTERNAL:  # a small share of few patients may be nobody
            continue
        if not mine:
            raise ConfigError(
                f"no patient of the manifest falls to site {name}: take a smaller sites.count, a larger sites.alpha, "
                "or more patients"
            )
        placed[name] = [
            {**row, "site": name, "split": "test" if name == external else split[row["patient_id"]]} for row in mine
        ]
    return placed


def external_name(config: SitesConfig) -> str:
    """The site that is never trained on, where there is one: `config.external_site`, or that of a random share."""
    return config.external_site or EXTERNAL


def strata(rows: Sequence[Row], vocabulary: Vocabulary, organs: Sequence[str]) -> dict[str, Stratum]:
    """Patient -> stratum, of those who have a study of one of `organs`."""
    owner = {m: organ for organ in reversed(organs) for m in vocabulary.organs[organ].modalities}
    found: dict[str, Stratum] = {}
    for row in rows:
        organ = row.get("organ") or owner.get(row["modality"], "")
        if organ in organs and not found.get(row["patient_id"], Stratum("", "")).label:
            found[row["patient_id"]] = Stratum(organ, row.get("abnormality") or "")
    return found


def splits(patients: Mapping[str, Stratum]) -> dict[str, str]:
    """Patient -> train, val or test: 70/10/20 of every organ and abnormality, in the order of a hash of the patient's id.

    The same patients come out the same in whatever order, under whatever paths and at whatever sites they are. One patient
    more may move another across a border, which is why a hospital's own manifest is split by the hash alone
    (`client.manifest.split_of`): there nobody may depend on who else is in it.
    """
    members: dict[Stratum, list[str]] = {}
    for patient, stratum in patients.items():
        members.setdefault(stratum, []).append(patient)
    placed = {}
    for group in members.values():
        group.sort(key=lambda patient: hashlib.sha256(f"medmap-split:{patient}".encode()).digest())
        for rank, patient in enumerate(group):
            share = (rank + 0.5) / len(group)
            placed[patient] = "train" if share < _TRAIN else "val" if share < _VAL else "test"
    return placed


def _by_column(rows: Sequence[Row], config: SitesConfig) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    homes: dict[str, str] = {}
    for row in rows:
        if config.column not in row:
            raise ConfigError(f"sites.column={config.column}: the manifest's columns are {', '.join(row)}")
        name, patient = (row[config.column] or "").strip(), row["patient_id"]
        if not name:
            raise ConfigError(f"sites.column={config.column} is empty for patient {patient}: fill it in")
        if "/" in name or name.startswith(".") or len(name) > _LONGEST or not name.isprintable():
            raise ConfigError(
                f"sites.column={config.column}: {name[:_LONGEST]!r} cannot be a folder's name: write the hospital's without /, "
                f"line breaks and a dot at its start, in {_LONGEST} characters"
            )
        if (home := homes.setdefault(patient, name)) != name:
            raise ConfigError(
                f"sites.column={config.column} puts patient {patient} into {home} and {name}: choose one, or give two ids"
            )
        groups.setdefault(name, []).append(row)
    if config.external_site and config.external_site not in groups:
        raise ConfigError(f"sites.external_site={config.external_site} is not one of {', '.join(groups)}")
    if config.external_site and len(groups) == 1:
        raise ConfigError(f"sites.external_site={config.external_site} is the only site: none is left to train")
    return groups


def _by_plan(rows: Sequence[Row], config: SitesConfig, vocabulary: Vocabulary, seed: int) -> dict[str, list[Row]]:
    """Patients to the planned sites, label by label: mixes come as near the plan's as whole patients allow."""
    wanted = wanted_organs(config, vocabulary)
    patients = strata(rows, vocabulary, wanted)
    present = {p.organ for p in patients.values()}
    kinds = {o: _kinds(config, vocabulary.organs[o], patients.values()) for o in wanted if o in present}
    specs = plan_training(config, vocabulary, kinds, seed=seed)
    home = _homes(patients, specs, config, vocabulary, seed)
    slots = {s.name: {m for share in s.organs.values() for m in share.modalities} for s in specs}
    if config.external_patients:
        slots[EXTERNAL] = set().union(*slots.values())
    groups: dict[str, list[Row]] = {name: [] for name in slots}
    for row in rows:
        name = home.get(row["patient_id"])
        if name and row["modality"] in slots[name]:
            groups[name].append(row)
    return groups


def _kinds(config: SitesConfig, organ: Organ, patients: Iterable[Stratum]) -> Sequence[str]:
    """An organ's abnormalities that patients have: others need no hospital. `mixed` is a table over all of them."""
    labels = {p.label for p in patients if p.organ == organ.name}
    named = {name for label in labels if label for name in organ.classes_of(label)}
    if not named and config.kind in ("label_skew", "shards"):
        raise ConfigError(
            f"sites={config.kind} deals abnormalities, and no patient of the manifest has one of the {organ.name}"
        )
    return [name for name in organ.abnormalities if name in named or not named or config.kind == "mixed"]


def _homes(
    patients: Mapping[str, Stratum], specs: Sequence[SiteSpec], config: SitesConfig, vocabulary: Vocabulary, seed: int
) -> dict[str, str]:
    """Patient -> site; without those whose organ no site has."""
    import numpy as np

    home: dict[str, str] = {}
    for stratum in sorted(set(patients.values()), key=lambda s: (s.organ, s.label)):
        organ, label = stratum.organ, stratum.label
        members = sorted(p for p, own in patients.items() if own == stratum)
        rng = np.random.default_rng([seed, *f"{organ}/{label}".encode()])
        members = [members[i] for i in rng.permutation(len(members))]
        if config.external_patients:
            of_organ = sum(own.organ == organ for own in patients.values())
            share = min(config.external_patients / of_organ, 1 / (config.count + 1))
            cut = int(len(members) * share + rng.random())
            home.update(dict.fromkeys(members[:cut], EXTERNAL))
            members = members[cut:]
        having = [s for s in specs if organ in s.organs]
        if not having:
            continue
        classes = vocabulary.organs[organ].classes_of(label) if label else ()
        weights = np.array([_wanted(s, organ, classes) for s in having])
        edges = np.cumsum(weights if weights.sum() > 0 else np.ones(len(having)))
        points = (np.arange(len(members)) + rng.random()) / max(len(members), 1)
        for member, place in zip(members, np.searchsorted(edges / edges[-1], points), strict=True):
            home[member] = having[min(int(place), len(having) - 1)].name
    return home


def _wanted(spec: SiteSpec, organ: str, classes: Sequence[str]) -> float:
    """How many of such patients a site takes, relative to others: of no class (not known, or none) by its size alone."""
    share = spec.organs[organ]
    return share.train * (sum(share.mix[c] for c in classes) / len(classes) if classes else 1.0)
