"""Site plans and manifest partitions: any number of sites, what each kind promises, and one line for the impossible."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from configs import choices, load, load_vocabulary
from configs.schema import SitesConfig
from configs.setting import ConfigError
from medmap_model.vocabulary import Vocabulary
from simulation.phantom.kinds import KINDS
from simulation.phantom.plan import check_specs
from simulation.sites import SiteSpec, plan_sites

PHANTOM_KINDS = (
    "mixed", "iid", "label_skew", "shards", "quantity_skew", "modality_skew", "phase_availability", "organ_split",
)  # fmt: skip
MANIFEST_KINDS = ("natural", "scanner_clusters")


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
    if kind == "shards" and 2 * count < 7:
        with pytest.raises(ConfigError, match="leave some of liver's 7 without one"):
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
            found |= {"sizes"} if len({sh.train for sh, _ in mine}) > 1 else set()
        return found

    assert what_differs("iid") == set()
    assert what_differs("label_skew") == {"labels"}
    assert what_differs("shards") == {"labels"}
    assert what_differs("quantity_skew") == {"sizes"}
    assert what_differs("modality_skew") == {"modalities"}
    assert what_differs("phase_availability") == {"modalities"}
    assert what_differs("organ_split") == {"organs"}
    assert what_differs("mixed") == {"labels", "modalities", "scanners", "organs", "sizes"}


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


def test_shards_give_each_hospital_few_abnormalities_and_each_abnormality_a_hospital(vocabulary: Vocabulary) -> None:
    for k in (1, 2, 3):
        specs = plan(vocabulary, kind="shards", count=7, classes_per_site=k, organs=["liver"])[:-1]
        seen = [{kind for kind, share in s.organs["liver"].mix.items() if share} for s in specs]
        assert {len(own) for own in seen} == {k}
        assert {sum(kind in own for own in seen) for kind in KINDS["liver"]} == {k}
    brain = plan(vocabulary, kind="shards", count=2, classes_per_site=1, organs=["brain"])[:-1]
    mixes = [s.organs["brain"].mix for s in brain]  # a tumour of any kind is one abnormality
    assert sorted(sum(share > 0 for share in mix.values()) for mix in mixes) == [1, 4]
    assert plan(vocabulary, 1, kind="shards") != plan(vocabulary, 2, kind="shards")


def test_quantity_skew_keeps_the_patients_and_spreads_them_unevenly(vocabulary: Vocabulary) -> None:
    def sizes(alpha: float) -> list[int]:
        specs = plan(vocabulary, kind="quantity_skew", count=20, alpha=alpha)[:-1]
        assert all(s.organs["brain"].train == s.organs["liver"].train for s in specs)
        return [s.organs["liver"].train for s in specs]

    assert all(1500 <= sum(sizes(alpha)) <= 1640 for alpha in (0.1, 0.5, 1000))
    assert max(sizes(0.1)) > 600 > 110 > max(sizes(1000))
    assert min(sizes(0.01)) == 2, "a hospital of one patient would have nothing to contrast with"


def test_phase_availability_takes_away_what_is_named(vocabulary: Vocabulary) -> None:
    lacking = ["T1ce+C+A+C+V+C+Delay", "DWI+FLAIR", ""]
    specs = plan(vocabulary, kind="phase_availability", count=4, lacking=lacking)[:-1]
    owned = [{m for share in s.organs.values() for m in share.modalities} for s in specs]
    everything = set(vocabulary.modalities)
    without = [{"T1ce", "C+A", "C+V", "C+Delay"}, {"DWI", "FLAIR"}, set()]
    assert owned == [everything - gone for gone in (*without, without[0])]
    only_liver = plan(vocabulary, kind="phase_availability", count=1, lacking=["T1+T1ce+T2+FLAIR"])
    assert list(only_liver[0].organs) == ["liver"]
    for lacking, words in ((["PET"], "'PET' is no modality"), (["+".join(everything)], "would lack every modality")):
        with pytest.raises(ConfigError, match=words):
            plan(vocabulary, kind="phase_availability", lacking=lacking)


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
        ({"kind": "scanner_clusters"}, "data.kind=manifest"),
        ({"kind": "shards", "classes_per_site": 3}, "brain has only 2"),
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


def test_every_partition_has_a_name_and_every_name_loads() -> None:
    assert set(choices("sites")) == {*PHANTOM_KINDS, *MANIFEST_KINDS}
    for name in choices("sites"):
        assert load([f"sites={name}"]).sites.kind == name


def test_plans_are_light() -> None:
    import subprocess
    import sys

    code = (
        "import sys, simulation.sites; print([m for m in ('torch', 'scipy', 'nibabel', 'monai') if m in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert out.stdout.strip() == "[]"
