"""What the server of a secure federation sees: it can put together the sums, and no single update; with negative controls."""

from __future__ import annotations

import itertools
import json

import numpy as np
from scipy import stats

import client.app
from configs import to_json
from medmap_model.contract import Task
from medmap_model.secure import shamir
from medmap_model.secure.masks import own_mask, pair_mask
from medmap_model.secure.quantise import Quantiser
from server import exchange
from server.rounds import Federation
from tests.simulation.secure_parts import (
    HIDDEN,
    MESSAGES,
    TOLERANCE,
    VOLUMES,
    N,
    Wire,
    change,
    mean_change,
    run,
    settings,
    wards,
)  # fmt: skip

__all__ = ["wards"]


class View:
    """All that the server got in one round, and the secrets that it can put together from it."""

    def __init__(self, f: Federation) -> None:
        self.f, self.seen = f, f.wire.seen
        bodies: dict = {k: {} for k in MESSAGES}
        for site, kind, _, reply in self.seen:
            if "secure" in reply.content:
                bodies[kind][site] = json.loads(reply.content["secure"]["secure"])
        self.keys, self.opened = bodies[MESSAGES[0]], bodies[MESSAGES[3]]
        requests = [m for _, kind, m, _ in self.seen if kind == MESSAGES[1]]
        self.request = json.loads(requests[0].content["secure"]["secure"])
        self.sent = {
            s: {g: a.numpy() for g, a in r.content["arrays"].items()}
            for s, kind, _, r in self.seen
            if kind == "train" and "arrays" in r.content
        }
        self.number = {
            s: json.loads(m.content["secure"]["secure"])["me"] for s, k, m, _ in self.seen if k == MESSAGES[0]
        }

    def shares(self, site: int, *path: str) -> dict[int, bytes]:
        found = {}
        for holder, answer in self.opened.items():
            value = answer["shares"].get(str(self.number[site]), {})
            for step in path:
                value = value.get(step, {})
            if value:
                found[self.number[holder]] = bytes.fromhex(value)
        return found

    def secret(self, site: int, *path: str) -> bytes | None:
        found = self.shares(site, *path)
        enough = len(found) >= self.request["threshold"]
        return shamir.combine(found, threshold=self.request["threshold"]) if enough else None

    def stripped(self, site: int, group: str) -> np.ndarray:
        """A site's masked numbers less every mask that the server can make."""
        numbers = self.sent[site][group].copy()
        where = {"round_id": self.request["round"], "group": group}
        if (seed := self.secret(site, "seeds", group)) is not None:
            numbers -= own_mask(seed, N, numbers.dtype, **where)
        for other in self.keys:
            secret = self.secret(other, "key")
            if other != site and secret is not None and self.number[other] in self.request["groups"][group]:
                public = bytes.fromhex(self.keys[site]["mask"])
                me, them = self.number[site], self.number[other]
                numbers -= pair_mask(secret, public, N, numbers.dtype, me=me, other=them, **where)
        return numbers


def rebuilt(view: View, site: int, group: str, owners: int, share: float) -> np.ndarray:
    """The site's change, if its numbers were bare."""
    return Quantiser(1.0, 32, owners).decode(view.stripped(site, group)) / share


LOST = [(1, "train", "after")]  # it masked, its message arrived too late: the worst case for its secrets


def attack(view: View) -> dict[int, float]:
    """Site -> correlation of what the server makes of its update of encoder/T1 with the true one."""
    weights = {s: VOLUMES[s]["T1"] for s in range(5)}
    made = {s: rebuilt(view, s, "encoder/T1", 5, weights[s] / sum(weights.values())) for s in view.sent}
    return {s: float(np.corrcoef(m, change(s, 0, "encoder/T1"))[0, 1]) for s, m in made.items()}


def test_the_server_can_rebuild_the_sum_and_no_single_update(tmp_path, wards):
    f = run(tmp_path, lose=LOST)
    view = View(f)
    assert sorted(view.sent) == [0, 2, 3, 4]
    assert all(abs(c) < 6 / np.sqrt(N) for c in attack(view).values())
    for site, group in itertools.product(view.sent, ("encoder/T1", "text_projection")):
        for numbers in (view.sent[site][group], view.stripped(site, group)):
            assert stats.chisquare(np.bincount(numbers.view(np.uint8), minlength=256)).pvalue > 1e-7
    # Control: the same attack on the sum over all who returned does strip every mask.
    total = sum(view.stripped(s, "encoder/T1") for s in view.sent)
    weights = [VOLUMES[s]["T1"] for s in range(5)]
    whole = Quantiser(1.0, 32, 5).decode(total) * sum(weights) / sum(weights[s] for s in view.sent)
    np.testing.assert_allclose(whole, mean_change(0, "encoder/T1", [0, 2, 3, 4]), rtol=0, atol=TOLERANCE)


def test_control_without_pair_masks_the_same_server_rebuilds_every_update(tmp_path, wards, monkeypatch):
    def nothing(secret, public, size, dtype, **where):
        return np.zeros(size, dtype)

    monkeypatch.setattr("client.secure.pair_mask", nothing)
    monkeypatch.setattr("server.secure.pair_mask", nothing)
    monkeypatch.setitem(globals(), "pair_mask", nothing)
    correlations = attack(View(run(tmp_path, lose=LOST)))
    assert min(correlations.values()) > 0.999


def test_a_late_update_stays_masked_though_its_sender_was_given_up(tmp_path, wards):
    """The server has the lost site's mask key; if its message comes after all, the site's own mask still covers it."""
    f = run(tmp_path, lose=LOST)
    view = View(f)
    assert view.secret(1, "key") is not None
    assert not view.shares(1, "seeds", "encoder/T1")
    late = f.wire.dropped[0].content["arrays"]["encoder/T1"].numpy()
    view.sent[1] = {"encoder/T1": late}
    for other in (0, 2, 3, 4):  # all its pair masks can be taken off
        where = {
            "me": view.number[1],
            "other": view.number[other],
            "round_id": view.request["round"],
            "group": "encoder/T1",
        }
        late = late - pair_mask(view.secret(1, "key"), bytes.fromhex(view.keys[other]["mask"]), N, late.dtype, **where)
    made = Quantiser(1.0, 32, 5).decode(late)
    assert abs(np.corrcoef(made, change(1, 0, "encoder/T1"))[0, 1]) < 6 / np.sqrt(N)
    assert stats.chisquare(np.bincount(late.view(np.uint8), minlength=256)).pvalue > 1e-7


def test_never_both_kinds_of_share_of_one_site_and_none_of_a_group_with_too_few_left(tmp_path, wards):
    view = View(run(tmp_path, lose=[(0, "train", "before")]))  # of T2's three owners two return
    for site in range(5):
        key, seeds = view.shares(site, "key"), view.shares(site, "seeds", "encoder/T1")
        assert bool(key) == (site == 0)
        assert bool(seeds) == (site != 0)
        assert not view.shares(site, "seeds", "encoder/T2")
    assert view.secret(3, "seeds", "encoder/T1") is not None, "control: the others' seeds are put together"


def test_nothing_in_the_clear_leaves_and_no_secret_does(tmp_path, wards, monkeypatch):
    secrets: set[str] = set()
    remember = client.app._remember

    def watch(context, secure):
        secrets.update(secure.state.get("secret", {}).values())
        secrets.update(secure.state.get("seeds", {}).values())
        remember(context, secure)

    monkeypatch.setattr(client.app, "_remember", watch)
    f = run(tmp_path)
    assert len(secrets) == 5 * 2 + sum(len(VOLUMES[s]) * 2 + 1 for s in (0, 1, 2)) + 2 * 3
    for _, kind, message, reply in f.wire.seen:
        said = repr(reply.content)
        assert not any(s in said for s in secrets)
        if kind == "train":
            assert {a.dtype for a in reply.content["arrays"].values()} == {"uint32"}
            assert set(reply.content["arrays"]) <= HIDDEN
            assert set(message.content["arrays"]) >= set(reply.content["arrays"])
    assert all(c.state["secure"]["secure"] == "{}" for i, c in f.wire._contexts.items()), "gone after the round"


def test_a_plain_train_message_gets_no_update_from_a_site_of_a_secure_federation(tmp_path, wards, caplog):
    config = settings()
    wire = Wire(client.app.app, 1, {"config": to_json(config)})

    message = exchange.Broadcast({"fusion": np.zeros(3, np.float32)}).message(
        2, "train", ["fusion"], Task("pretrain", 0, 1, 0), wait_s=60
    )
    (reply,) = wire.send_and_receive([message])
    assert "refusal" in reply.content and "arrays" not in reply.content
