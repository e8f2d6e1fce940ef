"""What a site is shown of its ledger."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from client.privacy.budget import budget, open_existing, show
from client.privacy.ledger import Key, Ledger, LedgerError
from medmap_model.accounting import Cost


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    made = Ledger(tmp_path / "l.db", epsilon=2.0, delta=1e-5)
    for n in range(3):
        made.reserve(Key("first", "finetune", n, str(n)), "training, finetune", Cost(3, 4.0, 0.25))
    made.release(Key("first", "finetune", 0, "0"))
    made.reserve(Key("second", "finetune", 9, "v"), "validation", Cost(1, epsilon=0.5))
    return made


def test_the_numbers_are_the_ledgers(ledger):
    told = budget(open_existing(ledger.path), [Cost(3, 4.0, 0.25)])
    assert told["epsilon_spent"] == pytest.approx(ledger.spent())
    assert told["epsilon_left"] == pytest.approx(2.0 - ledger.spent())
    assert (told["charges"], told["released"], told["chain"]["entries"]) == (4, 1, 5)
    assert [r["purpose"] for r in told["by_run"]] == ["training, finetune", "validation"]
    assert told["by_run"][1]["epsilon_alone"] == 0.5
    assert told["planned"]["fits"] and told["planned"]["epsilon_after"] > told["epsilon_spent"]
    assert not budget(ledger, [Cost(40, 2.0, 0.5)])["planned"]["fits"]
    assert json.loads(json.dumps(told)) == told
    assert len(ledger.charges()) == 4  # asking costs nothing and writes nothing


def test_the_page_says_it_in_words(ledger):
    console = Console(record=True, width=100, file=open("/dev/null", "w"))  # noqa: SIM115
    show(budget(ledger, [Cost(40, 2.0, 0.5)]), console)
    text = console.export_text()
    assert "of 2 spent" in text and "would be refused" in text and "5 entries intact" in text and "validation" in text


def test_no_ledger_is_one_sentence(tmp_path):
    with pytest.raises(LedgerError, match=r"nowhere\.db is not there"):
        open_existing(tmp_path / "nowhere.db")
    (tmp_path / "junk.db").write_bytes(b"junk" * 1000)
    with pytest.raises(LedgerError, match=r"junk\.db is not a readable ledger"):
        open_existing(tmp_path / "junk.db")


def test_the_command_prints_the_same_as_json_and_a_mistake_is_one_sentence(ledger, tmp_path):
    from typer.testing import CliRunner

    from client.cli import app

    run = CliRunner().invoke(app, ["budget", str(ledger.path), "--json", "--steps", "3", "--noise-multiplier", "4"])
    assert run.exit_code == 0, run.output
    told = json.loads(run.output)
    assert told["epsilon_spent"] == pytest.approx(ledger.spent()) and told["planned"]["fits"]
    shown = CliRunner().invoke(app, ["budget", str(ledger.path)])
    assert shown.exit_code == 0 and "of 2 spent" in shown.output
    missing = CliRunner().invoke(app, ["budget", str(tmp_path / "nowhere.db")])
    assert missing.exit_code == 1
    assert "Traceback" not in missing.output
