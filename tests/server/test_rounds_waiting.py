"""How long a round waits and for whom, what a module group needs to change, and sites that refuse; in whole federations."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from medmap_model import contract
from server import exchange
from server.members import FederationError
from server.progress import PlainLines
from server.rounds import Federation
from tests.server.roaming import Story, quick_looks
from tests.server.test_rounds import Hospitals, federation
from tests.simulation import secure_parts
from tests.simulation.secure_parts import TOLERANCE, Wire, mean_change, wards

__all__ = ["quick_looks", "wards"]

ROUNDS = ("stage.pretrain.rounds=4", "stage.finetune.rounds=0")


def dawdler(story: Story, until: int) -> None:
    """Hospital 2's first update is held back until hospital 0 has trained `until` times."""
    story.grid.slow = lambda i, kind, group: (
        i == 2 and kind == "train" and group == "pretrain-0" and len(story.trained(0)) < until
    )


def test_a_straggler_is_waited_for_by_a_factor_and_asked_again_when_it_is_done(tmp_path):
    story = Story(tmp_path, *ROUNDS, "strategy.straggler_factor=5")
    dawdler(story, until=2)
    story.run()
    assert [x["missing"] for x in story.lines] == [["h2"], ["h2"], [], []]
    assert [i for kind, i, _ in story.grid.asked if kind == "train"].count(2) == 3, (
        "not asked while it is still at work"
    )
    assert story.said("h2: no update in time") == 1
    assert story.said("h2 has answered an earlier round, too late; the answer is dropped") == 1
    np.testing.assert_allclose(story.federation.vectors["encoder/T1"], 2 * 1.5 + 2 * 2)


def test_below_the_quorum_no_straggler_is_cut_off(tmp_path):
    story = Story(tmp_path, *ROUNDS, "strategy.straggler_factor=1", "strategy.quorum=1", "strategy.retries=0")
    looks = iter(range(10_000))
    story.grid.slow = lambda i, kind, group: i == 2 and kind == "train" and next(looks) % 20 != 19
    assert [x["missing"] for x in story.run().lines] == [[]] * 4


def test_an_answer_that_came_while_others_were_taken_in_is_not_late(tmp_path):
    """It is there at the second look, before which nobody can have seen it, however long the others' updates took."""
    story, looked = Story(tmp_path, *ROUNDS, "strategy.straggler_factor=1"), set()

    def slow(i, kind, group):
        if i != 2 or kind != "train" or group in looked:
            return False
        looked.add(group)
        return True

    story.grid.slow = slow
    assert [x["missing"] for x in story.run().lines] == [[]] * 4


def test_a_site_that_still_validates_is_given_no_other_task(tmp_path):
    story = Story(tmp_path, "stage.pretrain.rounds=1", "stage.finetune.rounds=2", "strategy.round_timeout_s=1")
    story.grid.slow = lambda i, kind, group: (
        i == 2
        and kind == "evaluate"
        and group == "pretrain-1"
        and not [s for s, _ in story.trained(0) if s == "finetune"]
    )
    story.run()
    assert [x["missing"] for x in story.lines] == [[], ["h2"], []]
    assert story.said("h2 has answered an earlier round, too late") == 1


def test_a_site_may_have_a_deadline_of_its_own_and_its_task_dies_with_it(tmp_path):
    story = Story(tmp_path, *ROUNDS, "strategy.site_timeout_s={h2: 0.2, h7: 5}", "strategy.round_timeout_s=60")
    dawdler(story, until=2)
    story.run()
    assert [x["missing"] for x in story.lines] == [["h2"], ["h2"], [], []]
    lives = {i: ttl for kind, i, ttl in story.grid.asked if kind == "train"}
    assert lives == {0: 60 + exchange._GRACE_S, 1: 60 + exchange._GRACE_S, 2: 0.2 + exchange._GRACE_S}
    assert story.said("strategy.site_timeout_s names sites that are not here: h7") == 1, "a name that was mistyped"


def test_a_task_that_ran_out_at_a_busy_site_frees_it(tmp_path):
    story = Story(tmp_path, *ROUNDS, "strategy.straggler_factor=5")
    dawdler(story, until=2)
    plain = story.grid._answer
    story.grid._answer = lambda message: (
        story.grid.runs_out(message)
        if story.grid.hospital(message.metadata.dst_node_id) == 2 and message.metadata.group_id == "pretrain-0"
        else plain(message)
    )
    story.run()
    assert [x["missing"] for x in story.lines] == [["h2"], ["h2"], [], []]
    assert story.said("too late") == 0, "there was no answer to drop"


VOLUMES = [{"T1": 10}, {"T1": 10, "T2": 10}, {"T1": 10, "T2": 10}]


@pytest.mark.parametrize(("share", "kept"), [("0", False), ("0.5", False), ("0.6", True)])
def test_a_module_group_below_its_quorum_keeps_its_value_and_is_named(tmp_path, share, kept):
    def spoil(i, stage, number, vectors):
        if i == 2:
            vectors["encoder/T2"][0] = np.nan

    told = []
    f = federation(tmp_path, Hospitals(spoil, volumes=VOLUMES), *ROUNDS, f"strategy.group_quorum={share}", sites=3)
    f.progress = lambda e: told.append(e.text)
    vectors = f.run()
    np.testing.assert_array_equal(vectors["encoder/T2"], 0 if kept else 8)
    np.testing.assert_array_equal(vectors["encoder/T1"], 6)  # two of three owners
    says = "kept as before, below strategy.group_quorum: encoder/T2 (1 of 2 owners), projection/T2 (1 of 2 owners)"
    assert told.count(says) == (4 if kept else 0)
    behind = {"encoder/T1": 2, "projection/T1": 2, "text_projection": 2}
    only = {} if kept else {"encoder/T2": 1, "projection/T2": 1}
    assert [x["groups"] for x in f.history] == [dict(sorted((behind | only).items()))] * 4
    assert ("T2" in f.state.trained["modalities"]) is not kept, "a modality that nobody changed is not called trained"


def test_a_round_in_which_no_group_has_its_quorum_is_void(tmp_path):
    def spoil(i, stage, number, vectors):
        if i == 2:
            raise RuntimeError

    f = federation(
        tmp_path,
        Hospitals(spoil, volumes=VOLUMES),
        *ROUNDS,
        "strategy.group_quorum=1",
        "strategy.retries=0",
        sites=3,
    )
    with pytest.raises(FederationError, match="no module group could be changed"):
        f.run()
    np.testing.assert_array_equal(f.vectors["encoder/T1"], 0)


def refusing(code: str) -> RecordDict:
    return RecordDict({contract.REFUSAL: ConfigRecord({"code": code, "incident": "1a2b"})})


def test_a_site_whose_budget_is_spent_is_said_to_be_and_may_raise_it(tmp_path):
    story = Story(tmp_path, *ROUNDS)
    story.refuse = lambda i, stage, number: refusing("budget") if i == 2 and number in (1, 2) else None
    shown, hears = io.StringIO(), story.federation.progress
    lines = PlainLines(shown)
    story.federation.progress = lambda e: (hears(e), lines(e))
    story.run()
    assert shown.getvalue().count("h2: update refused") == 2, "each is a line, not a count"
    assert shown.getvalue().count(", without h2 (refused)") == 2, "nor does the round's own line hide it"
    assert [len(x["returned"]) for x in story.lines] == [3, 2, 2, 3]
    assert story.said(f"h2: update refused: {contract.REFUSALS['budget']} (incident 1a2b)") == 2
    assert story.said("h2: an update in 2 of 4 rounds (refused in pretrain 2, 3)") == 1


def test_when_all_budgets_are_spent_the_run_ends_with_the_reasons(tmp_path):
    story = Story(tmp_path, *ROUNDS, "strategy.retries=1")
    story.refuse = lambda i, stage, number: refusing("budget") if number == 2 else None
    reason = contract.REFUSALS["budget"]
    with pytest.raises(FederationError, match=rf"0 of 3 sites returned an update, 2 are needed; h0: {reason}"):
        story.run()
    assert story.federation.state.round == 2, "the rounds before are kept"


def test_a_receipt_tells_the_budget_to_the_server_and_goes_back_without_it(tmp_path):
    receipt = {"ledger": "a" * 40, "seq": 3, "hash": "b" * 64, "spent": 1.5, "budget": 8.0, "patients": 7}
    hospitals, tasks = Hospitals(), []
    answer = hospitals.app

    def with_receipt(message, context):
        if message.metadata.message_type == "train":
            tasks.append(json.loads(message.content["task"]["task"]))
        reply = answer(message, context)
        reply.content[contract.RECEIPT] = exchange.record(contract.RECEIPT, receipt)
        return reply

    f = federation(tmp_path, hospitals, *ROUNDS)
    f.grid._app = with_receipt
    f.run()
    where = {k: receipt[k] for k in ("ledger", "seq", "hash")}
    assert [t["receipt"] for t in tasks] == [None] * 2 + [where] * 6
    assert f.state.receipts["h1"] == where | {"spent": 1.5, "budget": 8.0}
    assert json.loads((tmp_path / "status.json").read_text())["sites"]["h1"]["budget"] == {"spent": 1.5, "budget": 8.0}


@pytest.mark.parametrize("seq", [float("inf"), float("nan"), "three", None])
def test_a_receipt_that_cannot_be_read_is_none_and_ends_nothing(seq):
    told = {"ledger": "a", "seq": seq, "hash": "b"}
    reply = SimpleNamespace(content=RecordDict({contract.RECEIPT: exchange.record(contract.RECEIPT, told)}))
    assert exchange.receipt(reply) is None


def test_a_federation_says_at_the_end_that_everyone_was_there(tmp_path):
    told: list[str] = []
    f: Federation = federation(tmp_path, Hospitals())
    f.progress = lambda e: told.append(e.text)
    f.run()
    assert "all 2 sites returned an update in all 5 rounds" in told
    assert f.participation()[0] == {
        "stage": "pretrain",
        "round": 1,
        "returned": ["h0", "h1"],
        "missing": [],
        "refused": [],
        "absent": [],
    }


def test_a_secure_sum_is_of_those_who_are_there_and_waits_for_nobody_else(tmp_path, wards, monkeypatch):
    class Leaving(Wire):
        """Its last hospital is gone after the first round."""

        def get_node_ids(self):
            rounds = {message.metadata.group_id for _, kind, message, _ in self.seen if kind == "train"}
            return super().get_node_ids()[: -1 if rounds else None]

    monkeypatch.setattr(secure_parts, "Wire", Leaving)
    f = secure_parts.run(tmp_path, "stage.pretrain.rounds=2")
    assert [x["absent"] for x in f.history] == [[], ["h4"]]
    assert f.history[1]["groups"]["encoder/T1"] == 4
    sums = mean_change(0, "encoder/T1", range(5)) + mean_change(1, "encoder/T1", range(4))
    np.testing.assert_allclose(f.vectors["encoder/T1"] - 0.5, sums, rtol=0, atol=2 * TOLERANCE)
    assert len([1 for site, kind, *_ in f.wire.seen if site == 4]) == 5, "a card and one round's four steps"
