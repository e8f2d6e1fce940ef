"""Secure aggregation over real messages: the sums are right whoever is lost when, and too few is said and not summed."""

from __future__ import annotations

import json

import numpy as np
import pytest

import client.app
from client.secure import SecureSite
from client.site import open_site
from configs import load, to_json
from configs.setting import ConfigError
from medmap_model import contract
from medmap_model.contract import Task
from medmap_model.groups import pack
from medmap_model.secure.quantise import Quantiser
from server.app import federate
from server.members import FederationError
from server.rounds import Federation
from tests.conftest import small_config, write_hospital
from tests.simulation.secure_parts import (
    ALONE,
    GROUPS,
    HIDDEN,
    LAYOUT,
    MESSAGES,
    TOLERANCE,
    VOCABULARY,
    VOLUMES,
    N,
    Ward,
    Wire,
    mean_change,
    run,
    settings,
    wards,
)  # fmt: skip

__all__ = ["wards"]


def test_the_secure_sum_is_the_plain_one_but_for_what_it_cannot_hide(tmp_path, wards):
    secure = run(tmp_path / "secure", "stage.pretrain.rounds=2")
    plain = run(tmp_path / "plain", "stage.pretrain.rounds=2", "strategy.secure_aggregation=false")
    for group in HIDDEN:
        np.testing.assert_allclose(secure.vectors[group], plain.vectors[group], rtol=0, atol=2 * TOLERANCE)
        assert (secure.vectors[group] != 0.5).any()
    for group in set(GROUPS) - HIDDEN:
        np.testing.assert_array_equal(secure.vectors[group], 0.5)
    assert (plain.vectors["encoder/FLAIR"] != 0.5).all(), "control: its two owners do train it in the clear"
    notes = [t for t in secure.told if "not trained" in t]
    assert len(notes) == 1 and "encoder/FLAIR, projection/FLAIR" in notes[0]
    assert secure.state.trained["modalities"] == ["T1", "T2"]
    assert secure.history[0]["returned"] == ["h0", "h1", "h2", "h3", "h4"]


@pytest.mark.parametrize("bits", [16, 32])
def test_bits_set_what_travels_and_how_exact_the_sum_is(tmp_path, wards, bits):
    f = run(tmp_path, f"strategy.secure_bits={bits}")
    assert f.history[0]["bytes_up"] == bits // 8 * N * sum(1 for s in VOLUMES for g in HIDDEN if g.split("/")[-1] in (*s, "text_projection"))  # fmt: skip
    error = np.abs(f.vectors["encoder/T1"] - 0.5 - mean_change(0, "encoder/T1", range(5))).max()
    assert error <= 5 * Quantiser(clip=1.0, bits=bits, sites=5).step + 1e-7
    assert (error > 1e-6) == (bits == 16)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", MESSAGES)
@pytest.mark.parametrize("lost", [(4,), (0,), (2, 3)])
def test_sites_lost_at_any_step_leave_the_mean_over_the_others(tmp_path, wards, lost, kind, when):
    f = run(tmp_path, lose=[(s, kind, when) for s in lost])
    counted = set(range(5)) if kind == "query.secure_unmask" else set(range(5)) - set(lost)
    for group in HIDDEN:
        owners = {s for s in counted if group == "text_projection" or group.split("/")[1] in VOLUMES[s]}
        expected = mean_change(0, group, sorted(counted)) if len(owners) >= 3 else 0
        np.testing.assert_allclose(f.vectors[group] - 0.5, expected, rtol=0, atol=TOLERANCE)
    if lost == (0,) and kind != "query.secure_unmask":
        assert any("T2" in t for t in f.told if "too few" in t), (
            "two owners are left: the group is kept, and this is said"
        )
        assert f.state.trained["modalities"] == ["T1"]


def test_losses_in_every_step_of_one_round_are_borne_together(tmp_path, wards):
    f = run(tmp_path, "strategy.quorum=0.1", lose=[(0, MESSAGES[0], "before"), (1, MESSAGES[2], "after")])
    np.testing.assert_allclose(
        f.vectors["encoder/T1"] - 0.5, mean_change(0, "encoder/T1", [2, 3, 4]), rtol=0, atol=TOLERANCE
    )


@pytest.mark.parametrize("kind", MESSAGES)
def test_a_round_that_loses_too_many_sites_is_void_and_tried_again(tmp_path, wards, kind):
    lose = [(s, kind, "after") for s in (0, 1, 2)]
    with pytest.raises(FederationError, match="has found no quorum 1 times"):
        run(tmp_path / "once", lose=lose)
    f = run(tmp_path / "twice", "strategy.retries=1", lose=lose)
    np.testing.assert_allclose(
        f.vectors["encoder/T1"] - 0.5, mean_change(0, "encoder/T1", range(5)), rtol=0, atol=TOLERANCE
    )
    # Nothing of the void round is used again: other keys, other masks.
    first, second = (m for s, k, m, _ in f.wire.seen if (s, k) == (4, MESSAGES[0]))
    assert first.content["secure"] != second.content["secure"]


@pytest.mark.parametrize("kind", MESSAGES[:2])
def test_nobody_trains_in_vain_where_too_few_are_left_for_the_quorum(tmp_path, wards, kind):
    """Three of five could unmask their sum, and four are a quorum: training them would spend privacy for nothing."""
    with pytest.raises(FederationError, match="has found no quorum 1 times"):
        run(tmp_path, "strategy.quorum=0.8", lose=[(s, kind, "after") for s in (0, 1)])
    assert not any(ward.given for ward in wards.values())


def test_a_void_round_leaves_the_model_as_it_was(tmp_path, wards):
    (tmp_path / "x").mkdir()
    config = settings()
    lose = [(s, "query.secure_unmask", "after") for s in (0, 1, 2)]
    wire = Wire(client.app.app, 5, {"config": to_json(config)}, lose=lose)
    initial = {g: np.full(N, 0.5, np.float32) for g in GROUPS}
    f = Federation(
        wire, config, VOCABULARY, initial=initial, layout=LAYOUT, text_hash="text", folder=tmp_path / "x", sites=5
    )
    with pytest.raises(FederationError):
        f.run()
    assert all((v == 0.5).all() for v in f.vectors.values())
    assert f.state.completed == 0


def test_a_round_in_which_no_sum_is_large_enough_is_void_not_hollow(tmp_path, wards):
    with pytest.raises(FederationError, match="has found no quorum 1 times"):
        run(tmp_path, sites=3, lose=[(2, "train", "after")])  # three own T1; two are left


def test_a_site_that_gives_wrong_shares_voids_the_round(tmp_path, wards, monkeypatch):
    honest, asked = SecureSite.unmask, []

    def unmask(self, request):
        answer = honest(self, request)
        asked.append(answer)
        if len(asked) == 1:
            for of_one in answer["shares"].values():
                of_one["seeds"] = {g: f"{int(share, 16) ^ 1:0132x}" for g, share in of_one["seeds"].items()}
        return answer

    monkeypatch.setattr(SecureSite, "unmask", unmask)
    with pytest.raises(FederationError, match="has found no quorum 1 times"):
        run(tmp_path / "once")
    asked.clear()
    f = run(tmp_path / "twice", "strategy.retries=1")
    assert any("a site's shares are wrong" in t for t in f.told)
    np.testing.assert_allclose(
        f.vectors["encoder/T1"] - 0.5, mean_change(0, "encoder/T1", range(5)), rtol=0, atol=TOLERANCE
    )


def test_no_group_to_hide_is_one_sentence(tmp_path, wards):
    with pytest.raises(FederationError, match=r"pretrain: no module group has 3 owners.*model\.sharing=shared"):
        run(tmp_path, sites=2)


def test_a_site_trains_what_is_hidden_on_the_whole_model(tmp_path, wards):
    """Groups that are not trained still travel to their owners: training against a stale encoder would go astray."""
    run(tmp_path)
    received, trained = wards[3].given[0]
    assert received >= ALONE
    assert trained == {"encoder/T1", "projection/T1", "text_projection"}


def test_a_group_that_is_not_trained_is_used_as_it_came(trio, cache):
    site = open_site(to_json(small_config()), "north", (trio["north"],), cache)
    start = pack(site.trainer.model, ["encoder/T1", "projection/T1", "text_projection"])
    other = {**start, "encoder/T1": start["encoder/T1"] + np.float32(0.05)}
    only = ["projection/T1", "text_projection"]
    updates = {}
    for name, vectors in (("start", start), ("other", other)):
        updates[name], _ = site.train(vectors, Task("pretrain", 0, 1, 0), only=only)
        assert sorted(updates[name]) == only
        np.testing.assert_array_equal(pack(site.trainer.model, ["encoder/T1"])["encoder/T1"], vectors["encoder/T1"])
    assert (updates["start"]["projection/T1"] != start["projection/T1"]).any()
    assert (updates["start"]["projection/T1"] != updates["other"]["projection/T1"]).any()


def test_a_site_that_cannot_train_still_helps_to_unmask(tmp_path, wards):
    wards[1] = Ward(1)
    wards[1].fail = True
    f = run(tmp_path)
    assert [r["site"] for r in f.history[0]["refused"]] == ["h1"]
    answered = [s for s, kind, _, r in f.wire.seen if kind == MESSAGES[3] and "refusal" not in r.content]
    assert sorted(answered) == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(
        f.vectors["encoder/T1"] - 0.5, mean_change(0, "encoder/T1", [0, 2, 3, 4]), rtol=0, atol=TOLERANCE
    )


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("strategy=secure", "strategy.site_clip=1"), r"strategy\.site_clip=1 needs each site's own update"),
        (("strategy=secure", "strategy.secure_bits=24"), "take one of 16, 32"),
        (("strategy=secure", "strategy.secure_min=1"), "take 2 or more"),
    ],
)
def test_settings_that_contradict_it_are_one_line(overrides, words):
    with pytest.raises(ConfigError, match=words) as caught:
        load(list(overrides))
    assert "\n" not in str(caught.value)
    load(["strategy=secure", "strategy.proximal_mu=0.01"])  # FedProx is the sites' own business


@pytest.fixture(scope="module")
def trio(tmp_path_factory):
    root = tmp_path_factory.mktemp("trio")
    modalities = {"east": ["T1", "FLAIR"], "north": ["T1"], "west": ["T1", "T2"]}
    return {name: write_hospital(root / name, m, patients=6) for name, m in modalities.items()}


def train(folder, trio, cache, *overrides: str):
    folder.mkdir(parents=True, exist_ok=True)
    sites = folder / "sites.json"
    sites.write_text(json.dumps([{"name": k, "manifests": [str(v)]} for k, v in trio.items()]))
    text = to_json(small_config("stage.finetune.rounds=1", *overrides))
    wire = Wire(client.app.app, 3, {"config": text, "sites-file": str(sites), "cache-dir": str(cache)})
    f = federate(wire, text, folder=folder, sites=3)
    f.wire = wire
    return f


def test_hospitals_that_train_get_the_same_model_as_in_the_clear(tmp_path, cache):
    alike = {name: write_hospital(tmp_path / name, ["T1"], patients=6) for name in ("east", "north", "west")}
    secure = train(tmp_path / "secure", alike, cache, "strategy=secure", "stage.finetune.rounds=0")
    plain = train(tmp_path / "plain", alike, cache, "stage.finetune.rounds=0")
    start = train(tmp_path / "start", alike, cache, "stage.finetune.rounds=0", "stage.pretrain.rounds=0").vectors
    for group in ("encoder/T1", "projection/T1", "text_projection"):
        np.testing.assert_allclose(secure.vectors[group], plain.vectors[group], rtol=0, atol=1e-6)
        assert np.abs(secure.vectors[group] - start[group]).max() > 1e-4


def test_private_updates_are_summed_securely_with_their_receipts(tmp_path, trio, cache):
    f = train(
        tmp_path, trio, cache, "strategy=secure", "privacy=patient_dp", "privacy.noise_multiplier=3", "privacy.epsilon=9",
        "privacy.secure_noise=false", "stage.pretrain.rounds=0", f"privacy.ledger_dir={tmp_path}/ledgers",
    )  # fmt: skip
    assert set(f.state.receipts) == set(trio)
    for _, kind, _, reply in f.wire.seen:
        if kind == "train":
            assert set(reply.content) == {contract.ARRAYS, contract.METRICS_RECORD, contract.RECEIPT}
            assert not dict(reply.content[contract.METRICS_RECORD])
    start = train(tmp_path / "start", trio, cache, "stage.pretrain.rounds=0", "stage.finetune.rounds=0").vectors
    assert (f.vectors["head/brain"] != start["head/brain"]).any()
    np.testing.assert_array_equal(f.vectors["encoder/T2"], start["encoder/T2"])


@pytest.mark.slow
def test_the_ray_engine_carries_the_keys_from_message_to_message(tmp_path, trio, cache):
    from simulation.engines import run_ray

    sites = tmp_path / "sites.json"
    sites.write_text(json.dumps([{"name": k, "manifests": [str(v)]} for k, v in trio.items()]))
    text = to_json(small_config("strategy=secure", "stage.finetune.rounds=0"))
    values = {"config": text, "sites-file": str(sites), "cache-dir": str(cache)}
    results: list[Federation] = []
    run_ray(client.app.app, 3, values, lambda grid: results.append(federate(grid, text, folder=tmp_path, sites=3)))
    assert results[0].history[0]["returned"] == ["east", "north", "west"]
