"""What a site of a secure federation refuses: every request that could open a single update, and every step done twice."""

from __future__ import annotations

import numpy as np
import pytest

from client.secure import SecureSite
from client.site import SiteError
from configs.federated import StrategyConfig


def three(phase: str) -> tuple[dict[int, SecureSite], dict]:
    """Three sites that own one group, before the given step, and that step's request for site 1."""
    strategy = StrategyConfig(secure_aggregation=True)
    sites = {i: SecureSite({}, strategy) for i in (1, 2, 3)}
    public = {str(i): s.keys({"round": "r", "me": i}) for i, s in sites.items()}
    request = {"round": "r", "threshold": 2, "keys": public, "groups": {"fusion": [1, 2, 3]}}
    if phase == "shares":
        return sites, request
    sealed = {i: s.shares(request)["sealed"] for i, s in sites.items()}
    ticket = {"round": "r", "weights": {"fusion": [1, 3]}}
    tickets = {i: {**ticket, "sealed": {str(j): sealed[j][str(i)] for j in sites if j != i}} for i in sites}
    if phase == "admit":
        return sites, tickets[1]
    for i, s in sites.items():
        s.admit(tickets[i], ["fusion"])
        s.mask({"fusion": np.ones(3, np.float32)}, {"fusion": np.zeros(3, np.float32)})
    return sites, {"round": "r", "returned": [1, 2, 3]}


@pytest.mark.parametrize(
    ("phase", "spoil", "words"),
    [
        ("shares", {"threshold": 1}, "1 of 3 sites could unmask"),
        ("shares", {"threshold": 4}, "4 of 3 sites could unmask"),
        ("shares", {"round": "another"}, "out of order"),
        ("shares", {"groups": {"fusion": [1, 2]}}, "a sum over 2 sites would tell too much"),
        ("shares", {"groups": {"fusion": [1, 2, 9]}}, "a sum over 2 sites"),
        (
            "shares",
            {"keys": {str(i): {"cipher": "00" * 32, "mask": "00" * 32} for i in (1, 2, 3)}},
            "does not hold this",
        ),
        ("admit", {"sealed": {}}, "1 sites are left"),
        ("admit", {"round": "another"}, "out of order"),
        ("unmask", {"returned": [1]}, "1 sites are said to have returned"),
        ("unmask", {"returned": [1, 2, 9]}, "others than took part"),
        ("unmask", {"round": "another"}, "out of order"),
    ],
)
def test_a_request_that_would_open_a_single_update_is_refused(phase, spoil, words):
    sites, request = three(phase)

    def send(body):
        return sites[1].admit(body, ["fusion"]) if phase == "admit" else getattr(sites[1], phase)(body)

    with pytest.raises(SiteError, match=words) as caught:
        send({**request, **spoil})
    assert caught.value.code == "secure"
    send(request)  # control: the honest request is taken


def test_every_step_is_done_once():
    sites, request = three("unmask")
    with pytest.raises(SiteError, match="out of order"):
        sites[1].mask({"fusion": np.zeros(3, np.float32)}, {"fusion": np.zeros(3, np.float32)})
    sites[1].unmask(request)
    with pytest.raises(SiteError, match="out of order"):
        sites[1].unmask({**request, "returned": [2, 3]})  # else it would give the other kind of share as well
    sites, ticket = three("admit")
    sites[1].admit(ticket, ["fusion"])
    with pytest.raises(SiteError, match="out of order"):
        sites[1].admit(ticket, ["fusion"])


def test_a_group_that_the_site_was_not_named_an_owner_of_is_not_trained():
    sites, ticket = three("admit")
    with pytest.raises(SiteError, match="not said to be among its owners"):
        sites[1].admit(ticket, ["fusion", "head/brain"])


def test_shares_that_were_changed_on_the_way_are_refused():
    sites, ticket = three("admit")
    flipped = ticket["sealed"]["2"][:-2] + ("00" if ticket["sealed"]["2"][-2:] != "00" else "01")
    with pytest.raises(SiteError, match="the shares of site 2: a sealed message was changed"):
        sites[1].admit({**ticket, "sealed": {**ticket["sealed"], "2": flipped}}, ["fusion"])


def test_a_change_that_is_not_finite_or_too_large_is_told_at_home(caplog):
    sites, ticket = three("admit")
    sites[1].admit(ticket, ["fusion"])
    with pytest.raises(SiteError, match="fusion: the change is not finite") as caught:
        sites[1].mask({"fusion": np.full(3, np.nan, np.float32)}, {"fusion": np.zeros(3, np.float32)})
    assert caught.value.code == "diverged"
    sites, ticket = three("admit")
    sites[1].admit(ticket, ["fusion"])
    sites[1].mask({"fusion": np.array([5, 0, -2], np.float32)}, {"fusion": np.zeros(3, np.float32)})
    assert "2 parameters changed by more than strategy.secure_clip=1" in caplog.text
