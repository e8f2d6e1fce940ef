"""A private federation over real messages: what leaves, what is charged, who is refused, and what a copied ledger does."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from client.app import app
from client.privacy.ledger import Ledger
from configs import to_json
from medmap_model import contract
from medmap_model.accounting import with_noise
from server.app import federate
from server.members import FederationError
from server.progress import Event
from simulation.engines import InProcessGrid
from tests.conftest import small_config

PRIVATE = (
    "privacy=patient_dp", "privacy.epsilon=6", "privacy.steps=2", "privacy.secure_noise=false",
    "stage.pretrain.rounds=0", "stage.finetune.rounds=3", "privacy.noise_multiplier=3",
)  # fmt: skip


def run(folder: Path, hospitals, cache, *overrides: str, spy=None, name: str = "run", stop_at: int = 0):
    ledgers = folder / "ledgers"
    text = to_json(with_noise(small_config(*PRIVATE, f"privacy.ledger_dir={ledgers}", *overrides)))
    (folder / name).mkdir(parents=True, exist_ok=True)
    sites = folder / "sites.json"
    sites.write_text(json.dumps([{"name": k, "manifests": [str(v)]} for k, v in hospitals.items()]))
    grid = (spy or InProcessGrid)(
        app, len(hospitals), {"config": text, "sites-file": str(sites), "cache-dir": str(cache)}
    )
    told: list[str] = []

    def tell(event: Event) -> None:
        told.append(f"{event.site} {event.text}")
        if event.kind == "round_start" and event.round == stop_at:
            raise KeyboardInterrupt

    f = federate(grid, text, folder=folder / name, sites=len(hospitals), progress=tell)
    return f, told


def ledger(folder: Path, site: str, epsilon: float = 6.0) -> Ledger:
    return Ledger(folder / "ledgers" / f"{site}.db", epsilon=epsilon, delta=1e-5)


class Spy(InProcessGrid):
    """Keeps every reply."""

    replies: list = []

    def _answer(self, message):
        reply = super()._answer(message)
        if message.metadata.message_type != "query":
            Spy.replies.append(reply)
        return reply


def test_weights_change_are_charged_and_nothing_else_leaves(tmp_path, hospitals, cache):
    Spy.replies = []
    f, _ = run(tmp_path, hospitals, cache, spy=Spy)
    start, _ = run(tmp_path / "none", hospitals, cache, "stage.finetune.rounds=0")
    assert (f.vectors["head/brain"] != start.vectors["head/brain"]).any()
    for site in hospitals:
        charges = ledger(tmp_path, site).charges()
        assert [(c.key.stage, c.key.round, c.released) for c in charges] == [("finetune", r, True) for r in range(3)]
        assert all(c.cost.steps == 2 and c.cost.noise_multiplier == 3 for c in charges)
        assert 0 < ledger(tmp_path, site).spent() <= 6
    assert Spy.replies
    for reply in Spy.replies:
        assert not dict(reply.content.get(contract.METRICS_RECORD) or {})  # no loss, no count, no time
        extra = set(reply.content.keys()) - {contract.ARRAYS, contract.METRICS_RECORD, contract.RECEIPT}
        assert not extra
        arrays = reply.content.get(contract.ARRAYS) or {}
        assert not set(arrays) - set(f.vectors)
    assert set(f.state.receipts) == set(hospitals)


def test_two_runs_of_one_seed_carry_other_noise(tmp_path, hospitals, cache):
    a, _ = run(tmp_path / "a", hospitals, cache)
    b, _ = run(tmp_path / "b", hospitals, cache)
    assert (a.vectors["head/brain"] != b.vectors["head/brain"]).any()


def test_a_spent_budget_is_refused_before_data_is_touched_and_the_others_go_on(tmp_path, hospitals, cache, caplog):
    poor = ledger(tmp_path, "east")
    from client.privacy.ledger import Key
    from medmap_model.accounting import Cost

    poor.reserve(Key("earlier", "finetune", 0, "x"), "an earlier study", Cost(1, epsilon=5.9))
    with caplog.at_level(logging.CRITICAL, "medmap.client"):
        f, told = run(tmp_path, hospitals, cache, "strategy.quorum=0.5")
    assert [line["returned"] for line in f.history] == [["west"]] * 3
    assert any("east" in t and "privacy budget does not allow" in t for t in told)
    assert not any("5.9" in t or "epsilon" in t for t in told)  # the sentence is the server's own
    assert len(poor.charges()) == 1


def test_an_older_copy_of_the_ledger_is_noticed(tmp_path, hospitals, cache, caplog):
    east = tmp_path / "ledgers" / "east.db"
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, hospitals, cache, stop_at=2)
    shutil.copy(east, tmp_path / "backup.db")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, hospitals, cache, stop_at=3)
    assert len(ledger(tmp_path, "east").charges()) == 2
    shutil.copy(tmp_path / "backup.db", east)
    assert len(ledger(tmp_path, "east").charges()) == 1  # spent privacy forgotten
    with caplog.at_level(logging.CRITICAL, "medmap.client"):
        f, told = run(tmp_path, hospitals, cache)
    assert any("east" in t and "ledger cannot be used" in t for t in told)
    assert [line["returned"] for line in f.history] == [["east", "west"], ["east", "west"], ["west"]]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stage.pretrain.objective=asymmetric", "its negatives are other patients"),
        ("stage.pretrain.queue=8", "past patients"),
        ("stage.finetune.patience=2", "patience"),
        ("strategy=naive", "strategy=naive"),
        ("model.encoder.checkpointing=true", "checkpointing"),
    ],
)
def test_what_would_leak_is_refused_by_name(override, words):
    from client.privacy.checks import check_settings
    from configs.setting import ConfigError

    base = ["privacy=patient_dp", "stage.pretrain.objective=bank", override]
    with pytest.raises(ConfigError, match=words) as caught:
        check_settings(small_config(*base))
    assert "\n" not in str(caught.value)
    check_settings(small_config("privacy=patient_dp", "stage.pretrain.objective=bank"))


def test_a_site_refuses_by_itself_what_would_leak_and_charges_nothing(tmp_path, hospitals, cache, caplog):
    with caplog.at_level(logging.CRITICAL, "medmap.client"), pytest.raises(FederationError, match="no quorum"):
        run(tmp_path, hospitals, cache, "stage.finetune.patience=2", "strategy.retries=0")
    assert not list((tmp_path / "ledgers").glob("*.db"))
