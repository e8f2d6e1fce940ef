"""The round loop over real Flower messages, with sites whose work is a known addition."""

from __future__ import annotations

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from configs import load, load_vocabulary
from configs.schema import Config
from medmap_model import contract
from medmap_model.contract import Card
from medmap_model.groups import group_names
from server import checkpoint
from server.exchange import record
from server.members import FederationError
from server.rounds import Federation
from simulation.engines import InProcessGrid

VOCABULARY = load_vocabulary("medmom")
GROUPS = group_names(VOCABULARY)
LAYOUT = {g: [(f"p.{g}", (3,))] for g in GROUPS}
# Two brain hospitals: both own T1, only the second owns T2; volumes 10 and 30.
VOLUMES = [{"T1": 10}, {"T1": 30, "T2": 30}]


def initial() -> dict[str, np.ndarray]:
    return {g: np.zeros(3, np.float32) for g in GROUPS}


class Hospitals:
    """A ClientApp whose site i adds i + 1 to all it receives; `spoil(i, stage, round, vectors)` may misbehave."""

    def __init__(self, spoil=None, val_loss=None, volumes=VOLUMES) -> None:
        self.app, self.seen, self.spoil, self.volumes = ClientApp(), [], spoil, list(volumes)
        self.val_loss = val_loss or (lambda received: 1 / (1 + float(received)))

        @self.app.query()
        def query(msg, ctx):
            i = ctx.node_config["partition-id"]
            mine = self.volumes[i]
            card = Card(f"h{i}", mine, {"brain": mine["T1"]}, {"train": 10}, VOCABULARY.hash, "text")
            return Message(RecordDict({"card": record("card", card)}), reply_to=msg)

        def work(msg, ctx, trains):
            i, task = ctx.node_config["partition-id"], json.loads(msg.content["task"]["task"])
            vectors = {k: v.numpy() for k, v in msg.content["arrays"].items()}
            self.seen.append((msg.metadata.message_type, task["stage"], task["round"], i, sorted(vectors)))
            loss = self.val_loss(vectors["text_projection"][0])
            content = {
                "metrics": MetricRecord(
                    {"loss": 1.0, "studies": 10, "val_loss": loss, "val_studies": 5, "patient": 3.0}
                )
            }
            if trains:
                vectors = {k: v + np.float32(i + 1) for k, v in vectors.items()}
                if self.spoil:
                    result = self.spoil(i, task["stage"], task["round"], vectors)
                    if isinstance(result, RecordDict):
                        return Message(result, reply_to=msg)
                content["arrays"] = ArrayRecord({k: Array.from_numpy_ndarray(v) for k, v in vectors.items()})
            return Message(RecordDict(content), reply_to=msg)

        self.app.train()(lambda m, c: work(m, c, True))
        self.app.evaluate()(lambda m, c: work(m, c, False))


def config(*overrides: str) -> Config:
    return load(["stage.pretrain.rounds=2", "stage.finetune.rounds=3", "strategy.join_timeout_s=0", *overrides])


def federation(folder, hospitals: Hospitals, *overrides: str, grid=None, text_hash="text", sites=2) -> Federation:
    folder.mkdir(exist_ok=True)
    return Federation(
        grid or InProcessGrid(hospitals.app, sites, {}), config(*overrides), VOCABULARY,
        initial=initial(), layout=LAYOUT, text_hash=text_hash, folder=folder, sites=sites,
    )  # fmt: skip


def test_both_stages_send_each_site_its_own_groups_and_average_over_owners(tmp_path):
    hospitals = Hospitals()
    f = federation(tmp_path, hospitals)
    vectors = f.run()
    shared = 5 * (10 * 1 + 30 * 2) / 40
    np.testing.assert_allclose(vectors["encoder/T1"], shared)
    np.testing.assert_allclose(vectors["encoder/T2"], 5 * 2)  # its only owner counts in full
    np.testing.assert_allclose(vectors["fusion"], 3 * 1.75)  # finetune rounds only
    np.testing.assert_array_equal(vectors["head/liver"], 0)  # nobody's
    trains = [s for s in hospitals.seen if s[0] == "train"]
    assert {
        s[4] == ["encoder/T1", "projection/T1", "text_projection"] for s in trains if s[1] == "pretrain" and s[3] == 0
    } == {True}
    assert all("encoder/T2" not in s[4] and "head/liver" not in s[4] for s in trains if s[3] == 0)
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(x["stage"], x["round"]) for x in lines] == [
        ("pretrain", 1),
        ("pretrain", 2),
        ("finetune", 1),
        ("finetune", 2),
        ("finetune", 3),
    ]
    assert all(x["val_loss"] is not None for x in lines), "the last round of each stage is validated as well"
    assert all("patient" not in s for x in lines for s in x["sites"].values()), "undeclared figures are dropped"
    assert lines[0]["bytes_up"] == (3 + 5) * 12


def test_naive_averages_unowned_groups_in_unchanged_weighted_by_all_volumes(tmp_path):
    def leave_unowned(i, stage, number, vectors):
        for g in ("encoder/T2", "projection/T2") if i == 0 else ():
            vectors[g] -= np.float32(1)

    vectors = federation(tmp_path, Hospitals(leave_unowned), "strategy=naive").run()
    # After one round: (10 * 0 + 60 * 2) / 70, an owner's step shrunk; the aware mean is 2.
    np.testing.assert_allclose(vectors["encoder/T2"], 5 * 120 / 70, rtol=1e-5)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.nan, "not finite"),
        (None, "is missing"),
        ("shape", "has shape"),
        ("key", "unknown module group 'encoder/X'"),
    ],
)
def test_a_bad_update_is_refused_by_name_and_the_round_goes_on(tmp_path, value, reason):
    def spoil(i, stage, number, vectors):
        if (i, stage, number) == (0, "pretrain", 1):
            if value is None:
                vectors.pop("encoder/T1")
            elif value == "shape":
                vectors["encoder/T1"] = np.zeros(4, np.float32)
            elif value == "key":
                vectors["encoder/X"] = np.zeros(3, np.float32)
            else:
                vectors["encoder/T1"][1] = value

    f = federation(tmp_path, Hospitals(spoil))
    vectors = f.run()
    line = f.history[1]
    assert [r["site"] for r in line["refused"]] == ["h0"]
    assert reason in line["refused"][0]["reason"]
    assert line["returned"] == ["h1"]
    np.testing.assert_allclose(vectors["encoder/T1"], 4 * 1.75 + 2)


def test_an_exception_on_a_site_shows_no_text_and_the_round_goes_on(tmp_path):
    def spoil(i, stage, number, vectors):
        if i == 0 and stage == "finetune":
            raise RuntimeError("patient 42 in /data/secret")

    f = federation(tmp_path, Hospitals(spoil))
    f.run()
    assert f.history[-1]["refused"][0]["site"] == "h0"
    assert "secret" not in json.dumps(f.history)


def test_a_refusal_is_told_in_the_contracts_words_never_the_sites(tmp_path):
    def spoil(i, stage, number, vectors):
        if i == 0:
            fields = {"code": "data", "incident": "0abc<script>", "text": "patient 42"}
            return RecordDict({contract.REFUSAL: ConfigRecord(fields)})

    f = federation(tmp_path, Hospitals(spoil))
    f.run()
    reason = f"{contract.REFUSALS['data']} (incident 0abcc)"  # hex digits alone survive
    assert f.history[0]["refused"] == [{"site": "h0", "reason": reason}]


def test_below_quorum_nothing_is_aggregated_and_the_run_stops_after_the_retries(tmp_path):
    def spoil(i, stage, number, vectors):
        if stage == "finetune":
            raise RuntimeError

    hospitals = Hospitals(spoil)
    f = federation(tmp_path, hospitals, "strategy.quorum=1", "strategy.retries=1")
    with pytest.raises(FederationError, match=r"finetune round 1 has found no quorum 2 times.*resume="):
        f.run()
    assert sum(s[1] == "finetune" and s[3] == 0 for s in hospitals.seen) == 2
    np.testing.assert_allclose(f.vectors["encoder/T1"], 2 * 1.75)
    # The sites are back: the same folder goes on where it stood.
    vectors = federation(tmp_path, Hospitals(), "strategy.quorum=1").run()
    np.testing.assert_allclose(vectors["encoder/T1"], 5 * 1.75)


def test_a_silent_site_is_waited_for_no_longer_than_the_deadline(tmp_path):
    class Deaf(InProcessGrid):
        def pull_messages(self, message_ids):
            waiting = [k for k in message_ids if self._waiting.get(k) and (
                self._waiting[k].metadata.message_type == "query" or self._contexts[self._waiting[k].metadata.dst_node_id].node_config["partition-id"] == 1
            )]  # fmt: skip
            return super().pull_messages(waiting)

    hospitals = Hospitals()
    f = federation(
        tmp_path,
        hospitals,
        "strategy.round_timeout_s=1",
        "stage.pretrain.rounds=1",
        "stage.finetune.rounds=0",
        grid=Deaf(hospitals.app, 2, {}),
    )
    f.run()
    assert f.history[0]["missing"] == ["h0"]
    assert f.history[0]["wall_s"] < 5
    np.testing.assert_allclose(f.vectors["encoder/T1"], 2)


def test_a_site_with_another_text_encoder_may_not_join(tmp_path):
    with pytest.raises(FederationError, match="0 of 2 sites may join"):
        federation(tmp_path, Hospitals(), text_hash="another").run()


@pytest.mark.parametrize("count", ["ten", -1, 0.5, 1 << 29, float("nan"), None, True])
def test_a_card_whose_counts_are_no_counts_may_not_join_and_ends_nothing(tmp_path, count):
    told: list[str] = []
    hospitals = Hospitals(volumes=[{"T1": 10}, {"T1": 10}, {"T1": count}])
    f = federation(tmp_path, hospitals, "stage.finetune.rounds=0", sites=3)
    f.progress = lambda e: told.append(e.text)
    f.run()
    assert f.history[0]["returned"] == ["h0", "h1"]
    assert sum("may not join: its card counts" in t for t in told) == 1


def test_figures_that_have_no_mean_end_nothing(tmp_path):
    f = federation(tmp_path, Hospitals(val_loss=lambda received: 1e308), "stage.finetune.rounds=0")
    f.run()
    assert [x["val_loss"] for x in f.history] == [None, None] and f.state.finished


def test_too_few_sites_is_one_sentence(tmp_path):
    hospitals = Hospitals()
    with pytest.raises(FederationError, match="1 of 2 sites are here, 2 are needed"):
        federation(tmp_path, hospitals, "strategy.quorum=1", grid=InProcessGrid(hospitals.app, 1, {})).run()


@pytest.mark.parametrize("stop_at", range(1, 12))
def test_a_run_stopped_anywhere_and_resumed_ends_with_the_same_weights(tmp_path, stop_at):
    def drift(i, stage, number, vectors):
        rng = np.random.default_rng([i, number, stage == "finetune"])
        for v in vectors.values():
            v += rng.normal(size=3).astype(np.float32)

    whole = federation(tmp_path / "whole", Hospitals(drift)).run()
    calls = 0

    def stopping(i, stage, number, vectors):
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise KeyboardInterrupt
        drift(i, stage, number, vectors)

    if stop_at <= 10:
        with pytest.raises(KeyboardInterrupt):
            federation(tmp_path / "cut", Hospitals(stopping)).run()
    hospitals = Hospitals(drift)
    resumed = federation(tmp_path / "cut", hospitals).run()
    for g in GROUPS:
        np.testing.assert_array_equal(resumed[g], whole[g])
    if stop_at > 2 and stop_at <= 10:
        assert len([s for s in hospitals.seen if s[0] == "train"]) < 10, "finished rounds are not done again"
    assert len((tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()) == 5


def test_early_stop_goes_back_to_the_best_round(tmp_path):
    # Validation is best for the model that one round of pretraining made (value 1.75) and worse ever after.
    f = federation(
        tmp_path,
        Hospitals(val_loss=lambda x: abs(float(x) - 1.75)),
        "stage.pretrain.rounds=9",
        "stage.pretrain.patience=2",
        "stage.finetune.rounds=0",
    )
    vectors = f.run()
    # Rounds 2 and 3 were no better. The third's validation rides on the fourth's replies, so the fourth is the last.
    assert len(f.history) == 4
    np.testing.assert_allclose(vectors["text_projection"], 1.75)
    saved, _ = checkpoint.load(checkpoint.latest(tmp_path / "checkpoints"), LAYOUT)
    np.testing.assert_allclose(saved["text_projection"], 1.75)


def test_two_sites_of_one_name_may_not_both_join(tmp_path):
    hospitals = Hospitals()
    told = []
    grid = InProcessGrid(hospitals.app, 2, {})
    for context in grid._contexts.values():
        context.node_config["partition-id"] = 1
    f = federation(tmp_path, hospitals, grid=grid)
    f.progress = lambda e: told.append(e.text)
    assert [m.card.site for m in f.join()] == ["h1"]
    assert any("another site has its name" in t for t in told)
