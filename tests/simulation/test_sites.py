"""Site plans and manifest partitions: any number of sites, what each kind promises, and one line for the impossible."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from configs import choices, load, load_vocabulary
from configs.schema import SitesConfig
from configs.setting import ConfigError
from medmap_model.vocabulary import Vocabulary
from simulation.phantom.kinds import KINDS
from simulation.phantom.plan import check_specs
from simulation.sites import EXTERNAL, SiteSpec, partition_manifest, plan_sites

PHANTOM_KINDS = ("mixed", "iid", "label_skew", "modality_skew", "organ_split")


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return load_vocabulary("medmom")


def plan(vocabulary: Vocabulary, seed: int = 0, **settings: object) -> list[SiteSpec]:
    return plan_sites(SitesConfig(**settings), vocabulary, seed=seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7, 40, 1000])
@pytest.mark.parametrize("kind", PHANTOM_KINDS)
def test_any_number_of_sites(kind: str, count: int, vocabulary: Vocabulary) -> None:
    if kind == "organ_split" and count == 1:
        with pytest.raises(ConfigError, match="cannot give each"):
            plan(vocabulary, kind=kind, count=count)
        return
    specs = plan(vocabulary, kind=kind, count=count)
    assert len(specs) == count + 1
    check_specs(specs, vocabulary)  # the phantom can make it
    assert [s.external for s in specs] == [False] * count + [True]
    assert all(re.fullmatch(r"[a-z]+(-[a-z0-9]+)*", s.name) for s in specs)
    for spec in specs:
        for organ, share in spec.organs.items():
            order = vocabulary.organs[organ].modalities
            assert list(share.modalities) == sorted(share.modalities, key=order.index)
            assert sum(share.mix.values()) == pytest.approx(1, abs=0.02)
            assert set(share.mix) == set(KINDS[organ])
            assert (share.train, share.common) == (0, 0) if spec.external else share.train > 0


def test_the_mixed_hospitals_differ_in_everything(vocabulary: Vocabulary) -> None:
    specs = plan(vocabulary)[:-1]
    assert len({s.scanner for s in specs}) == 6
    assert {tuple(s.organs) for s in specs} == {("brain",), ("liver",), ("brain", "liver")}
    assert len({(o, share.modalities) for s in specs for o, share in s.organs.items()}) == 8
    assert {share.train for s in specs for share in s.organs.values()} == {56, 80}
    owners = {
        m: sum(m in share.modalities for s in specs for share in s.organs.values()) for m in vocabulary.modalities
    }
    assert set(owners.values()) <= {2, 3}
    more = plan(vocabulary, count=14)[:-1]
    assert len({s.scanner for s in more}) == 14
    assert more[:6] == specs
    first_two = plan(vocabulary, count=2)[:-1]
    assert {o for s in first_two for o in s.organs} == {"brain", "liver"}


def test_each_other_kind_changes_one_thing(vocabulary: Vocabulary) -> None:
    def what_differs(kind: str) -> set[str]:
        shares = [(o, sh, s) for s in plan(vocabulary, kind=kind)[:-1] for o, sh in s.organs.items()]
        found = set()
        for organ in KINDS:
            mine = [(sh, s) for o, sh, s in shares if o == organ]
            found |= {"labels"} if len({tuple(sh.mix.items()) for sh, _ in mine}) > 1 else set()
            found |= {"modalities"} if len({sh.modalities for sh, _ in mine}) > 1 else set()
            found |= {"scanners"} if len({s.scanner for _, s in mine}) > 1 else set()
            found |= {"organs"} if len(mine) < 6 else set()
        return found

    assert what_differs("iid") == set()
    assert what_differs("label_skew") == {"labels"}
    assert what_differs("modality_skew") == {"modalities"}
    assert what_differs("organ_split") == {"organs"}
    assert what_differs("mixed") == {"labels", "modalities", "scanners", "organs"}


def test_an_even_mix_counts_abnormalities_not_kinds(vocabulary: Vocabulary) -> None:
    mix = plan(vocabulary, kind="iid")[0].organs["brain"].mix
    assert mix == {
        "normal": 0.5,
        "glioblastoma": 0.125,
        "low_grade_glioma": 0.125,
        "metastasis": 0.125,
        "meningioma": 0.125,
    }


def test_alpha_sets_the_skew_and_the_seed_the_draw(vocabulary: Vocabulary) -> None:
    def largest(alpha: float, seed: int = 0) -> float:
        specs = plan(vocabulary, seed, kind="label_skew", count=20, alpha=alpha)[:-1]
        return sum(max(s.organs["liver"].mix.values()) for s in specs) / len(specs)

    assert largest(0.05) > 0.7 > 0.3 > largest(100)
    assert plan(vocabulary, 1, kind="label_skew") == plan(vocabulary, 1, kind="label_skew")
    assert plan(vocabulary, 1, kind="label_skew") != plan(vocabulary, 2, kind="label_skew")


def test_modality_skew_covers_every_modality_and_external_has_only_what_is_trained(vocabulary: Vocabulary) -> None:
    specs = plan(vocabulary, kind="modality_skew", count=4, modalities_per_site=2)
    assert {m for s in specs[:-1] for sh in s.organs.values() for m in sh.modalities} == set(vocabulary.modalities)
    few = plan(vocabulary, kind="modality_skew", count=1, modalities_per_site=2)
    assert few[-1].organs["liver"].modalities == few[0].organs["liver"].modalities


def test_settings_reach_the_plan(vocabulary: Vocabulary) -> None:
    spec, external = plan(
        vocabulary, count=1, organs=["liver"], patients=9, validation_patients=1, test_patients=2, common_patients=3,
        external_patients=4, missing_rate=0.3, unreported_rate=0.2,
    )  # fmt: skip
    share = spec.organs["liver"]
    assert (share.train, share.val, share.test, share.common) == (9, 1, 2, 3)
    assert (spec.missing_rate, spec.unreported_rate) == (0.3, 0.2)
    assert (external.organs["liver"].test, list(external.organs)) == (4, ["liver"])
    assert not plan(vocabulary, external_patients=0)[-1].external


def test_impossible_plans_are_refused_in_one_line(vocabulary: Vocabulary) -> None:
    for settings, words in (
        ({"kind": "natural"}, "data.kind=manifest"),
        ({"kind": "modality_skew", "modalities_per_site": 5}, "only 4 modalities"),
        ({"organs": ["knee"]}, "brain, liver"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            plan(vocabulary, **settings)
        assert "\n" not in str(caught.value)
    body = vocabulary.to_dict()
    body["organs"]["knee"] = {**body["organs"]["brain"], "modalities": ["PD"], "attributes": {}, "modality_texts": {}}
    with pytest.raises(ConfigError, match=r"knee.*sites\.organs"):
        plan(Vocabulary.from_dict(body))
    assert plan(Vocabulary.from_dict(body), organs=["brain"])


def test_every_named_partition_loads() -> None:
    assert {"iid", "label_skew", "mixed", "modality_skew", "natural", "organ_split"} <= set(choices("sites"))
    for name in ("iid", "label_skew", "mixed", "modality_skew", "natural", "organ_split"):
        assert load([f"sites={name}"]).sites.kind == name


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


@pytest.mark.parametrize("kind", PHANTOM_KINDS)
def test_a_manifest_is_partitioned_by_patient(kind: str, vocabulary: Vocabulary) -> None:
    rows = rows_of(vocabulary)
    config = SitesConfig(kind=kind, count=4, external_patients=10)
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
    specs = {s.name: s for s in plan(vocabulary, kind=kind, count=4)}
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
    with pytest.raises(ConfigError, match="empty for patient brain0"):
        partition_manifest([{**rows[0], "ward": ""}], config, vocabulary, seed=0)


def test_a_site_without_patients_is_refused(vocabulary: Vocabulary) -> None:
    with pytest.raises(ConfigError, match=r"smaller sites\.count"):
        partition_manifest(rows_of(vocabulary, 3), SitesConfig(kind="iid", count=40), vocabulary, seed=0)


def test_a_vocabulary_of_ones_own_can_be_partitioned(vocabulary: Vocabulary) -> None:
    body = vocabulary.to_dict()
    body["organs"] = {"knee": {"modalities": ["PD", "T2"], "query": "?", "prompts": {"tear": ["a"], "none": ["b"]}}}
    own = Vocabulary.from_dict(body)
    for kind in PHANTOM_KINDS:
        placed = partition_manifest(rows_of(own, 80), SitesConfig(kind=kind, count=3, alpha=2), own, seed=0)
        assert len(placed) == 4


def test_plans_are_light() -> None:
    import subprocess
    import sys

    code = (
        "import sys, simulation.sites; print([m for m in ('torch', 'scipy', 'nibabel', 'monai') if m in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert out.stdout.strip() == "[]"
