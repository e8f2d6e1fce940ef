"""Site shift: what is found where sites differ, and that little is found where they do not; its place in the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from configs import load_vocabulary
from configs.schema import Config, PrivacyConfig
from configs.setting import ConfigError
from medmap_model.accounting import planned_releases, with_noise
from medmap_model.shift import EXACT, FEATURES, RELEASED, released_sums, sums
from server.shift import shift_between
from tests.server.report_run import full_summary
from tests.server.test_report import page_of
from tests.server.test_report_evaluation import section

VOCABULARY = load_vocabulary("medmom")
F = len(FEATURES)


def site(
    seed: int, *, patients: int = 60, moved: float = 0.0, slots: tuple[int, ...] = (0, 1, 2, 3), noise: float = 0.0
):
    """Sums of a brain site, (4, EXACT); with noise as a site releases them, (4, RELEASED)."""
    rng, told = np.random.default_rng(seed), released_sums if noise else sums
    table = np.zeros((4, RELEASED if noise else EXACT))
    for slot in slots:
        table[slot] = told(rng.normal(moved, 0.08, (patients, F)))
    return table + (rng.laplace(0, noise, table.shape) if noise else 0)


def beyond(tables, noise: float = 0.0) -> np.ndarray:
    part = shift_between({"brain": tables}, VOCABULARY, noise={"brain": noise})["organs"]["brain"]
    return np.array(part["distance"], float) > np.array(part["chance"], float)


def test_one_site_that_differs_is_found_and_the_others_are_alike() -> None:
    found = beyond({"a": site(0), "b": site(1), "c": site(2, patients=20), "d": site(3, moved=0.1)})
    assert found[3, :3].all() and found[:3, 3].all()
    assert not found[:3, :3].any()


@pytest.mark.parametrize("noise", [0.0, 8.0])
def test_where_nothing_differs_few_pairs_are_beyond_chance(noise: float) -> None:
    pairs = [
        beyond({str(i): site(100 * run + i, noise=noise) for i in range(6)}, noise)[np.triu_indices(6, 1)]
        for run in range(4)
    ]
    assert np.mean(pairs) < 0.2  # 5 in 100 by design; 60 pairs, of which a site's are not independent


def test_large_sites_are_told_apart_through_noise_and_small_ones_are_not() -> None:
    def found(patients: int) -> bool:
        tables = {str(i): site(i, patients=patients, moved=0.1 * (i == 2), noise=6.0) for i in range(3)}
        return bool(beyond(tables, 6.0)[2, :2].all())

    assert found(600) and not found(60)
    tables = {str(i): site(i, patients=(600, 600, 2)[i], noise=6.0) for i in range(3)}
    part = shift_between({"brain": tables}, VOCABULARY, noise={"brain": 6.0})["organs"]["brain"]
    assert part["sites"] == ["0", "1"], "two patients are not to be told from nobody"


def test_what_is_asked_for_is_planned_for() -> None:
    asked = PrivacyConfig(shift_epsilon=1, landmarks_epsilon=2, statistics_epsilon=0.5)
    assert [cost.epsilon for cost in planned_releases(asked)] == [0.5, 1, 2]
    assert planned_releases(PrivacyConfig()) == []


def test_releases_that_no_ledger_would_pay_for_are_refused_before_anything_runs() -> None:
    def config(epsilon: float) -> Config:
        return Config(privacy=PrivacyConfig(shift_epsilon=8, landmarks_epsilon=8, epsilon=epsilon))

    assert with_noise(config(16)) == config(16)
    with pytest.raises(ConfigError, match=r"privacy\.epsilon=15: the releases asked for cost 16"):
        with_noise(config(15))


def test_noise_raises_what_chance_can_show() -> None:
    exact, noisy = (
        np.array(
            shift_between({"brain": {str(i): site(i, noise=n) for i in range(3)}}, VOCABULARY, noise={"brain": n})[
                "organs"
            ]["brain"]["chance"]
        )
        for n in (0.0, 5.0)
    )
    assert (noisy > 2 * exact)[np.triu_indices(3, 1)].all()


def test_sites_without_a_common_modality_have_no_distance() -> None:
    told = shift_between(
        {"brain": {"a": site(0, slots=(0, 2)), "b": site(1, slots=(1, 3)), "c": site(2), "empty": site(3, slots=())}},
        VOCABULARY,
    )
    part = told["organs"]["brain"]
    assert part["sites"] == ["a", "b", "c"]
    assert part["distance"][0][1] is None and part["chance"][0][1] is None
    assert part["distance"][0][2] > 0 and part["modalities"]["a"] == ["T1", "T2"]
    assert shift_between({"brain": {"a": site(0)}}, VOCABULARY)["organs"] == {}


def test_the_report_has_the_matrix_the_dendrogram_and_who_has_what(tmp_path: Path) -> None:
    tables = {"H1": site(0), "H2": site(1, slots=(0,)), "<b>H3</b>": site(2, moved=0.2), "H4": site(3, slots=(1,))}
    shift = shift_between({"brain": tables}, VOCABULARY)
    own = {"patients": 60, "labels": {"tumour": 40, "no_tumour": 20}, "modalities": {"T1": 60}}
    sites = [
        {"name": "<i>H1</i>", "external": False, "patients": {"train": 60}, "reports": 3, "organs": {"brain": own}}
    ]
    partition = {"organs": {"brain": {"labels": ["no_tumour", "tumour"], "modalities": ["T1", "T2"]}}, "sites": sites}
    page = page_of(full_summary() | {"shift": shift, "partition": partition}, tmp_path)
    text = section(page, "shift")
    assert "exact moments" in text and "H4" in text
    assert "<strong>" in page[page.index('id="shift"') : page.index('id="participation"')]
    assert "<b>H3" not in page and "<i>H1" not in page
    assert "Dendrogram of the sites" in page and "Training patients by abnormality" in page
    noisy = page_of(full_summary() | {"shift": shift | {"epsilon": 2.0}}, tmp_path)
    assert "from noisy moments (ε 2.00 per site)" in section(noisy, "shift")
    assert "How far apart" not in page_of(full_summary(), tmp_path)
