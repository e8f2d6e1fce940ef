"""Sites that join late, leave, come back, move, or may not join; in whole federations whose nodes a test switches."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from server.members import FederationError, at_least
from tests.server.roaming import T1, Story, quick_looks
from tests.server.test_rounds import GROUPS

__all__ = ["quick_looks"]

ROUNDS = ("stage.pretrain.rounds=4", "stage.finetune.rounds=0")


def test_a_site_that_comes_late_takes_part_from_the_next_round(tmp_path):
    story = Story(tmp_path, *ROUNDS, online={0, 1})
    story.at["pretrain", 1] = lambda: story.grid.online.add(2)
    story.run()
    assert [len(x["returned"]) for x in story.lines] == [2, 2, 3, 3]
    assert story.said("begins with 2 of 3 sites") == story.said("h2 has joined") == 1
    assert story.said("h2: an update in 2 of 4 rounds") == 1, "that it was not there in two rounds is said at the end"
    np.testing.assert_allclose(story.federation.vectors["encoder/T1"], 2 * 1.5 + 2 * 2)


def test_a_site_that_leaves_is_left_out_and_takes_its_place_again(tmp_path):
    story = Story(tmp_path, *ROUNDS)

    def back() -> None:
        story.hospitals.volumes[2] = {"T1": 40}  # it has been scanning meanwhile
        story.grid.online.add(2)

    story.at |= {("pretrain", 0): lambda: story.grid.online.discard(2), ("pretrain", 2): back}
    story.run()
    assert [(x["missing"], x["absent"]) for x in story.lines] == [(["h2"], []), ([], ["h2"]), ([], ["h2"]), ([], [])]
    assert story.said("h2 is offline") == story.said("h2 is back") == 1, "said once, not each round"
    assert story.said("h2: an update in 1 of 4 rounds (silent in pretrain 1; absent in pretrain 2, 3)") == 1
    by_new_card = (10 * 1 + 10 * 2 + 40 * 3) / 60
    np.testing.assert_allclose(story.federation.vectors["encoder/T1"], 3 * 1.5 + by_new_card, rtol=1e-6)


def test_a_site_on_another_node_takes_its_place_but_not_while_the_old_node_is_there(tmp_path):
    story = Story(tmp_path, *ROUNDS)
    story.at["pretrain", 0] = lambda: story.grid.moves(2, keep_old=True)
    story.at["pretrain", 1] = lambda: story.grid.moves(1)
    story.run()
    assert story.said("site h2 may not join: another site has its name") == 1
    assert story.said("h1 is back") == 1
    assert [x["returned"] for x in story.lines] == [["h0", "h1", "h2"]] * 4
    assert len(story.trained(2)) == 4, "its second node is given nothing"


def test_a_refused_node_is_asked_again_after_a_while_and_joins_when_its_card_fits(tmp_path):
    story = Story(tmp_path, *ROUNDS)
    story.hospitals.volumes[2] = {}  # the card cannot be made: an error

    def mended() -> None:
        story.hospitals.volumes[2] = dict(T1)
        story.federation.roster._refused = {n: at - 61 for n, at in story.federation.roster._refused.items()}

    story.at["pretrain", 2] = mended
    story.run()
    assert [len(x["returned"]) for x in story.lines] == [2, 2, 2, 3]
    assert [i for kind, i, _ in story.grid.asked if kind == "query"] == [0, 1, 2, 2], "not asked every round"
    assert story.said("may not join") == 1


@pytest.mark.parametrize("online", [{0, 1}, {0, 1, 2}])
def test_a_card_that_comes_late_holds_no_round_up_and_still_counts(tmp_path, online):
    story = Story(tmp_path, *ROUNDS, "strategy.card_timeout_s=1", online=online)
    ready = set()
    story.grid.slow = lambda i, kind, group: kind == "query" and i == 2 and "card" not in ready
    story.at |= {("pretrain", 0): lambda: story.grid.online.add(2), ("pretrain", 2): lambda: ready.add("card")}
    story.run()
    assert [len(x["returned"]) for x in story.lines] == [2, 2, 2, 3]
    assert [kind for kind, i, _ in story.grid.asked if i == 2 and kind == "query"] == ["query"], "asked once"
    assert story.said("begins with 2 of 3 sites") == story.said("h2 has joined") == 1


def test_a_node_that_changes_its_name_is_one_site(tmp_path):
    story = Story(tmp_path, *ROUNDS, sites=3, online={0, 1})

    def renamed() -> None:  # hospital 1's node is another hospital's, which is offline at first
        node = next(n for n in story.grid._contexts if story.grid.hospital(n) == 1)
        story.grid._contexts[node].node_config["partition-id"] = 2

    story.at |= {("pretrain", 0): renamed, ("pretrain", 1): lambda: story.grid.online.add(2)}
    story.run()
    assert set(story.federation.roster.members) == {"h0", "h2"}
    assert story.lines[-1]["returned"] == ["h0", "h2"]
    assert story.lines[-1]["absent"] == []


def test_a_share_of_sites_is_counted_as_people_count():
    for percent, sites in itertools.product(range(101), range(1, 60)):
        assert at_least(percent / 100, sites) == -(-percent * sites // 100), (percent, sites)


@pytest.mark.parametrize(("quorum", "goes_on"), [("0.5", False), ("0.4", True)])
def test_quorum_counts_those_who_are_away(tmp_path, quorum, goes_on):
    story = Story(tmp_path, *ROUNDS, f"strategy.quorum={quorum}", "strategy.retries=1", sites=5)
    story.at["pretrain", 0] = lambda: story.grid.online.difference_update({2, 3, 4})
    if not goes_on:
        # The first round finds two of five as well, since the others left in the middle of it.
        with pytest.raises(FederationError, match=r"2 of 5 sites can be asked, 3 are needed; h2: offline; h3: offline"):
            story.run()
        assert story.trained(1) == [("pretrain", 0)], "nobody trains, or pays, for a round that cannot count"
    else:
        story.run()
        assert [x["absent"] for x in story.lines] == [[], *[["h2", "h3", "h4"]] * 3]
        assert story.said("without h2 (absent), h3 (absent), h4 (absent)") == 3, "each of those rounds says so"


def test_below_quorum_sites_are_waited_for(tmp_path):
    story = Story(tmp_path, *ROUNDS, "strategy.quorum=1", "strategy.retries=1", "strategy.join_timeout_s=20")
    looks = iter(range(1000))
    online = story.grid.get_node_ids

    def returning() -> list[int]:
        if story.said("void round") and next(looks) > 5:
            story.grid.online.add(2)
        return online()

    story.grid.get_node_ids = returning
    story.at["pretrain", 1] = lambda: story.grid.online.discard(2)
    story.run()
    assert story.said("void round: 2 of 3 sites returned an update, 3 are needed; h2: went offline") == 1
    assert [len(x["returned"]) for x in story.lines] == [3] * 4, "one retry was enough, for it waited"


def test_a_run_with_a_late_site_resumes_to_the_same_weights(tmp_path):
    def drift(i, stage, number, vectors):
        rng = np.random.default_rng([i, number])
        for v in vectors.values():
            v += rng.normal(size=3).astype(np.float32)

    def tell(folder, *, stop: bool) -> Story:
        story = Story(folder, *ROUNDS, online={0, 1})
        plain = story.hospitals.spoil

        def spoil(i, stage, number, vectors):
            if stop and (i, number) == (1, 2):
                raise KeyboardInterrupt
            drift(i, stage, number, vectors)
            return plain(i, stage, number, vectors)

        story.hospitals.spoil = spoil
        story.at["pretrain", 0] = lambda: story.grid.online.add(2)
        return story

    whole = tell(tmp_path / "whole", stop=False).run().federation.vectors
    with pytest.raises(KeyboardInterrupt):
        tell(tmp_path / "cut", stop=True).run()
    again = tell(tmp_path / "cut", stop=False)
    again.grid.online.add(2)
    resumed = again.run().federation.vectors
    for group in GROUPS:
        np.testing.assert_array_equal(resumed[group], whole[group])


def test_a_run_is_resumed_by_other_sites_and_says_who_is_not_there(tmp_path):
    first = Story(tmp_path, "stage.pretrain.rounds=1", "stage.finetune.rounds=0", online={0, 1})
    first.federation._close = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = Story(tmp_path, "stage.pretrain.rounds=3", "stage.finetune.rounds=0", online={0, 2}).run()
    assert second.said("goes on without h1, which took part before") == 1
    assert [x["returned"] for x in second.lines] == [["h0", "h1"], ["h0", "h2"], ["h0", "h2"]]
    assert [x["absent"] for x in second.lines] == [[], [], []], "who is not in the federation any more is not counted"
