"""A manifest's patients in virtual hospitals: by plan, by column, by their files' headers; splits that stay; the picture."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from client.manifest import read_manifest
from client.sources import bids, brats, ixi
from client.sources.write import write_manifest
from configs import load, load_vocabulary
from configs.schema import SitesConfig
from configs.setting import ConfigError
from medmap_model.vocabulary import Vocabulary
from simulation.census import of_hospitals
from simulation.manifests import manifest_hospitals
from simulation.partition import Stratum, partition_manifest, splits
from simulation.sites import EXTERNAL, plan_sites
from tests.client.sources.trees import nifti

PLANNED = (
    "mixed",
    "iid",
    "label_skew",
    "shards",
    "quantity_skew",
    "modality_skew",
    "phase_availability",
    "organ_split",
)


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return load_vocabulary("medmom")


def rows_of(vocabulary: Vocabulary, patients: int = 60) -> list[dict[str, str]]:
    """A manifest: patients of both organs, labels in turn, all modalities, a column that names the hospital."""
    table = []
    for organ in vocabulary.organs.values():
        for i in range(patients):
            for modality in organ.modalities:
                table.append(
                    {
                        "patient_id": f"{organ.name}{i}", "study_id": "1", "modality": modality, "image": f"{i}-{modality}",
                        "organ": organ.name, "abnormality": organ.abnormalities[i % len(organ.abnormalities)],
                        "split": "", "ward": f"ward {i % 3}",
                    }
                )  # fmt: skip
    return table


@pytest.mark.parametrize("kind", PLANNED)
def test_a_manifest_is_partitioned_by_patient(kind: str, vocabulary: Vocabulary) -> None:
    rows = rows_of(vocabulary)
    config = SitesConfig(kind=kind, count=4, external_patients=10, alpha=5)
    placed = partition_manifest(rows, config, vocabulary, seed=0)
    assert list(placed)[-1] == EXTERNAL
    assert len(placed) == 5
    homes: dict[str, set[str]] = {}
    for name, mine in placed.items():
        for row in mine:
            homes.setdefault(row["patient_id"], set()).add(name)
            assert row["site"] == name
    assert all(len(names) == 1 for names in homes.values())
    assert {r["split"] for r in placed[EXTERNAL]} == {"test"}
    assert {r["split"] for name, mine in placed.items() if name != EXTERNAL for r in mine} == {"train", "val", "test"}
    assert 4 <= len({r["patient_id"] for r in placed[EXTERNAL] if r["organ"] == "brain"}) <= 14
    specs = {s.name: s for s in plan_sites(replace(config, kind=kind), vocabulary, seed=0)}
    for name, mine in placed.items():
        for row in mine:
            if name != EXTERNAL:
                assert row["modality"] in specs[name].organs[row["organ"]].modalities
    assert all("site" not in r for r in rows)  # the caller's rows are untouched
    assert partition_manifest(rows, config, vocabulary, seed=0) == placed
    assert partition_manifest(rows, config, vocabulary, seed=1) != placed


def test_a_manifest_follows_the_label_mix(vocabulary: Vocabulary) -> None:
    config = SitesConfig(kind="mixed", count=6, external_patients=0)
    placed = partition_manifest(rows_of(vocabulary, 210), config, vocabulary, seed=0)

    def share(site: str, label: str) -> float:
        patients = {r["patient_id"]: r["abnormality"] for r in placed[site] if r["organ"] == "liver"}
        return list(patients.values()).count(label) / len(patients)

    assert share("south", "fnh") > 0.25 > 0.08 > share("south", "hcc")
    assert share("east", "hcc") > 0.25 > 0.08 > share("east", "fnh")


def test_given_splits_stay_and_unlabelled_patients_find_a_home(vocabulary: Vocabulary) -> None:
    rows = [{**r, "split": "common"} if r["patient_id"] == "brain0" else r for r in rows_of(vocabulary)]
    rows = [{**r, "abnormality": ""} if r["patient_id"] == "brain1" else r for r in rows]
    rows = [{k: v for k, v in r.items() if k != "organ"} for r in rows]  # the organ follows from the modality
    placed = partition_manifest(rows, SitesConfig(kind="iid", count=3, external_patients=0), vocabulary, seed=0)
    found = {r["patient_id"]: r["split"] for mine in placed.values() for r in mine}
    assert found["brain0"] == "common"
    assert "brain1" in found
    assert len(found) == 120


def test_natural_sites_are_the_column(vocabulary: Vocabulary) -> None:
    rows = rows_of(vocabulary)
    config = SitesConfig(kind="natural", column="ward", external_site="ward 1")
    placed = partition_manifest(rows, config, vocabulary, seed=0)
    assert list(placed) == ["ward 0", "ward 2", "ward 1"]
    assert {r["split"] for r in placed["ward 1"]} == {"test"}
    assert sum(map(len, placed.values())) == len(rows)
    for settings, words in (
        ({"column": "hospital"}, "columns are patient_id"),
        ({"external_site": "ward 9"}, "not one of ward 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            partition_manifest(rows, replace(config, **settings), vocabulary, seed=0)  # type: ignore[arg-type]
    split_up = [{**rows[0], "ward": "ward 7"}, *rows[1:]]
    with pytest.raises(ConfigError, match="puts patient brain0 into ward 7 and ward 0"):
        partition_manifest(split_up, config, vocabulary, seed=0)
    with pytest.raises(ConfigError, match="empty for patient brain0"):
        partition_manifest([{**rows[0], "ward": ""}], config, vocabulary, seed=0)


def test_a_split_in_one_row_of_a_patient_holds_for_all(vocabulary: Vocabulary) -> None:
    rows = rows_of(vocabulary)
    rows = [{**r, "split": "test" if r["modality"] in ("FLAIR", "DWI") else ""} for r in rows]
    placed = partition_manifest(rows, SitesConfig(kind="iid", count=2, external_patients=0), vocabulary, seed=0)
    assert {r["split"] for mine in placed.values() for r in mine} == {"test"}


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "two\nlines", "x" * 81])
def test_a_column_cannot_name_a_folder_elsewhere(name: str, vocabulary: Vocabulary) -> None:
    rows = [r | {"ward": name} for r in rows_of(vocabulary, 4)]
    with pytest.raises(ConfigError, match="cannot be a folder's name"):
        partition_manifest(rows, SitesConfig(kind="natural", column="ward"), vocabulary, seed=0)
    odd = "St. Mary's, Süd [1]"
    kept = [r | {"ward": odd} for r in rows]
    assert list(partition_manifest(kept, SitesConfig(kind="natural", column="ward"), vocabulary, seed=0)) == [odd]


def test_a_held_out_hospital_is_refused_where_the_kind_has_none(vocabulary: Vocabulary) -> None:
    config = SitesConfig(kind="iid", count=2, external_site="ward 1")
    with pytest.raises(ConfigError, match="external_patients"):
        partition_manifest(rows_of(vocabulary), config, vocabulary, seed=0)
    with pytest.raises(ConfigError, match="external_patients"):
        plan_sites(config, vocabulary, seed=0)


def test_abnormalities_that_no_patient_has_are_dealt_to_no_hospital(vocabulary: Vocabulary) -> None:
    rows = [r for r in rows_of(vocabulary, 70) if r["abnormality"] in ("hcc", "cyst", "fnh")]
    config = SitesConfig(kind="shards", count=3, classes_per_site=1, external_patients=0)
    placed = partition_manifest(rows, config, vocabulary, seed=0)
    assert sorted(tuple({r["abnormality"] for r in mine}) for mine in placed.values()) == [
        ("cyst",),
        ("fnh",),
        ("hcc",),
    ]
    bare = [r | {"abnormality": ""} for r in rows]
    for kind in ("shards", "label_skew"):
        with pytest.raises(ConfigError, match="no patient of the manifest has one of the liver"):
            partition_manifest(bare, replace(config, kind=kind), vocabulary, seed=0)


def test_a_share_of_few_patients_may_be_nobody(vocabulary: Vocabulary) -> None:
    found = set()
    for seed in range(8):
        config = SitesConfig(kind="iid", count=1, external_patients=1)
        found.add(EXTERNAL in partition_manifest(rows_of(vocabulary, 2), config, vocabulary, seed=seed))
    assert found == {True, False}


def test_a_site_without_patients_is_refused(vocabulary: Vocabulary) -> None:
    with pytest.raises(ConfigError, match=r"smaller sites\.count"):
        partition_manifest(rows_of(vocabulary, 3), SitesConfig(kind="iid", count=40), vocabulary, seed=0)


def test_a_vocabulary_of_ones_own_can_be_partitioned(vocabulary: Vocabulary) -> None:
    body = vocabulary.to_dict()
    body["organs"] = {"knee": {"modalities": ["PD", "T2"], "query": "?", "prompts": {"tear": ["a"], "none": ["b"]}}}
    own = Vocabulary.from_dict(body)
    for kind in PLANNED:
        placed = partition_manifest(rows_of(own, 80), SitesConfig(kind=kind, count=3, alpha=5), own, seed=0)
        assert len(placed) == 4


def test_patients_with_several_abnormalities_are_placed_by_all_of_them(vocabulary: Vocabulary) -> None:
    body = vocabulary.to_dict()
    knee = {"modalities": ["PD"], "query": "?", "prompts": {"tear": ["a"], "cyst": ["b"]}, "multi_label": True}
    own = Vocabulary.from_dict(body | {"organs": {"knee": knee}})
    rows = [
        {"patient_id": f"P{i}", "study_id": "1", "modality": "PD", "image": f"{i}", "abnormality": label}
        for i, label in enumerate(["tear", "cyst", "tear;cyst", "none"] * 20)
    ]
    config = SitesConfig(kind="shards", count=2, classes_per_site=1, external_patients=0)
    placed = partition_manifest(rows, config, own, seed=0)
    seen = [Counter(r["abnormality"] for r in mine) for mine in placed.values()]
    assert sorted(n for own_labels in seen for label, n in own_labels.items() if label in ("tear", "cyst")) == [20, 20]
    assert all(own_labels["tear;cyst"] == 10 and own_labels["none"] == 10 for own_labels in seen)


# --- splits --------------------------------------------------------------------------------------------------------


def test_splits_are_stratified_and_fixed(vocabulary: Vocabulary) -> None:
    patients = {f"P{i}": Stratum("liver", "cyst" if i % 4 else "fnh") for i in range(200)}
    split = splits(patients)
    for label, n in (("cyst", 150), ("fnh", 50)):
        counts = Counter(split[p] for p, own in patients.items() if own.label == label)
        assert counts == {"train": 0.7 * n, "val": 0.1 * n, "test": 0.2 * n}
    assert splits(dict(reversed(patients.items()))) == split
    more = splits(patients | {"newcomer": Stratum("liver", "fnh")})
    moved = [p for p in patients if more[p] != split[p]]
    assert len(moved) <= 2 and all(patients[p].label == "fnh" for p in moved)
    assert Counter(splits({f"P{i}": Stratum("liver", str(i)) for i in range(9)}).values()) == {"train": 9}


def test_a_patients_split_depends_on_neither_partition_nor_seed_nor_path(vocabulary: Vocabulary) -> None:
    rows = rows_of(vocabulary, 140)
    found: dict[str, set[str]] = {}
    for kind, seed in (("iid", 0), ("label_skew", 1), ("natural", 2), ("iid", 3)):
        config = SitesConfig(kind=kind, column="ward", count=3, alpha=5, external_patients=0)
        again = [{**row, "image": f"{kind}/{row['image']}"} for row in reversed(rows)]
        for row in (r for mine in partition_manifest(again, config, vocabulary, seed=seed).values() for r in mine):
            found.setdefault(row["patient_id"], set()).add(row["split"])
    assert len(found) == 280 and all(len(names) == 1 for names in found.values())
    train = Counter(r["abnormality"] for r in rows if found[r["patient_id"]] == {"train"} and r["organ"] == "liver")
    assert set(train.values()) == {14 * 8}  # of each abnormality 14 of 20 patients, with 8 volumes each


# --- sites as they are ---------------------------------------------------------------------------------------------


def ingested_ixi(root: Path) -> Path:
    for i in range(12):
        for modality in ("T1", "T2"):
            nifti(root / "ixi" / f"IXI{i:03d}-{('Guys', 'HH', 'IOP')[i % 3]}-{700 + i}-{modality}.nii.gz", seed=i)
    write_manifest(ixi.scan(root / "ixi").rows, root / "manifest.csv")
    return root / "manifest.csv"


def ingested_fets(root: Path) -> Path:
    for i in range(8):
        for suffix in ("t1", "t1ce", "t2", "flair", "seg"):
            case = f"FeTS2022_{i:05d}"
            nifti(root / "fets" / case / f"{case}_{suffix}.nii.gz", seed=i)
    table = root / "partitioning_1.csv"
    table.write_text("Partition_ID,Subject_ID\n" + "".join(f"{1 + i % 2},FeTS2022_{i:05d}\n" for i in range(8)))
    write_manifest(brats.scan(root / "fets", partition=table).rows, root / "manifest.csv")
    return root / "manifest.csv"


def ingested_bids(root: Path) -> Path:
    lines = ["participant_id\tsite"]
    for i in range(6):
        nifti(root / "bids" / f"sub-{i:02d}" / "anat" / f"sub-{i:02d}_T1w.nii.gz", seed=i)
        lines.append(f"sub-{i:02d}\t{'ulm' if i % 2 else 'bern'}")
    (root / "bids" / "participants.tsv").write_text("\n".join(lines) + "\n")
    write_manifest(bids.scan(root / "bids").rows, root / "manifest.csv")
    return root / "manifest.csv"


@pytest.mark.parametrize(
    ("ingest", "sites"),
    [(ingested_ixi, {"Guys": 4, "HH": 4, "IOP": 4}), (ingested_bids, {"bern": 3, "ulm": 3}), (ingested_fets, None)],
)
def test_an_ingested_data_set_has_its_own_hospitals(ingest, sites, vocabulary: Vocabulary, tmp_path: Path) -> None:
    manifest = ingest(tmp_path)
    config = load(["data=manifest", f"data.manifest={manifest}", "sites=natural"])
    hospitals = manifest_hospitals(config, vocabulary, tmp_path / "run", lambda event: None)
    told = of_hospitals(hospitals, vocabulary)
    found = {s["name"]: sum(s["patients"].values()) for s in told["sites"]}
    assert found == sites if sites else list(found.values()) == [4, 4]
    for hospital in hospitals:  # what a hospital is given can be read, paths included
        read_manifest(hospital.entry.manifests[0], vocabulary)
